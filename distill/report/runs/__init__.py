"""Pages and pictures of runs: one, several side by side, a sweep, what still runs."""
