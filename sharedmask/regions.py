"""Regions: masks and atlases as voxel index sets on one grid.

Covers: reading masks and label images, putting them on the image's grid, names, the region table. Does not
cover: comparing grids, and a voxel's number (``grids``), the voxels' values (``kernels``), reading images
(``sources``), look-up tables (``luts``).
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress, count
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import NDArray

from sharedmask import errors, grids, luts
from sharedmask.errors import EmptyMaskError, GridMismatchError, MaskError
from sharedmask.grids import Grid
from sharedmask.sources import open_source

T = TypeVar("T")
Array = NDArray[Any]
Numbers = NDArray[np.intp]
Container = Literal["single", "list", "dict"]
ResamplingTarget = Literal["data", "mask", "labels"] | None
_SUFFIX = re.compile(r"(?<=.)(\.(nii|img|hdr)(\.(gz|bz2|zst))?|\.mg[hz])$", re.IGNORECASE)
_BUILTIN = (OSError, EOFError, ValueError, TypeError, KeyError, OverflowError)
_UNREADABLE = (*_BUILTIN, ImageFileError, HeaderDataError)


@dataclass(frozen=True)
class RegionRow:
    """One row of the region table; ``column`` is the region's position, None for a region without voxels."""

    index: int
    name: str
    n_voxels: int
    n_voxels_in_mask: int
    coverage: float
    column: int | None


