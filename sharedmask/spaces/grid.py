"""Grids: where an image's voxels are.

Covers: shape and affine, comparing two grids, the voxels of one as numbers on another.
Does not cover: which voxels are meant (``regions``), resampling (``regions``, ``transform``), reading
images (``source``). A voxel's number is its on-disk position, x fastest: ``x + X * (y + Y * z)``.
"""

from __future__ import annotations

from itertools import product

import nibabel as nib
import numpy as np

from sharedmask.errors import GridMismatchError, ParameterError
from sharedmask.records import dataclass
from sharedmask.spaces.space import Space, times
from sharedmask.typing import Array, NDArray, Numbers

TOLERANCE = 0.01
"""Of a voxel: two boxes whose corners are nearer are one, rounded twice."""
RESAMPLE = 'resampling_target="data" resamples masks (nearest neighbour), "mask" the image to their grid'


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of an image lie.

    Parameters
    ----------
    shape : tuple of int, (X, Y, Z)
        Number of voxels along each axis.
    affine : array, (4, 4), float64
        From voxels to millimetres.
    name : str
        The image's, for messages.

    Examples
    --------
    >>> print(Grid((50, 59, 50), np.diag([3, 3, 4, 1])))
    50 x 59 x 50 voxels of 3 x 3 x 4 mm, axes RAS, affine [3 0 0 0] [0 3 0 0] [0 0 4 0]
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    name: str = ""

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if len(self.shape) != 3 or affine.shape != (4, 4):
            given = f"{self.shape} and {affine.shape}"
            raise ParameterError(f"a grid is 3 sizes and a (4, 4) affine, not {given}")
        if not np.isfinite(affine).all():
            raise ParameterError(f"a grid's affine is of finite numbers, not {affine.tolist()}")
        affine.flags.writeable = False
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", affine)

    @property
    def n_voxels(self) -> int:
        """Number of voxels of the box."""
        return int(np.prod(self.shape))

    def to_nifti(self, voxels: Numbers, values: Array, background: float = 0) -> nib.Nifti1Image:
        """A map of values at voxels.

        Parameters
        ----------
        voxels : ndarray, (n,)
            Their numbers.
        values : ndarray, (n,) or (n, k)
            One map, or k of them.
        background : float
            Elsewhere.

        Returns
        -------
        nibabel.Nifti1Image, (X, Y, Z) or (X, Y, Z, k)
            In the dtype of the values.

        Examples
        --------
        >>> Grid((2, 1, 1), np.eye(4)).to_nifti(np.array([1]), np.array([5.0])).dataobj[:, 0, 0]
        array([0., 5.])
        """
        volume = np.full((self.n_voxels, *values.shape[1:]), background, values.dtype)
        volume[voxels] = values
        shape = (*self.shape, *values.shape[1:])
        return nib.Nifti1Image(volume.reshape(shape, order="F"), self.affine)

    @property
    def identity(self) -> bytes:
        """The affine."""
        return (self.affine + 0.0).astype("<f8").tobytes()  # + 0.0 makes -0 0

    @property
    def volume(self) -> Grid:
        """Itself: the box in which its voxels are."""
        return self

    @property
    def remedy(self) -> str:
        """What a message about another grid advises."""
        return RESAMPLE

    def matches(self, other: Space) -> bool:
        """Whether the voxels are the same: no corner of the box moves by 0.01 voxel.

        Parameters
        ----------
        other : Grid
            That of a mask, or of another run; of brain models none matches.

        Returns
        -------
        bool
            True if they can be masked with each other as they are.
        """
        if not isinstance(other, Grid) or self.shape != other.shape:
            return False
        equal = np.array_equal(self.affine, other.affine)
        return equal or _moved(self, other, np.eye(3), np.zeros(3)) < TOLERANCE

    def numbers_of(self, own: Space, numbers: Numbers) -> Numbers | None:
        """Map numbers of voxels of another grid to this one: the same, or with axes flipped or permuted.

        Parameters
        ----------
        own : Grid
            Where the voxels are.
        numbers : ndarray, (n,)
            Their numbers there.

        Returns
        -------
        ndarray, (n,), or None
            Their numbers here; None if it is another grid.
        """
        if not isinstance(own, Grid):
            return None
        if own.matches(self):
            return numbers
        if (found := _strides_to(own, self)) is None:
            return None
        start, steps = found
        i, j, k = np.unravel_index(numbers, own.shape, order="F")
        here: Numbers = i * steps[0] + j * steps[1] + k * steps[2] + start
        return here

    def part(self, name: str) -> None:
        """A box has no parts with names.

        Parameters
        ----------
        name : str
            As of a structure of brain models.
        """

    def is_close(self, other: Grid) -> bool:
        """Whether shape and affine are close by numpy's default: the rule by which nilearn resamples.

        Parameters
        ----------
        other : Grid
            Another one.

        Returns
        -------
        bool
            By :func:`numpy.allclose`.
        """
        return self.shape == other.shape and np.allclose(self.affine, other.affine)

    def __str__(self) -> str:
        sizes = " x ".join(f"{size:.6g}" for size in np.linalg.norm(self.affine[:3, :3], axis=0))
        rows = " ".join("[" + " ".join(f"{v + 0.0:.9g}" for v in row) + "]" for row in self.affine[:3])
        return f"{times(self.shape)} voxels of {sizes} mm, axes {_axis_codes(self.affine)}, affine {rows}"


def _axis_codes(affine: Array) -> str:
    try:
        return "".join(code or "?" for code in nib.orientations.aff2axcodes(affine))
    except np.linalg.LinAlgError:  # not finite
        return "???"


def _strides_to(own: Grid, target: Grid) -> tuple[int, Numbers] | None:
    """Start and steps: voxel c of ``own`` is number ``start + c @ steps`` of ``target``, on other axes."""
    strides = np.cumprod([1, *target.shape[:2]])
    turn = _turn(own, target)
    if turn is None or tuple(np.abs(turn) @ own.shape) != target.shape:
        return None
    start = np.where(turn.sum(axis=1) < 0, np.array(target.shape) - 1, 0)
    if _moved(own, target, turn, start) >= TOLERANCE:
        return None
    return int(strides @ start), strides @ turn


def _turn(own: Grid, target: Grid) -> Numbers | None:
    """The signed permutation from the axes of ``own`` to those of ``target``, if there is one to make."""
    try:
        turn = np.rint(np.linalg.solve(target.affine, own.affine)[:3, :3])
    except np.linalg.LinAlgError:
        return None
    if not np.all(np.abs(turn) <= 1) or not np.array_equal(turn @ turn.T, np.eye(3)):
        return None
    return None if np.array_equal(turn, np.eye(3)) else turn.astype(np.intp)


def _moved(own: Grid, target: Grid, turn: Array, start: Array) -> float:
    """How far a corner of the box is off if voxel c of ``own`` is ``start + turn @ c`` of ``target``."""
    corners = np.array(list(product(*((-0.5, size - 0.5) for size in own.shape)))).T
    try:
        there = np.linalg.solve(target.affine, own.affine @ np.vstack([corners, np.ones(8)]))[:3]
    except np.linalg.LinAlgError:
        return np.inf
    distance = np.linalg.norm(there - (turn @ corners + np.reshape(start, (3, 1))), axis=0).max()
    return float(np.nan_to_num(distance, nan=np.inf))


def box_of(space: Space, doing: str) -> Grid:
    """The space of a volume, for what needs one.

    Raises GridMismatchError: saying what: ``doing``.
    """
    if not isinstance(space, Grid):
        raise GridMismatchError(f"{doing} needs a volume, and {space.name or 'this image'} has {space}")
    return space
