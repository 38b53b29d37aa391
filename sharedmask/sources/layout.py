"""Layouts: where in a file the values of an image lie as they are in memory.

Covers: the place, the order of voxels, whether values are aligned. Does not cover: which image has one
(``source``, ``nfdh5``), mapping it (``mapped_file``).
"""

from typing import Any, Literal, Self

import numpy as np

from sharedmask.records import dataclass

Order = Literal["C", "F", "rows"]


@dataclass(frozen=True)
class FileLayout:
    """Where in a file all values of an image lie as they are in memory, volume after volume."""

    path: str
    offset: int  # of the first volume; a multiple of the values' size
    dtype: np.dtype[Any]
    order: Order  # of the voxels of a volume: x fastest as in NIfTI ("F"), or z as in HDF5; or row after row

    @classmethod
    def aligned(cls, path: str, offset: int, dtype: np.dtype[Any], order: Order) -> Self | str:
        """That place, or why values cannot be looked at where they are."""
        if offset % dtype.itemsize:
            return f"its values begin at byte {offset}, which is not aligned for {dtype}"
        return cls(path, offset, dtype, order)
