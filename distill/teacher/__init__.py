"""A teacher and what it gives a student: loaded and run online, kept in memory by window, or read from a store.

A store of signals is made once (`python -m launch.cache`) and read by any number of students: docs/guide/signals.md.
"""
