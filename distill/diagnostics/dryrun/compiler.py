"""The real TPU compiler, which needs no TPU: memory of one chip, and the program that it would run."""

import contextlib
import dataclasses
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from distill.config import ConfigError, ExperimentConfig, ModelConfig
from distill.config.chips import Chip, topology
from distill.diagnostics.dryrun import hlo, program
from distill.diagnostics.dryrun.hlo import Collective
from distill.model import sharding

HOW = "pip install -e '.[tpu-compiler]' (or set TPU_LIBRARY_PATH to a libtpu.so)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """Bytes of one chip as the compiler reports them, and the collectives of its program."""

    arguments: float
    temporaries: float
    code: float
    collectives: list[Collective]

    @property
    def total(self) -> float:
        return self.arguments + self.temporaries + self.code


def environment(chip: Chip, count: int) -> dict[str, str]:
    """Variables to set before JAX is loaded, so that libtpu does not look for a TPU."""
    kind = {"v5e": f"v5litepod-{count}", "v5p": f"v5p-{2 * count}"}[chip.name]
    fixed = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    fixed["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # no TPU is opened, so dry runs need no lock between them
    return fixed | {"TPU_ACCELERATOR_TYPE": kind}


def check() -> None:
    """Raises ConfigError, saying how to install it, if libtpu is missing."""
    path = os.environ.get("TPU_LIBRARY_PATH")
    if path and not os.path.isfile(path):
        raise ConfigError(f"TPU_LIBRARY_PATH={path}: there is no such file; unset it, or {HOW}")
    if not path and importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"the TPU compiler (libtpu) is not installed: {HOW}; --chip=h100 needs none")


def devices(chip: Chip, count: int) -> Sequence[jax.Device]:
    """The devices of a slice, as its compiler sees them."""
    from jax.experimental import topologies

    check()
    name = topology(chip, count)
    with _quiet():
        try:
            return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
        except Exception as error:  # any error of libtpu, in one line
            raise ConfigError(f"the TPU compiler has no slice {name}: {str(error).splitlines()[0]}") from None


def compile_step(config: ExperimentConfig, teacher: ModelConfig | None, chip: Chip) -> Compiled:
    """The step of a config on a slice of its mesh's size. Minutes for a model of billions of parameters."""
    count = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
    made = sharding.make(config.mesh, devices(chip, count))
    traced = program.trace(config, teacher, made).traced
    with jax.set_mesh(made), tempfile.TemporaryDirectory() as folder, _quiet():
        # libtpu dumps its program itself: JAX cannot always read one back (v5p's async collectives).
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            done = traced.lower(lowering_platforms=("tpu",)).compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            message = str(error)
            if "RESOURCE_EXHAUSTED" not in message:
                raise
            line = next((line for line in message.splitlines() if "Ran out of memory" in line), message.splitlines()[0])
            raise DoesNotFit(line.strip()) from None
        (text,) = [path.read_text("utf-8") for path in Path(folder).glob("*train_steps*.after_optimizations.txt")]
    memory = done.memory_analysis()
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        collectives=hlo.collectives(text),
    )


class DoesNotFit(ConfigError):
    """The compiler's error that a step needs more memory than the chip has."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides libtpu's warnings on stderr about the missing TPU; real errors are in its exceptions."""
    old, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(old, 2)
        os.close(old)
        os.close(null)
