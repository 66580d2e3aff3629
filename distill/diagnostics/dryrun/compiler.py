"""The real compilers of TPUs (libtpu) and of NVIDIA's GPUs (XLA:GPU), neither of which needs its device.

They give the memory of one chip and the program that it would run. A TPU has to be compiled for; where the GPU's
compiler is not installed, the dry run is arithmetic (`missing`).
"""

import contextlib
import dataclasses
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from distill.config import ConfigError, ExperimentConfig, ModelConfig
from distill.config.chips import Chip, topology
from distill.diagnostics.dryrun import bundles, estimate, hlo, installed, program, targets
from distill.diagnostics.dryrun.estimate import Estimate, Product
from distill.diagnostics.dryrun.hlo import Collective
from distill.model import sharding

HOW = "pip install -e '.[tpu-compiler]' (or set TPU_LIBRARY_PATH to a libtpu.so)"
PLUGINS = ("jax-cuda13-plugin", installed.GPU_COMPILER)  # the GPU's compiler; both have JAX's own version
# Libraries of CUDA that compile, and cuDNN, which attention='cudnn' needs to be lowered.
LIBRARIES = ("nvidia-nvvm", "nvidia-cuda-nvcc", "nvidia-cuda-runtime", "nvidia-cudnn-cu13")
# Products are cuBLAS's, whose times XLA has in a table: without a device, its own kernels cannot be tuned.
GPU_OPTIONS: dict[str, bool | str] = {
    "xla_gpu_enable_triton_gemm": False,
    "xla_gpu_collect_cost_model_stats": True,
    "xla_gpu_enable_analytical_sol_latency_estimator": True,
}
# The number of GPUs of a slice: sums over several slices are scattered in each before they cross, and gathered after. A
# TPU's compiler does so by itself; a run on GPUs has to set it, and the report says so.
SLICE_OPTION = "xla_gpu_all_reduce_blueconnect_num_devices_per_host"
_STAGES = ("after_codegen", "after_optimizations")  # of libtpu's dumps, the better first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """Bytes of one chip as the compiler reports them, its program and the collectives in it."""

    arguments: float
    temporaries: float
    code: float
    text: str  # HLO; a TPU's with the compiler's estimates of cycles
    collectives: list[Collective]

    @property
    def total(self) -> float:
        return self.arguments + self.temporaries + self.code


