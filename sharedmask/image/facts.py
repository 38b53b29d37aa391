"""What an image says of itself.

Covers: shape, dtype, affine, time and scaling, known before anything is loaded. Does not cover: where the
bytes live (``image``), how files tell it (``sources``).
"""

from typing import Any

import numpy as np

from sharedmask.sources.source import Facts
from sharedmask.spaces.space import Space
from sharedmask.typing import NDArray


class Described:
    """The facts of an image, whoever holds it."""

    _facts: Facts
    _grid: Space
    _name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """(x, y, z, n_timepoints), or (n_elements, n_timepoints)."""
        return self._facts.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored values' dtype."""
        return self._facts.dtype

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to millimetres, (4, 4)."""
        return self._facts.affine

    @property
    def space(self) -> Space:
        """Where the values are: a :class:`Grid` of voxels, or brain models."""
        return self._grid

    @property
    def t_r(self) -> float | None:
        """Repetition time in seconds, of the BIDS sidecar or the header."""
        return self._facts.t_r

    @property
    def t_r_origin(self) -> str:
        """Where the repetition time is from: a sidecar's path or ``its header``; why it is not known."""
        return self._facts.t_r_origin

    @property
    def scaling(self) -> tuple[float, float]:
        """Slope and intercept of the stored values; (1.0, 0.0) if they are the true ones."""
        return self._facts.slope, self._facts.inter

    @property
    def name(self) -> str:
        """What ``sharedmask ls`` calls it."""
        return self._name
