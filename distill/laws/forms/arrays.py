"""Types of what a law computes with: the array module, and numbers that are Python's, numpy's or jax's."""

from types import ModuleType
from typing import TypeAlias

import jax
import numpy as np

ArrayModule: TypeAlias = ModuleType  # `xp`: numpy or jax.numpy
Floats: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float64]]  # of any shape
Values: TypeAlias = float | Floats | jax.Array  # one number or an array of any shape; tracers are jax.Arrays
