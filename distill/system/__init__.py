"""The machine underneath: atomic files, locks, preemption, several processes, buckets, progress."""
