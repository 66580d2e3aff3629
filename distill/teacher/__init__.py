"""What a teacher says, and how it reaches the student: online inside the step, or kept in memory by window."""

# Each module imports only from those before it.
ORDER = ("online", "mixture", "memory")
