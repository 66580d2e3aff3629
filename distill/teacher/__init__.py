"""What a teacher says, and how it reaches the student: online inside the step, kept in memory by window, or stored.

A store of signals is made once (`python -m launch.cache`) and read by any number of students: docs/signals.md.
"""

# Each module imports only from those before it.
ORDER = (
    *("published", "precision", "online", "mixture", "memory"),
    *("errors", "codec", "kinds", "shard", "manifest", "store", "extract", "fidelity", "writer"),
)
