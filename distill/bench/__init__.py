"""Benchmarks and campaigns, one a module: `python -m launch.bench NAME --flag=value` calls its `main`."""
