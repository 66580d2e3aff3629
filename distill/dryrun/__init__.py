"""A step of training on machines that are not there: its memory, FLOPs and collectives, and whether it fits."""

ORDER = ("chips", "hlo", "program", "arithmetic", "compiler", "report")
