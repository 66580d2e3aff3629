"""Configs: one file a study or run; `get_config(arg)` returns a locked ConfigDict."""
