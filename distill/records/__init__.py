"""What a run leaves: checkpoints, metrics.jsonl, the row of runs.csv, predictions."""
