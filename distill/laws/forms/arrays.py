"""Types of a law's arithmetic: the array module, and numbers of Python, numpy or jax."""

from types import ModuleType
from typing import TypeAlias

import jax
import numpy as np

ArrayModule: TypeAlias = ModuleType  # `xp`: numpy or jax.numpy
Floats: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float64]]  # of any shape
Values: TypeAlias = float | Floats | jax.Array  # one number or an array of any shape; tracers are jax.Arrays
