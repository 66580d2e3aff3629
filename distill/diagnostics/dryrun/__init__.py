"""A step on machines that are not there: its memory, FLOPs and collectives, and whether it fits."""
