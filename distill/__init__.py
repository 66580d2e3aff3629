"""distill: logit distillation and its scaling law in JAX."""
