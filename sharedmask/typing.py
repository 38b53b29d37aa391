"""Types that many rooms share.

Covers: arrays, and numbers of voxels. Does not cover: what they hold.
"""

from typing import Any, TypeVar

import numpy as np

_S = TypeVar("_S", bound=np.generic, covariant=True)

NDArray = np.ndarray[tuple[Any, ...], np.dtype[_S]]
"""As ``numpy.typing`` has it, whose import is a fiftieth of ours."""
Array = NDArray[Any]
Numbers = NDArray[np.intp]
