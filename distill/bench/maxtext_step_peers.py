"""MaxText's own training step, compiled for a TPU that is not there. Run by the interpreter of a MaxText installation.

    MAXTEXT_PYTHON distill/bench/maxtext_step_peers.py < job.json

It imports nothing of this project, only jax and the installed package, and changes nothing in it. The job is a JSON
object: `student` and `teacher` (settings of MaxText, 'name=value'; no teacher: its pre-training step), `dump` (a
folder for the compiler's texts), `answer` (a file, written last). The answer has the bytes of one chip as the compiler
reports them, the function's name and the versions. The environment must keep compilers from looking for a device
(distill/diagnostics/dryrun/compiler.py).

Pre-training is maxtext.trainers.pre_train.train.train_step with the state and shardings of train_compile. Distillation
is MaxTextDistillationTrainer's step with its CombinedDistillationStrategy (dense, online), its optimizer and settings
of base.yml; the whole state of the student is donated.
"""

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class _Step(NamedTuple):
    """A function, shapes and shardings of its arguments, and shardings of its results; argument 0 is donated."""

    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


def main() -> int:
    """Compiles the job on standard input."""
    job = json.loads(sys.stdin.read())
    # As MaxText's own train_compile sets them, before JAX is loaded.
    unsafe = "--xla_tpu_spmd_rng_bit_generator_unsafe=true"
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {unsafe}".strip()
    import jax

    jax.config.update("jax_default_prng_impl", "unsafe_rbg")
    from flax.core import spmd
    from maxtext.trainers.pre_train import train_compile

    student = _config(job["student"])
    mesh = train_compile.get_topology_mesh(student)
    step = _distillation(student, _config(job["teacher"]), mesh) if job["teacher"] else _pretraining(student, mesh)
    options = {"xla_dump_to": job["dump"], "xla_dump_hlo_as_text": True}
    with jax.set_mesh(mesh), spmd.logical_axis_rules(student.logical_axis_rules):
        jitted = jax.jit(step.call, in_shardings=step.inputs, out_shardings=step.outputs, donate_argnums=0)
        done = jitted.lower(*step.arguments).compile(compiler_options=options)
    if not list(Path(job["dump"]).glob("*.after_codegen.txt")):  # seen of the distillation step: it dumped nothing
        (Path(job["dump"]) / f"{step.call.__name__}.after_codegen.txt").write_text(done.as_text() or "", "utf-8")
    memory: Any = done.memory_analysis()
    answer = {
        "function": step.call.__name__,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "parameters": _count(step.arguments[0]),
        "versions": {name: importlib.metadata.version(name) for name in ("maxtext", "jax", "libtpu")},
    }
    Path(job["answer"]).write_text(json.dumps(answer), "utf-8")
    return 0


def _config(settings: list[str]) -> Any:
    """MaxText's configuration: its base.yml with these settings."""
    import maxtext
    from maxtext.configs import pyconfig

    base = Path(next(iter(maxtext.__path__))) / "configs" / "base.yml"
    return pyconfig.initialize(["maxtext", str(base), *settings])


def _count(state: Any) -> int:
    """Numbers in the trained model of a state, without counters and keys of its random generators."""
    import jax
    import jax.numpy as jnp

    return sum(leaf.size for leaf in jax.tree.leaves(state["model"]) if jnp.issubdtype(leaf.dtype, jnp.floating))


def _pretraining(config: Any, mesh: Any) -> _Step:
    """The step that MaxText's train_compile compiles."""
    from maxtext.trainers.pre_train import train, train_compile
    from maxtext.utils import maxtext_utils, sharding

    arguments, _, placed, _, graph = train_compile.get_shaped_inputs(mesh, config)
    parameters, placed = sharding.maybe_update_params_sharding_with_opt(config, placed)
    given = sharding.build_zero1_input_state_mesh_shardings(config, placed, parameters)
    call, inputs, outputs, _, _ = maxtext_utils.get_functional_train_with_signature(
        train.train_step, sharding.get_input_data_sharding(config, mesh), given, graph, config, parameters
    )
    return _Step(call, arguments, inputs, outputs)


def _distillation(config: Any, taught: Any, mesh: Any) -> _Step:
    """The step of MaxText's distillation trainer."""
    from flax import nnx
    from flax.core import spmd
    from maxtext.common import train_state_nnx
    from maxtext.trainers.post_train.distillation import distillation_utils, train_distill
    from maxtext.utils import maxtext_utils, model_creation_utils, sharding

    create, _ = model_creation_utils.create_nnx_abstract_model(config, mesh)
    optimizer = train_distill.get_distillation_optimizer(config, config.steps)

    def begin() -> Any:
        model = create()
        return train_state_nnx.TrainStateNNX(model, nnx.Optimizer(model, optimizer, wrt=nnx.Param))

    state, _, placed = maxtext_utils.get_abstract_state(config, mesh, begin, True)
    with spmd.logical_axis_rules(config.logical_axis_rules):
        graph, _ = nnx.split(nnx.eval_shape(begin))
    create_teacher, _ = model_creation_utils.create_nnx_abstract_model(taught, mesh)
    frozen, _, frozen_placed = maxtext_utils.get_abstract_state(taught, mesh, create_teacher, False)
    with spmd.logical_axis_rules(taught.logical_axis_rules):
        teacher_graph, _ = nnx.split(nnx.eval_shape(create_teacher))
    data = sharding.get_input_data_sharding(config, mesh)
    batch = maxtext_utils.get_shaped_batch(config, batch_sharding=data)
    # Its constructor opens loggers and checkpoints, and allocates; the step reads these attributes alone.
    trainer = object.__new__(train_distill.MaxTextDistillationTrainer)
    trainer.wrt_filter = nnx.Param
    trainer._tunix_expects_grad_norm = True
    trainer.gen_model_input_fn = _inputs
    trainer.strategy = distillation_utils.CombinedDistillationStrategy(
        student_forward_fn=train_distill.create_forward_fn(config),
        teacher_forward_fn=train_distill.create_forward_fn(taught),
        temperature=config.distill_temperature,
        alpha=config.distill_alpha,
        vocab_size=config.vocab_size,
        max_steps=config.steps,
    )

    def distill_step(state: Any, frozen: Any, batch: Any) -> tuple[Any, Any]:
        merged = nnx.merge(graph, state)
        both = train_distill.ModelBundle(nnx.merge(teacher_graph, frozen), merged.model)
        told = trainer._train_step(both, merged.optimizer, batch)
        return nnx.state(merged), told

    return _Step(distill_step, (state, frozen, batch), (placed, frozen_placed, data), (placed, None))


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of MaxText's loader under the names of its distillation trainer."""
    return {
        "input_tokens": batch["inputs"],
        "positions": batch["inputs_position"],
        "decoder_segment_ids": batch["inputs_segmentation"],
        "targets": batch["targets"],
        "targets_segmentation": batch["targets_segmentation"],
    }


if __name__ == "__main__":
    sys.exit(main())
