"""Losses per token, as sums that merge exactly: divergences, targets, the fused head, features."""
