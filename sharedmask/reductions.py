"""Reductions: one value per region of volumes that pass by, nothing of the image kept.

Covers: the pass over an image. Does not cover: the arithmetic, images that are held (``kernels``,
``masking``), which voxels make a region (``regions``), reading volumes (``loading``).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedmask import kernels, loading
from sharedmask.kernels import Conversion
from sharedmask.loading import Volumes
from sharedmask.regions import Regions

Array = NDArray[Any]


def reduced(
    source: Volumes,
    regions: Regions,
    strategy: str,
    conversion: Conversion,
    on_volumes: Callable[[int], None] = lambda _: None,
) -> tuple[Array, bool]:
    """One value per volume and region, (n_timepoints, n_regions), and whether all values are finite.

    Parameters
    ----------
    source : Source
    regions : Regions
    strategy : str
        One of ``kernels.BY_VOLUME``.
    conversion : Conversion
    on_volumes : callable
        Told how many volumes are done.
    """
    table = np.empty((source.n_timepoints, len(regions)), conversion.result)
    finite = True
    with loading.blocks(source, regions.indices) as blocks:
        for start, block in blocks:
            out = table[start : start + len(block)]
            finite = kernels.reduce_volumes(block, out, conversion, strategy, regions.offsets) and finite
            on_volumes(start + len(block))
    return table, finite