@dataclass(frozen=True, eq=False)
class Regions:
    """Sets of voxels on one grid, from masks (:meth:`from_any`) or an atlas (:meth:`from_labels`).

    Attributes
    ----------
    grid : Grid
    indices : (n,) intp array
        The voxel numbers of all regions, one region after the other. Within a region the order is the C order
        of the mask as it was given: that of ``data[mask]`` and of nilearn.
    offsets : (n_regions + 1,) intp array
        Region ``i`` is ``indices[offsets[i]:offsets[i + 1]]``.
    names, labels : tuple of str, tuple of int (the atlas' values, or 1 to n for masks)
    container, keys : {"single", "list", "dict"}, tuple
        What the caller gave, and the dict's keys (the names by default).
    missing : tuple of (index, name)
        Rows of the look-up table, or labels lost in resampling, that have no voxel here.

    Examples
    --------
    >>> mask = np.zeros((2, 3, 2), bool)
    >>> mask[1, 0, 1] = mask[0, 2, 0] = True
    >>> regions = Regions.from_any({"roi": mask}, Grid((2, 3, 2), np.eye(4)))
    >>> regions[0]
    array([4, 7])
    >>> regions.pack(["its signals"])
    {'roi': 'its signals'}
    """

    grid: Grid
    indices: Numbers
    offsets: Numbers
    names: tuple[str, ...]
    labels: tuple[int, ...]
    container: Container
    keys: tuple[Hashable, ...] = ()
    missing: tuple[tuple[int, str], ...] = ()

    def __post_init__(self) -> None:
        for field in ("indices", "offsets"):
            view = np.asarray(getattr(self, field), dtype=np.intp).view()
            view.flags.writeable = False
            object.__setattr__(self, field, view)
        object.__setattr__(self, "keys", self.keys or self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Numbers:
        i = range(len(self))[i]
        return self.indices[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[Numbers]:
        return (self[i] for i in range(len(self)))

    @property
    def sizes(self) -> Numbers:
        """Number of voxels of each region."""
        return np.diff(self.offsets)

    @cached_property
    def union(self) -> Numbers:
        """Numbers of the voxels that are in any region, sorted, each once."""
        union = np.unique(self.indices)
        union.flags.writeable = False
        return union

    @cached_property
    def digest(self) -> str:
        """Hexadecimal digest of grid, voxels, names and labels."""
        heading = json.dumps([self.grid.shape, self.names, self.labels, len(self.indices)])
        digest = hashlib.blake2b(heading.encode(), digest_size=16)
        digest.update((self.grid.affine + 0.0).astype("<f8").tobytes())  # + 0.0 makes -0 0
        digest.update(self.indices.astype("<i8", copy=False).tobytes())
        digest.update(self.offsets.astype("<i8", copy=False).tobytes())
        return digest.hexdigest()

    def pack(self, results: Sequence[T]) -> T | list[T] | dict[Any, T]:
        """Put one result per region into the caller's container."""
        if len(results) != len(self):
            raise errors.ParameterError(f"{len(results)} results for {len(self)} regions")
        if self.container == "single":
            return results[0]
        return list(results) if self.container == "list" else dict(zip(self.keys, results, strict=True))

    def batches(self, size: int) -> Iterator[Regions]:
        """The same regions, at most ``size`` at a time, as dicts."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            offsets = self.offsets[start : start + size + 1]
            yield replace(
                self,
                indices=self.indices[offsets[0] : offsets[-1]],
                offsets=offsets - offsets[0],
                names=self.names[part],
                labels=self.labels[part],
                keys=self.keys[part],
                container="dict",
            )

    @classmethod
    def joined(cls, parts: Sequence[Regions]) -> Regions:
        """The regions of several on one grid, as dicts: the opposite of :meth:`batches`."""
        names, labels, keys = (
            tuple(item for part in parts for item in getattr(part, what))
            for what in ("names", "labels", "keys")
        )
        indices = np.concatenate([part.indices for part in parts])
        offsets = np.cumsum([0, *(size for part in parts for size in part.sizes)])
        return cls(parts[0].grid, indices, offsets, names, labels, "dict", keys)

    def table(self, stored: Numbers | None = None) -> list[RegionRow]:
        """One row per region, those in ``missing`` included.

        ``stored`` are the numbers of the voxels that an image holds (its ``mask_img``; all by default), and a
        row's ``coverage`` is the share of the region's voxels that are among them.
        """
        inside = np.ones(len(self.indices), bool) if stored is None else np.isin(self.indices, stored)
        held = np.diff(np.cumsum(np.append(False, inside))[self.offsets])
        columns = zip(self.labels, self.names, self.sizes.tolist(), held.tolist(), strict=True)
        rows = [RegionRow(k, name, n, m, m / n if n else 0.0, i) for i, (k, name, n, m) in enumerate(columns)]
        absent = [RegionRow(index, name, 0, 0, 0.0, None) for index, name in self.missing]
        return sorted(rows + absent, key=lambda row: row.index) if absent else rows

    def fits(self, grid: Grid) -> bool:
        """Whether the regions can be put :meth:`on` ``grid``."""
        return grids.steps(self.grid, grid) is not None

    def on(self, grid: Grid) -> Regions:
        """The same regions, each in its own order, on an image's grid.

        That is the same grid, or the same with axes flipped or permuted; GridMismatchError for any other.
        """
        if self.grid.matches(grid):
            return self if np.array_equal(self.grid.affine, grid.affine) else replace(self, grid=grid)
        steps = grids.steps(self.grid, grid)
        if steps is None:
            more = f" (and {len(self) - 1} more)" if len(self) > 1 else ""
            raise grids.mismatch(f"region {self.names[0]!r}{more}", self.grid, grid)
        coordinates = np.unravel_index(self.indices, self.grid.shape, order="F")
        return replace(self, grid=grid, indices=grids.numbers(coordinates, *steps))

    @classmethod
    def from_any(
        cls, masks: Any, grid: Grid | None = None, *, resampling_target: ResamplingTarget = None
    ) -> Regions:
        """Regions from one or many binary masks.

        Parameters
        ----------
        masks : path, glob pattern, nibabel image, 3D array, list or dict of these, or Regions
            Nonzero and finite is inside. One 4D image or array is a stack of masks along its last axis.
        grid : Grid, optional
            The image's; by default that of the first mask. Arrays are taken to lie on it.
        resampling_target : {None, "data", "mask", "labels"}
            A mask on another grid is refused, or with ``"data"`` resampled to ``grid`` (nearest neighbour). A
            mask whose axes are flipped or permuted needs neither. With ``"mask"``, or ``"labels"``, ``grid``
            is only that of arrays: the regions lie on the first mask's, which the others must share.

        Raises
        ------
        MaskError, EmptyMaskError, GridMismatchError, MissingFileError, ParameterError

        Examples
        --------
        >>> grid = Grid((4, 4, 4), np.eye(4))
        >>> Regions.from_any([np.ones((4, 4, 4)), np.eye(4)[:, :, None] * np.ones(4)], grid).sizes
        array([64, 16])
        """
        to_masks = _to_masks(resampling_target)
        if isinstance(masks, Regions):
            return masks if grid is None or to_masks else masks.on(grid)
        container, keys, items = _unpack(masks)
        names, parts = _unique(str(key) for key in keys), list[Numbers]()
        for name, item in zip(names, items, strict=True):
            volume = _read(item, name)
            grid = _target(volume, grid, own=to_masks and not parts)
            parts.append(_place(volume, _inside(volume), grid, resampling_target)[0])
            del volume  # before the next is read
        assert grid is not None  # there is at least one item
        offsets = np.cumsum([0, *map(len, parts)])
        given = tuple(keys) if isinstance(masks, Mapping) else names
        labels = tuple(range(1, len(names) + 1))
        return cls(grid, np.concatenate(parts), offsets, names, labels, container, given)

    @classmethod
    def from_labels(
        cls,
        labels_img: Any,
        grid: Grid | None = None,
        *,
        lut: Any = None,
        labels: Iterable[int] | None = None,
        background_label: int = 0,
        resampling_target: ResamplingTarget = None,
    ) -> Regions:
        """One region per value of a label image, sorted by value.

        Parameters
        ----------
        labels_img : path, nibabel image or 3D array
            Integers of any size and sign, also as floats; not finite is background.
        grid, resampling_target
            As in :meth:`from_any`, errors as well.
        lut : path of a TSV or CSV file, DataFrame or mapping, optional
            Names: columns ``index`` and ``name``, or ``{value: name}``; by default ``str(value)``.
        labels : iterable of int, optional
            Keep only these values.
        background_label : int
            The value that is no region.

        Examples
        --------
        >>> atlas = np.arange(4).reshape(4, 1, 1)
        >>> Regions.from_labels(atlas, Grid((4, 1, 1), np.eye(4)), lut={2: "insula"}).names
        ('1', 'insula', '3')
        """
        to_masks = _to_masks(resampling_target)
        volume = _read(labels_img, _stem(labels_img) or "labels", "label image")
        grid, known = _target(volume, grid, own=to_masks), luts.read(lut)
        values, codes = _label_codes(volume, background_label)
        names = _wanted(labels, {*values, *known} - {background_label}, known, volume.where)
        numbers, found = _place(volume, codes, grid, resampling_target)
        small = found.astype(np.min_scalar_type(len(values)))  # sorts faster by far in 16 bits than in 32
        order = np.argsort(small, kind="stable")  # stable: C order within a label
        counts = np.bincount(found, minlength=len(values) + 1)[1:]
        kept = np.array([value in names for value in values]) & (counts > 0)
        here = {value: names[value] for value in compress(values, kept)}
        if not here:
            raise EmptyMaskError(f"{volume.where}: none of the labels asked for has a voxel")
        missing = tuple((value, name) for value, name in names.items() if value not in here)
        indices, offsets = numbers[order][np.repeat(kept, counts)], np.cumsum([0, *counts[kept]])
        return cls(grid, indices, offsets, tuple(here.values()), tuple(here), "dict", missing=missing)

    @classmethod
    def from_atlas_or_masks(
        cls, given: Any, grid: Grid | None = None, *, resampling_target: ResamplingTarget = None
    ) -> Regions:
        """Regions to reduce: one 3D image is an atlas; lists, dicts, patterns and 4D images are masks."""
        several = (
            isinstance(given, (list, tuple, Mapping, Regions)) or matching(given) or _n_volumes(given) > 1
        )
        make = cls.from_any if several else cls.from_labels
        return make(given, grid, resampling_target=resampling_target)


# ---- what the caller gives, and reading it


class _Volume(NamedTuple):
    """A mask or label image as it was given; an array has no grid of its own."""

    where: str
    data: Array
    grid: Grid | None


def _path(thing: Any) -> str | None:
    if not isinstance(thing, (str, os.PathLike)):
        return None
    return os.path.expanduser(os.fsdecode(thing))


def _stem(thing: Any) -> str | None:
    """The file's name without its image suffix; None if there is no file."""
    path = _path(thing.get_filename() if isinstance(thing, SpatialImage) else thing)
    return None if path is None else _SUFFIX.sub("", Path(path).name)


def matching(masks: Any) -> dict[str, str]:
    """Name -> file of a pattern's matches, sorted; empty if ``masks`` is no pattern."""
    path = _path(masks)
    if not path or not glob.has_magic(path) or Path(path).exists():
        return {}
    files = sorted(glob.glob(path, recursive=True))
    if not files:
        raise errors.MissingFileError(f"no file matches {path}")
    return dict(zip(_unique(_SUFFIX.sub("", Path(file).name) for file in files), files, strict=True))


def named(masks: Any) -> dict[str, Any]:
    """Name -> mask, of a dict, list, pattern or one mask; names are unique, nothing is read."""
    masks = matching(masks) or masks
    if isinstance(masks, Mapping):
        return dict(zip(_unique(map(str, masks)), masks.values(), strict=True))
    items = list(masks) if isinstance(masks, (list, tuple)) else [masks]
    return dict(zip(_unique(_stem(m) or f"mask_{i:03d}" for i, m in enumerate(items)), items, strict=True))


def _n_volumes(image: Any) -> int:
    """How many 3D images there are in one; 1 if that cannot be told, for the reader to say why."""
    path = _path(image)
    with suppress(*_UNREADABLE):
        shape = (image if path is None else open_source(_file(path))).shape
        return int(np.prod(shape[3:]))
    return 1


def _unique(given: Iterable[str]) -> tuple[str, ...]:
    """The names, with _2, _3, ... appended to those that were there before."""
    names, seen = list(given), set[str]()
    taken, suffixes = set(names), defaultdict[str, Iterator[int]](lambda: count(2))
    for i, name in enumerate(names):
        if name in seen:
            names[i] = next(new for n in suffixes[name] if (new := f"{name}_{n}") not in taken)
        seen.add(name)
    return tuple(names)


def _unpack(masks: Any) -> tuple[Container, list[Any], list[Any]]:
    """Container, keys and masks; only a single mask is read already."""
    container: Container = "list"
    masks = matching(masks) or masks
    if isinstance(masks, Mapping):
        container, keys, items = "dict", list(masks), list(masks.values())
    elif isinstance(masks, (list, tuple)):
        keys, items = [_stem(mask) or f"mask_{i:03d}" for i, mask in enumerate(masks)], list(masks)
    else:
        container, keys, items = _unpack_one(_read(masks, _stem(masks) or "mask_000"), _stem(masks))
    if not items:
        raise MaskError("no mask was given")
    return container, keys, items


def _unpack_one(volume: _Volume, stem: str | None) -> tuple[Container, list[Any], list[Any]]:
    if volume.data.ndim == 3:
        return "single", [stem or "mask_000"], [volume]
    names = [f"{stem or 'mask'}_{i:03d}" for i in range(volume.data.shape[3])]
    where, masks = volume.where, np.moveaxis(volume.data, 3, 0)
    return "list", names, [_Volume(f"{where}, volume {i}", m, volume.grid) for i, m in enumerate(masks)]


def _target(volume: _Volume, grid: Grid | None, own: bool = False) -> Grid:
    """The grid to put the volume on: the image's, else (or if asked for) its own."""
    shape = volume.data.shape
    if len(shape) != 3:
        raise MaskError(f"{volume.where} has {len(shape)} dimensions ({grids.times(shape)}); 3 are needed")
    if volume.grid is not None:
        return volume.grid if own or grid is None else grid
    if grid is None:
        raise MaskError(f"{volume.where} is an array and has no affine: give grid=, the image's grid")
    if shape != grid.shape:
        shapes = f"{grids.times(shape)}, the image {grids.times(grid.shape)}"
        raise GridMismatchError(f"{volume.where} is an array of {shapes}")
    return grid


@contextmanager
def _reading(where: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise errors.MissingFileError(f"{where}: {error}") from error
    except _UNREADABLE as error:
        raise MaskError(f"{where} cannot be read: {error or type(error).__name__}") from error


def _read(mask: Any, name: str, what: str = "mask") -> _Volume:
    """The values and the grid of a mask; nothing is cached on the caller's objects."""
    where, path = f"{what} {name!r}", _path(mask)
    if isinstance(mask, _Volume):
        return mask
    if isinstance(mask, np.ndarray):
        return _volume(where, mask, None)
    if path is not None:
        where = f"{where} ({path})"
    elif not isinstance(mask, SpatialImage):
        raise MaskError(f"{where}: not a path, a volume image or an array but a {type(mask).__name__}")
    with _reading(where):
        source = open_source(mask if path is None else _file(path))
        values = source.read()
    return _volume(where, values, source.affine)


def _file(path: str) -> Any:
    """What to open: formats that only nibabel reads, and reads whole, are fine for a mask."""
    streamed = re.search(r"\.(nii|img|hdr)(\.gz|\.bz2)?$", path, re.IGNORECASE)
    return path if streamed or not Path(path).is_file() else nib.load(path)


def _volume(where: str, data: Array, affine: Array | None) -> _Volume:
    if data.dtype.kind not in "biuf":
        raise MaskError(f"{where} holds {data.dtype}, not real numbers")
    if data.ndim > 3 and set(data.shape[3:]) == {1}:
        data = data.reshape(data.shape[:3])
    if data.ndim not in (3, 4):
        raise MaskError(f"{where} has {data.ndim} dimensions ({grids.times(data.shape)}); 3 are needed")
    return _Volume(where, data, None if affine is None else Grid(data.shape[:3], affine))


def _inside(volume: _Volume) -> NDArray[np.bool_]:
    """Nonzero and finite, with a warning if it looks like an atlas."""
    if volume.data.dtype.kind == "b":
        return volume.data
    inside: NDArray[np.bool_] = volume.data != 0
    if volume.data.dtype.kind == "f":
        inside &= np.isfinite(volume.data)
    values = volume.data[inside]
    if _looks_like_labels(values, has_zero=values.size < inside.size):
        warnings.warn(
            f"{volume.where} holds more than two values, {values.min():g} to {values.max():g}; all but 0 are "
            "inside. For one region per value use Regions.from_labels, or --atlas on the command line",
            errors.SharedMaskWarning,
            stacklevel=3,
        )
    return inside


def _looks_like_labels(values: Array, has_zero: bool) -> bool:
    if values.dtype.kind == "b" or not values.size or (low := values.min()) == (high := values.max()):
        return False
    more = has_zero or bool(np.any((values != low) & (values != high)))
    return more and bool(np.all(values == np.rint(values)))


def _label_codes(volume: _Volume, background_label: int) -> tuple[list[int], NDArray[np.int32]]:
    """The sorted values; and for each voxel 0 if background, else 1 + the position of its value."""
    inside = (volume.data != background_label) & np.isfinite(volume.data)
    labels = volume.data[inside]
    fractional = labels[labels != np.rint(labels)] if labels.dtype.kind == "f" else labels[:0]
    if fractional.size:
        raise MaskError(f"{volume.where} holds {fractional[0]}: not an atlas, whose values are integers")
    values, positions = np.unique(labels, return_inverse=True)
    codes = np.zeros(inside.shape, dtype=np.int32)
    codes[inside] = positions + 1
    return [int(value) for value in values], codes


def _place(volume: _Volume, codes: Array, grid: Grid, resampling_target: str | None) -> tuple[Numbers, Array]:
    """Numbers on ``grid`` of the voxels whose code is not 0, in C order as given, and their codes."""
    own = volume.grid or grid
    steps = grids.steps(own, grid)
    if steps is None and resampling_target != "data":
        raise grids.mismatch(volume.where, own, grid, "first" if resampling_target else "image")
    if not codes.any():
        raise EmptyMaskError(f"{volume.where} is empty: all its voxels are 0, background or not finite")
    if steps is None:
        codes, steps = _resample(volume.where, codes, own, grid), (0, np.cumprod([1, *grid.shape[:2]]))
    positions = np.flatnonzero(codes)  # of the flat array, which is several times faster than of the 3D one
    coordinates = np.unravel_index(positions, codes.shape)
    return grids.numbers(coordinates, *steps), codes.reshape(-1)[positions]


def _to_masks(resampling_target: object) -> bool:
    """Whether it is the image that goes to the grid of the masks; nilearn has two words for that."""
    if resampling_target not in (None, "data", "mask", "labels"):
        raise errors.ParameterError(f'resampling_target is "data", "mask" or None, not {resampling_target!r}')
    return resampling_target in ("mask", "labels")


def _resample(where: str, codes: Array, own: Grid, target: Grid) -> Array:
    from nilearn.image import resample_img  # costs 200 MB and seconds

    image = nib.Nifti1Image(codes.astype(np.int32), own.affine)
    nearest = {"interpolation": "nearest", "force_resample": True, "copy_header": True}
    try:
        resampled: Array = resample_img(image, target.affine, target.shape, **nearest).dataobj
    except (ValueError, np.linalg.LinAlgError) as error:
        raise GridMismatchError(f"{where} cannot be resampled to the image: {error}") from error
    if not resampled.any():
        raise EmptyMaskError(f"{where} is empty once resampled to the image: they do not overlap")
    return resampled


def _wanted(asked: Any, available: set[int], names: Mapping[int, str], where: str) -> dict[int, str]:
    """Value -> unique name of the regions to make, sorted by value."""
    wanted = available if asked is None else set(asked)
    if unknown := wanted - available:
        raise MaskError(f"{where} and its look-up table have no label {', '.join(sorted(map(str, unknown)))}")
    values = sorted(int(value) for value in wanted)
    return dict(zip(values, _unique(names.get(value, str(value)) for value in values), strict=True))
