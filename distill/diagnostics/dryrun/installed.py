"""The installed versions of the compilers. Standard library only: it loads neither JAX nor a compiler."""

import importlib.metadata
import os
from pathlib import Path

from distill.config.chips import Chip

GPU_COMPILER = "jax-cuda13-pjrt"  # XLA's compiler for NVIDIA's GPUs; it has JAX's own version


def version(name: str) -> str:
    """The version of an installed package, '' without it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def compiler_version(chip: Chip) -> str:
    """'libtpu 0.0.40' or 'jax-cuda13-pjrt 0.10.2', the compiler of this chip; '' where none is found.

    Of a libtpu that TPU_LIBRARY_PATH names, the version is that of the package around it, if there is one.
    """
    if not chip.dims:
        found = version(GPU_COMPILER)
        return f"{GPU_COMPILER} {found}" if found else ""
    if path := os.environ.get("TPU_LIBRARY_PATH"):
        beside = importlib.metadata.distributions(name="libtpu", path=[str(Path(path).resolve().parent.parent)])
        found = next((one.version for one in beside), "")
        return f"libtpu {found or 'of TPU_LIBRARY_PATH'}"
    found = version("libtpu")
    return f"libtpu {found}" if found else ""
