"""Searchlights: a function, or a cross-validated estimator, of the voxels around each voxel.

Covers: which voxels are around which, maps of what is made of them. Does not cover: who does the work
(``signals``), spheres around points that are given in millimetres (``regions.spheres``).

A neighbourhood is a ball of voxel offsets, made once. Work is cut into blocks of centres: a worker gathers
the voxels of all balls of its block, once, and finds each centre's among them.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, Unpack, cast

import numpy as np
from nibabel import Nifti1Image

from sharedmask.compute.cleaning import Cleaning, Decided, Levels, is_taken
from sharedmask.compute.request import Parameters, Request
from sharedmask.errors import EmptyMaskError, ParameterError
from sharedmask.image.relations import Relations
from sharedmask.records import dataclass
from sharedmask.regions.masks import ResamplingTarget
from sharedmask.regions.regions import Regions
from sharedmask.spaces.grid import Grid, box_of
from sharedmask.system import settings
from sharedmask.typing import Array, Numbers

_CENTRES = 512  # in a block


@dataclass(frozen=True)
class Ball:
    """What is at most ``radius`` mm away from a voxel.

    Examples
    --------
    >>> len(Ball.of(Grid((9, 9, 9), np.eye(4)), 1.0).offsets)
    7
    """

    shape: tuple[int, int, int]
    offsets: Numbers
    """(n, 3), in C order, as nilearn has the voxels of a sphere."""

    @classmethod
    def of(cls, grid: Grid, radius: Any) -> "Ball":
        """The ball on ``grid``, the voxel itself included."""
        if not isinstance(radius, int | float | np.number) or not radius >= 0:
            raise ParameterError(f"radius={radius!r} is no length in millimetres")
        axes = grid.affine[:3, :3]
        reach = np.ceil(radius * np.linalg.norm(np.linalg.inv(axes), axis=1) + 1e-9).astype(int)
        box = np.array(list(itertools.product(*(range(-most, most + 1) for most in reach))))
        distances = np.linalg.norm(box @ axes.T, axis=1)
        return cls(grid.shape, box[distances <= radius * (1 + 1e-9)])

    def union(self, centres: Numbers, inside: Array) -> Numbers:
        """Sorted numbers of the voxels, ``inside`` by number, around any of the ``centres``."""
        found = np.zeros(len(inside), bool)
        places = np.stack(np.unravel_index(centres, self.shape, order="F"), axis=1)
        for offset in self.offsets:
            found[self._numbers(places + offset)] = True
        return np.flatnonzero(found & inside)

    def columns(self, centres: Numbers, union: Numbers) -> Iterator[Numbers]:
        """Which of the voxels in ``union`` are around each centre."""
        for place in np.stack(np.unravel_index(centres, self.shape, order="F"), axis=1):
            numbers = self._numbers(place + self.offsets)
            columns = np.minimum(np.searchsorted(union, numbers), len(union) - 1)
            yield columns[union[columns] == numbers]

    def _numbers(self, places: Array) -> Numbers:
        within = places[((places >= 0) & (places < self.shape)).all(axis=1)]
        numbers: Numbers = np.ravel_multi_index(tuple(within.T), self.shape, order="F")
        return numbers


@dataclass(frozen=True)
class Around:
    """A function of a block's signals, for workers: what the user's makes of each centre's voxels."""

    function: Callable[[Array], Any]
    ball: Ball

    def __call__(self, signals: Array, union: Numbers, centres: Numbers) -> Array:
        """(n_centres,), or (n_centres, n) if the function gives n values."""
        made = [self.function(signals[:, columns]) for columns in self.ball.columns(centres, union)]
        try:
            values = np.array(made, np.float32)
        except (TypeError, ValueError) as error:
            raise ParameterError(f"func has to give a number, or as many for each voxel: {error}") from error
        if values.ndim > 2:
            raise ParameterError(f"func has to give a number or a row of them, not shape {values.shape[1:]}")
        return values


@dataclass(frozen=True)
class Decoding:
    """The mean score of an estimator, cross-validated, as nilearn's ``SearchLight`` has it."""

    estimator: Any
    y: Any
    groups: Any = None
    scoring: Any = None
    cv: Any = None

    def __call__(self, signals: Array) -> float:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.model_selection import KFold, cross_val_score

        groups = None if isinstance(self.cv, KFold) else self.groups
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            scores = cross_val_score(
                self.estimator, signals, self.y, groups=groups, scoring=self.scoring, cv=self.cv, n_jobs=1
            )
        return float(np.mean(scores))


