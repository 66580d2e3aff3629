"""distill: logit distillation and its scaling law in JAX."""

__version__ = "0.1.0"
