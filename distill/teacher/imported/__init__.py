"""Signals that other tools wrote: their files become a token store and a store of signals (docs/guide/signals.md)."""
