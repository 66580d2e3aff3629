"""A matrix of experiments -> finished runs -> laws -> a plan -> a report; what is finished is not run again."""

# Each module imports only from those before it.
ORDER = ("ablations", "matrix", "workers", "schedule", "conclude", "study", "sweep")