def environment(chip: Chip, count: int, dump: str = "") -> dict[str, str]:
    """Variables to set before JAX is loaded, so that no compiler looks for its device; `count` chips in all.

    In `dump`, libtpu writes the programs of Pallas kernels, which have no other estimate.
    """
    fixed = {"JAX_PLATFORMS": "cpu"}
    if not chip.dims:
        return fixed
    size = chip.slice or count
    kind = {"v5e": f"v5litepod-{size}", "v5p": f"v5p-{2 * size}", "v6e": f"v6e-{size}"}[chip.name]
    fixed |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": kind}
    fixed["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # no TPU is opened, so dry runs need no lock between them
    if dump:
        given = os.environ.get("LIBTPU_INIT_ARGS", "")
        flags = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles"
        fixed["LIBTPU_INIT_ARGS"] = f"{given} {flags}".strip()
    return fixed


def name(chip: Chip) -> str:
    return "the TPU compiler" if chip.dims else "XLA's GPU compiler"


def missing(chip: Chip) -> str:
    """Why this chip's compiler cannot be asked, and how to install it, in one sentence; '' if it can."""
    if chip.dims:
        path = os.environ.get("TPU_LIBRARY_PATH")
        if path and not os.path.isfile(path):
            return f"TPU_LIBRARY_PATH={path}: there is no such file; unset it, or {HOW}"
        if not path and importlib.util.find_spec("libtpu") is None:
            return f"the TPU compiler (libtpu) is not installed: {HOW}; --chip=h100 needs none"
        return ""
    if chip.name not in targets.TARGETS:
        return f"there is no compiler for a {chip.name}"
    versions = {name: installed.version(name) for name in (*PLUGINS, *LIBRARIES)}
    absent = [name for name, version in versions.items() if not version]
    if absent:
        return f"XLA's GPU compiler is not installed ({', '.join(absent)}): {_how()}"
    other = [f"{name} {versions[name]}" for name in PLUGINS if versions[name].split("+")[0] != jax.__version__]
    if other:
        return f"XLA's GPU compiler is of another version than jax {jax.__version__} ({', '.join(other)}): {_how()}"
    return ""


def _how() -> str:
    exact = " ".join(f"{name}=={jax.__version__}" for name in PLUGINS)
    return f"pip install -e '.[gpu-compiler]' {exact} (1.6 GB; no GPU is needed)"


def check(chip: Chip) -> None:
    """Raises ConfigError, saying how to install it, if the compiler of this chip is missing."""
    if reason := missing(chip):
        raise ConfigError(reason)


def check_estimates(chip: Chip) -> None:
    """Raises ConfigError if the compiler of this chip has no estimates, or is missing."""
    check(chip)
    if not chip.dims and not _has_table(chip):
        raise ConfigError(
            f"XLA's GPU compiler has no estimates of products on the {chip.name} (its table has no sm_80); ask for "
            "them on an h100, h200 or b200, or leave out --estimate and --tune"
        )


def _has_table(chip: Chip) -> bool:
    """Whether XLA's table of measured products has a GPU; with its estimator on, it compiles nothing for another."""
    return targets.TARGETS[chip.name].capability >= 9


def devices(chip: Chip, count: int) -> Sequence[jax.Device]:
    """The devices of slices of a TPU, or of nodes of GPUs, as the compiler sees them."""
    from jax.experimental import topologies

    check(chip)
    size = chip.slice or count
    # GPUs are one network to their compiler: it knows nodes and no data centres.
    shape = topology(chip, size if chip.dims else count)
    with _quiet():
        try:
            if chip.dims:
                several = {"num_slices": count // size} if count > size else {}
                return topologies.get_topology_desc(platform="tpu", topology_name=shape, **several).devices
            config = targets.text(chip)
            return topologies.get_topology_desc(platform="cuda", target_config=config, topology=shape).devices
        except Exception as error:  # any error of a compiler, in one line
            what = f"the compiler has no {shape} of {chip.name}"
            raise ConfigError(f"{what}: {str(error).splitlines()[0]}") from None


def compile_step(config: ExperimentConfig, teacher: ModelConfig | None, chip: Chip) -> Compiled:
    """The step of a config on a mesh of this chip. Minutes for a model of billions of parameters."""
    count = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
    made = sharding.make(config.mesh, devices(chip, count))
    with _quiet():
        traced = program.trace(config, teacher, made).traced
    with jax.set_mesh(made):
        return compile_traced(traced, chip)


def compile_traced(traced: jax.stages.Traced, chip: Chip) -> Compiled:
    """A function that was traced for a mesh of this chip. Raises ConfigError where it does not compile or fit."""
    with _quiet():
        try:
            return (_tpu if chip.dims else _gpu)(traced, chip)
        except jax.errors.JaxRuntimeError as error:
            message = str(error)
            if "RESOURCE_EXHAUSTED" not in message:
                what = f"{name(chip)} does not compile {traced.fun_name} for a {chip.name}"
                raise ConfigError(f"{what}: {message.splitlines()[0]}") from None
            line = next((line for line in message.splitlines() if "Ran out of memory" in line), message.splitlines()[0])
            raise DoesNotFit(line.strip()) from None


def _tpu(traced: jax.stages.Traced, _: Chip) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        # libtpu dumps its program itself: JAX cannot always read one back (v5p's async collectives).
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        done = traced.lower(lowering_platforms=("tpu",)).compile(compiler_options=options)
        # After code generation it has cycles too.
        dumped = [sorted(Path(folder).glob(f"*{traced.fun_name}*.{stage}.txt")) for stage in _STAGES]
        text = next(paths[-1] for paths in dumped if paths).read_text("utf-8")
    return _read(done, text)


def _gpu(traced: jax.stages.Traced, chip: Chip) -> Compiled:
    done = traced.lower(lowering_platforms=("cuda",)).compile(compiler_options=_gpu_options(chip))
    return _read(done, done.as_text() or "")


def _gpu_options(chip: Chip) -> dict[str, bool | str]:
    options = dict(GPU_OPTIONS) if _has_table(chip) else {"xla_gpu_enable_triton_gemm": False}
    return options | ({SLICE_OPTION: str(chip.slice)} if chip.slice else {})


def _read(done: jax.stages.Compiled, text: str) -> Compiled:
    memory = done.memory_analysis()
    assert memory is not None
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        text=text,
        collectives=hlo.collectives(text),
    )


def estimated(compiled: Compiled, chip: Chip, kernels: str = "") -> Estimate:
    """The compiler's own estimate of a program's seconds; `kernels` is the folder that `environment` named."""
    if chip.dims:
        return estimate.of_tpu(compiled.text, chip, bundles.kernels(Path(kernels)) if kernels else {})
    lacking = estimate.products_without_estimate(compiled.text)
    return estimate.of_gpu(compiled.text, chip, _product_seconds(lacking, chip))


def _product_seconds(shapes: Sequence[Product], chip: Chip) -> dict[Product, float]:
    """XLA's seconds of products of bfloat16 into bfloat16 on one GPU, all shapes in one program."""
    if not shapes:
        return {}
    made = jax.make_mesh((1,), ("device",), devices=devices(chip, 1))
    place = jax.NamedSharding(made, jax.P())
    array = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=place)
    pairs = [(array(m, k), array(k, n)) for m, k, n in shapes]
    multiply = jax.jit(lambda pairs: [left @ right for left, right in pairs])
    with _quiet():
        done = multiply.trace(pairs).lower(lowering_platforms=("cuda",)).compile(compiler_options=GPU_OPTIONS)
    found = estimate.product_seconds(done.as_text() or "")
    turned = {(n, k, m): seconds for (m, k, n), seconds in found.items()}
    return {shape: (turned | found)[shape] for shape in shapes if shape in turned | found}


class DoesNotFit(ConfigError):
    """The compiler's error that a step needs more memory than the chip has."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides compilers' warnings on stderr about the missing device; real errors are in their exceptions."""
    old, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(old, 2)
        os.close(old)
        os.close(null)