class Searchlights(Relations):
    """The calls of an image that look around each voxel."""

    def searchlight(
        self,
        func: Any,
        radius: float = 6.0,
        *,
        mask_img: Any = None,
        process_mask_img: Any = None,
        y: Any = None,
        groups: Any = None,
        scoring: Any = None,
        cv: Any = None,
        random_state: Any = None,
        resampling_target: ResamplingTarget = None,
        **parameters: Unpack[Parameters],
    ) -> Nifti1Image:
        """A map of what ``func`` makes of the voxels around each voxel.

        Parameters
        ----------
        func : callable, or scikit-learn estimator if ``y`` is given
            Of an array (n_timepoints, n_voxels); gives a number, or a row of as many for each voxel.
        radius : float
            In millimetres.
        mask_img : mask, optional
            The voxels that neighbourhoods are made of; default: all that are held.
        process_mask_img : mask, optional
            The centres; default: those in ``mask_img``.
        y, groups : array (n_timepoints,), optional
            What the estimator predicts of each volume that is kept, and the group of each; the map is then
            the mean score of its cross-validation: that of nilearn's ``SearchLight``.
        scoring, cv : optional
            As :func:`sklearn.model_selection.cross_val_score` takes them.
        random_state : int, SeedSequence, Generator or RandomState, optional
            As in :meth:`map`; each block of 512 centres has random numbers of its own.
        resampling_target, **parameters : optional
            As in :meth:`mask_parallel`; ``n_jobs`` workers attach to the image.

        Returns
        -------
        nibabel.Nifti1Image, (x, y, z) or (x, y, z, n), float32
            0 where there is no centre.

        Raises
        ------
        EmptyMaskError
            A centre has no voxel around it.
        ParameterError, MemoryLimitError

        Examples
        --------
        >>> import nibabel as nib
        >>> from sharedmask import SharedImage
        >>> bold = np.random.default_rng(0).normal(size=(4, 4, 4, 10)).astype("f4")
        >>> with SharedImage(nib.Nifti1Image(bold, np.eye(4))) as image:
        ...     counts = image.searchlight(lambda signals: signals.shape[1], radius=1.0)
        >>> int(counts.dataobj[0, 0, 0]), int(counts.dataobj[1, 1, 1])
        (4, 7)
        """
        grid = box_of(self._grid, "a searchlight")
        func = self._decoding(func, y, groups, scoring, cv, parameters)
        voxels = self._voxels_of(mask_img, resampling_target)
        centres = voxels if process_mask_img is None else self._voxels_of(process_mask_img, resampling_target)
        ball = Ball.of(grid, radius)
        blocks, given = _blocks(ball, centres, voxels, grid)
        around: dict[str, Any] = {"function": Around(func, ball), "random_state": random_state}
        request = self._request(blocks, "map", f"a searchlight of {self._name}", **around, **parameters)
        request = replace(request, given=given, cleaning=self._decided(request, voxels, grid))
        made = np.concatenate(self.carry_out(request, settings.current()))
        return grid.to_nifti(centres, made)

    def _decided(self, request: Request, voxels: Numbers, grid: Grid) -> Cleaning:
        """The cleaning of blocks, where it hangs on all ``voxels``: a pass over these decides beforehand."""
        cleaning = request.cleaning
        if not cleaning.looks_at_all:
            return cleaning
        asked = {field.name: getattr(cleaning, field.name) for field in fields(cleaning)}
        once: dict[str, Any] = {"random_state": None, "progress": False, "on_result": None}
        parts = [voxels[start : start + _CENTRES] for start in range(0, len(voxels), _CENTRES)]
        levels = replace(
            request, regions=_listed(grid, parts), function=np.array, cleaning=Levels(**asked), **once
        )
        return Decided(**asked, taken=is_taken(*np.hstack(self.carry_out(levels, settings.current()))))

    def _decoding(
        self, func: Any, y: Any, groups: Any, scoring: Any, cv: Any, parameters: Parameters
    ) -> Callable[[Array], Any]:
        if y is None:
            if not callable(func) or any(one is not None for one in (groups, scoring, cv)):
                raise ParameterError("an estimator, and groups, scoring and cv, need y, what it predicts")
            return cast(Callable[[Array], Any], func)
        if not hasattr(func, "fit"):
            raise ParameterError(f"func={func!r} is no estimator of scikit-learn, and y is given")
        kept = self._n_kept(parameters)
        for name, values in (("y", y), ("groups", groups)):
            if values is not None and len(values) != kept:
                raise ParameterError(f"{name} has {len(values)} values for {kept} volumes")
        return Decoding(func, y, groups, scoring, cv)


def _blocks(
    ball: Ball, centres: Numbers, voxels: Numbers, grid: Grid
) -> tuple[Regions, tuple[tuple[Numbers, Numbers], ...]]:
    """The voxels around each block of centres, and what its worker is given besides their signals."""
    inside = np.zeros(grid.n_voxels, bool)
    inside[voxels] = True
    parts = [centres[start : start + _CENTRES] for start in range(0, len(centres), _CENTRES)]
    unions = [ball.union(part, inside) for part in parts]
    outside = centres[~inside[centres]]  # the others have themselves
    for centre, own in zip(outside, ball.columns(outside, voxels), strict=True):
        if not len(own):
            place = tuple(int(one) for one in np.unravel_index(centre, grid.shape, order="F"))
            raise EmptyMaskError(f"no voxel of mask_img is around the centre {place}")
    return _listed(grid, unions), tuple(zip(unions, parts, strict=True))


def _listed(grid: Grid, parts: Sequence[Numbers]) -> Regions:
    numbers = tuple(range(1, len(parts) + 1))
    offsets = np.cumsum([0, *map(len, parts)])
    return Regions(grid, np.concatenate(parts), offsets, tuple(map(str, numbers)), numbers, "list")
