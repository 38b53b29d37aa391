"""Steps on whole volumes, between the file and the rows: smoothing and resampling, as nilearn does them.

Covers: sources made of other sources, each volume of one of theirs, on threads; fitting an image to the grid
of its masks. Does not cover: reading files (``source``), resampling a mask to an image (``regions``), rows
(``loader``), cleaning in time (``compute.kernels``).

::

    source ──> stored volume ──> step, one thread per volume ──> volume, in order
               n_cpus + 1 of them at a time
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import field
from functools import partial
from hashlib import blake2b
from numbers import Real
from typing import Any, Literal

import numpy as np
from nibabel.volumeutils import apply_read_scaling

from sharedmask.errors import GridMismatchError, ParameterError
from sharedmask.records import dataclass
from sharedmask.sources.layout import FileLayout
from sharedmask.sources.source import Kind, Source
from sharedmask.sources.values import all_finite
from sharedmask.sources.volumes import VolumeReader
from sharedmask.spaces.grid import Grid, box_of
from sharedmask.system.process import cached_property, n_cpus
from sharedmask.system.threads import Threads
from sharedmask.typing import Array

Interpolation = Literal["continuous", "linear", "nearest"]

_ORDERS = {"continuous": 3, "linear": 1, "nearest": 0}  # of the spline
_NOT_FINITE = (  # nilearn's words
    "NaNs or infinite values are present in the data passed to resample. "
    "This is a bad thing as they make resampling ill-defined and much slower."
)
_SIGMA_TO_FWHM = np.sqrt(8 * np.log(2))


@dataclass(frozen=True, eq=False)
class Step(Source):
    """An image whose volumes are made from those of another, one from one."""

    source: Source = field(repr=False)

    @property
    def reading_bytes(self) -> int:
        return self.source.reading_bytes + (n_cpus() + 1) * self._volume_bytes

    @contextmanager
    def _volumes(self) -> Iterator[VolumeReader]:
        with self.source.volumes() as reader, Threads(n_cpus(), "sharedmask-step") as threads:
            yield VolumeReader(self, partial(self._fill, self._in_turn(reader, threads)))

    def _fill(self, made: Iterator[Array], rows: Array, remaining: int) -> None:
        for row in rows:
            row[...] = next(made)

    def _in_turn(self, reader: VolumeReader, threads: Threads) -> Iterator[Array]:
        """The volumes made; the next ones are read and begun before one is asked for."""
        running: deque[Future[Array]] = deque()
        while reader.remaining or running:
            while reader.remaining and len(running) <= n_cpus():
                stored = np.empty(self.source.n_voxels, self.source.dtype)
                reader.readinto(stored)
                running.append(threads.submit(self._transform, stored))
            yield running.popleft().result()

    def _values(self, stored: Array) -> Array:
        """True values of one volume of the source, (x, y, z)."""
        values = apply_read_scaling(stored, self.source.slope, self.source.inter)
        if values.dtype.kind == "f":
            values = values.astype(_float_for(values.dtype), copy=False)  # scipy knows no other
        return values.reshape(self.source.shape[:3], order="F")

    @property
    def layout(self) -> FileLayout | str:
        return "it is smoothed or resampled"

    @property
    def _value_bytes(self) -> int:
        """Of one stored volume, and of its true values where they are others."""
        of = self.source
        return of.n_voxels * (of.dtype.itemsize + of.scaled_dtype.itemsize * of.is_scaled)

    def _feed(self, digest: blake2b, kind: Kind) -> None:
        digest.update(f"{self._description} {getattr(self.source, kind)}".encode())

    @property
    @abstractmethod
    def _description(self) -> str:
        """What is done, for the fingerprint."""

    @property
    @abstractmethod
    def _volume_bytes(self) -> int:
        """Memory that one volume takes while it is made, the stored one included."""

    @abstractmethod
    def _transform(self, stored: Array) -> Array:
        """The new volume, flat; runs on any thread."""


def _facts(source: Source, **other: Any) -> dict[str, Any]:
    """The facts of an image made from ``source``, whose values are stored as they are."""
    return source.known(Source) | {"slope": 1.0, "inter": 0.0, "source": source} | other


def _float_for(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float32 if dtype.itemsize < 8 else np.float64)


# --- smoothing -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Smoothed(Step):
    """An image convolved with a Gaussian, axis after axis."""

    sigma: tuple[float, float, float]  # in voxels

    @property
    def _description(self) -> str:
        return f"smoothed {self.sigma}"

    @property
    def _volume_bytes(self) -> int:
        return self._value_bytes + self.n_voxels * self.dtype.itemsize

    def _transform(self, stored: Array) -> Array:
        from scipy.ndimage import gaussian_filter1d

        volume = self._values(stored).astype(self.dtype, order="F")
        if not all_finite(volume):
            volume[~np.isfinite(volume)] = 0
        for axis, sigma in enumerate(self.sigma):
            gaussian_filter1d(volume, sigma, output=volume, axis=axis)
        return volume.ravel(order="F")


def smoothed(source: Source, fwhm: float | None) -> Source:
    """The image smoothed by a Gaussian: the bits of :func:`nilearn.image.smooth_img`.

    ``fwhm``: full width at half maximum, in mm; None smooths nothing and gives ``source`` itself.

    Its values are float32, or float64 if those of ``source`` are float64, int64, uint64 or scaled to float64.
    Values that are not finite count as 0.

    Raises ParameterError: ``fwhm`` is no positive number, or the voxels have no size.

    Examples
    --------
    >>> import nibabel
    >>> from sharedmask.sources.opening import open_source
    >>> dot = np.zeros((5, 5, 5), np.int16)
    >>> dot[2, 2, 2] = 100
    >>> image = smoothed(open_source(nibabel.Nifti1Image(dot, np.eye(4))), fwhm=2)
    >>> image.dtype, round(float(image.read()[2, 2, 2]), 1)
    (dtype('float32'), 10.4)
    """
    if fwhm is None:
        return source
    box_of(source.grid, "smoothing")
    sizes = np.sqrt(np.sum(source.affine[:3, :3] ** 2, axis=0))
    if not np.all(np.isfinite(sizes) & (sizes > 0)):
        raise ParameterError(f"{source.name} cannot be smoothed: its voxels measure {sizes.tolist()} mm")
    sigma = tuple((_checked_width(fwhm) / (_SIGMA_TO_FWHM * sizes)).tolist())
    return Smoothed(**_facts(source, dtype=_float_for(source.scaled_dtype)), sigma=sigma)


def _checked_width(fwhm: Any) -> float:
    is_number = isinstance(fwhm, Real) and not isinstance(fwhm, bool)
    if not is_number or not 0 < fwhm < np.inf:
        raise ParameterError(f"smoothing_fwhm={fwhm!r} is no width: give millimetres above 0, or None")
    return float(fwhm)


# --- resampling ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Resampled(Step):
    """An image on another grid; 0 where that reaches beyond its own."""

    order: int  # of the spline
    # From voxels of this grid to those of the source's; a diagonal (3,) is applied faster than (3, 3).
    matrix: Array = field(repr=False)
    offset: Array = field(repr=False)

    @property
    def _description(self) -> str:
        return f"resampled {self.order}"

    @property
    def _volume_bytes(self) -> int:
        spline = 8 * self.source.n_voxels if self.order > 1 else 0
        return self._value_bytes + spline + self.n_voxels * self.dtype.itemsize

    @cached_property
    def _range(self) -> tuple[Any, Any]:
        """Smallest and largest value of the source, and 0: splines overshoot. Reads it once."""
        low, high, finite = 0, 0, True
        for stored in self.source.each_volume():
            values = self._values(stored)
            low = min(low, np.fmin.reduce(values, axis=None))
            high = max(high, np.fmax.reduce(values, axis=None))
            finite = finite and (values.dtype.kind in "iu" or all_finite(values))
        if not finite:
            warnings.warn(f"{_NOT_FINITE} ({self.name})", RuntimeWarning, stacklevel=2)
        return low, high

    @contextmanager
    def _volumes(self) -> Iterator[VolumeReader]:
        if self.order:
            _ = self._range  # before the volumes are read for the second time
        with super()._volumes() as reader:
            yield reader

    def _transform(self, stored: Array) -> Array:
        values = self._values(stored)
        finite = values.dtype.kind in "iu" or all_finite(values)
        volume = self._placed(values if finite else _extrapolated(values), self.dtype, self.order)
        if not finite:
            volume[self._placed(~np.isfinite(values), np.dtype(bool), 0)] = np.nan
        if self.order:
            volume.clip(*self._range, out=volume)
        return volume.ravel(order="F")

    def _placed(self, values: Array, dtype: np.dtype[Any], order: int) -> Array:
        from scipy.ndimage import affine_transform

        out = np.zeros(self.shape[:3], dtype, order="F")
        affine_transform(values, self.matrix, self.offset, self.shape[:3], out, order)
        return out


def _extrapolated(values: Array) -> Array:
    """Holes filled from their neighbours, lest one value that is not finite spoil the whole spline."""
    from nilearn.masking import extrapolate_out_mask

    with np.errstate(divide="ignore", invalid="ignore"):
        filled: Array = extrapolate_out_mask(values, np.isfinite(values), iterations=2)[0]
    return filled


def resampled(source: Source, grid: Grid, interpolation: Interpolation = "continuous") -> Source:
    """The image on another grid: the bits of :func:`nilearn.image.resample_img`, as maskers call it.

    ``grid``: where the values are wanted. On the image's own grid nothing is done: ``source`` itself is
    given.
    ``interpolation``, {"continuous", "linear", "nearest"}: cubic spline, clipped to the range of the whole
    image (which is read once more to know it); linear; or the nearest voxel's value.

    Signed integers become floats of the same width, at least float32, by the spline; other values keep their
    dtype. Values are 0 beyond the image, and NaN where its nearest value is not finite, of which a
    RuntimeWarning tells.

    Raises ParameterError: there is no such interpolation.
    Raises GridMismatchError: the image's affine cannot be inverted.

    Examples
    --------
    >>> import nibabel
    >>> from sharedmask.sources.opening import open_source
    >>> source = open_source(nibabel.Nifti1Image(np.ones((4, 4, 4, 2), np.float32), np.eye(4)))
    >>> resampled(source, Grid((2, 2, 2), np.diag([2.0, 2, 2, 1]))).read().shape
    (2, 2, 2, 2)
    """
    if interpolation not in _ORDERS:
        raise ParameterError(f"interpolation={interpolation!r} is none of {', '.join(map(repr, _ORDERS))}")
    own = box_of(source.grid, "resampling")
    if own.is_close(grid):
        return source
    matrix, offset = voxel_transform(source, grid)
    dtype = _resampled_dtype(source.scaled_dtype, interpolation)
    facts = _facts(source, shape=(*grid.shape, source.n_timepoints), affine=grid.affine, dtype=dtype)
    return Resampled(**facts, order=_ORDERS[interpolation], matrix=matrix, offset=offset)


def voxel_transform(source: Source, grid: Grid) -> tuple[Array, Array]:
    """From voxels of ``grid`` to those of the image, in the arithmetic of nilearn: bits matter on edges."""
    from scipy.linalg import inv

    try:
        same = np.all(grid.affine == source.affine)
        transform = np.eye(4) if same else np.dot(inv(source.affine), grid.affine)
    except (np.linalg.LinAlgError, ValueError) as error:
        raise GridMismatchError(f"{source.name} cannot be resampled: its affine has no inverse") from error
    matrix, offset = transform[:3, :3], transform[:3, 3]
    diagonal = np.diag(matrix)
    return (diagonal if np.all(np.diag(diagonal) == matrix) else matrix), offset


def _resampled_dtype(dtype: np.dtype[Any], interpolation: Interpolation) -> np.dtype[Any]:
    becomes_float = dtype.kind == "f" or (dtype.kind == "i" and interpolation == "continuous")
    return _float_for(dtype) if becomes_float else dtype
