"""One run, from a config to a row of runs.csv: objective, step, evaluation, the loop, the cache of signals."""
