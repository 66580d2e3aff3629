"""Entry points: each parses its flags, builds its config and makes one call into distill."""
