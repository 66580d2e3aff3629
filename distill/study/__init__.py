"""Many runs: a matrix or sweep of configs on pinned workers, then laws, predictions, advice, report."""
