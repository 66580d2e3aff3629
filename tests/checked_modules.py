"""The modules whose shape annotations are checked at run time in every test (conftest.py), and those left out."""

CHECKED = (
    "distill.losses.chunks",
    "distill.losses.cross_tokenizer",
    "distill.losses.divergences",
    "distill.losses.features",
    "distill.losses.fused",
    "distill.losses.kernel",
    "distill.losses.online",
    "distill.losses.targets",
    "distill.model.adapted",
    "distill.model.attention_kernels",
    "distill.model.positions",
    "distill.model.ring",
    "distill.model.decode",
    "distill.model.experts",
    "distill.model.head_maps",
    "distill.model.layers",
    "distill.model.lora",
    "distill.model.norms",
    "distill.model.products",
    "distill.model.transformer",
    "distill.model.units",
    "distill.model.warm_start",
    "distill.teacher.mixture",
    "distill.teacher.observe",
    "distill.training.cache",
    "distill.training.evaluate",
    "distill.training.objective",
    "distill.training.on_policy",
)

# Imports a library that the tests may lack.
EXTRAS = ("distill.training.lm_eval",)

# Dataclasses that are pytrees of a jitted step: eval_shape, vmap and checkpoints put shapes and axes in their fields.
PYTREES = (
    "distill.losses.sums",
    "distill.model.importance",
    "distill.teacher.cross_tokenizer",
    "distill.training.cross_teacher",
    "distill.training.guard",
    "distill.training.optim",
    "distill.training.step",
    "distill.training.vmapped",
)
