"""Types that many rooms share.

Covers: arrays, and numbers of voxels. Does not cover: what they hold.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Numbers = NDArray[np.intp]
