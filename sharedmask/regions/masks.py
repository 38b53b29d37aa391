"""Masks as callers give them: paths, images, arrays, patterns, 4D images; which voxels are inside.

Covers: reading masks and label images, refusing what is none. Does not cover: regions as voxel numbers
(``regions``), names of labels (``lut``).
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.dataobj_images import DataobjImage
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.freesurfer.mghformat import MGHImage
from nibabel.openers import ImageOpener
from nibabel.volumeutils import apply_read_scaling

from sharedmask import errors
from sharedmask.decoding.codecs import without_codec
from sharedmask.errors import EmptyMaskError, GridMismatchError, MaskError
from sharedmask.records import dataclass
from sharedmask.remote.addresses import named
from sharedmask.sources.names import image_stem
from sharedmask.sources.opening import are_surfaces, is_surface, open_source
from sharedmask.sources.source import Source
from sharedmask.sources.transform import resampled
from sharedmask.spaces.brain_models import BrainModels
from sharedmask.spaces.grid import Grid, box_of
from sharedmask.spaces.parcellation import Elements, Parcellation
from sharedmask.spaces.space import Space, mismatch_error, times
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.files import readable
from sharedmask.system.inputs import matches
from sharedmask.typing import Array, NDArray, Numbers

Container = Literal["single", "list", "dict"]
ResamplingTarget = Literal["data", "mask", "labels"] | None
_FEW = 16  # voxels of each of so many
_LABEL_ROUNDING = 0.01  # what scaling in float32 does to labels of five digits, ten times
_MOST_COUNTED = 2**20  # from the least label to the greatest
_GRID = "give a nibabel image, or grid=, the image's grid"
_SMALL_BYTES = 16 * 2**20  # what is read without asking whether there is room


# ---- what the caller gives, and reading it


class _Volume(NamedTuple):
    """A mask or label image as it was given; an array has no grid of its own."""

    where: str
    data: Array
    grid: Space | None
    n_axes: int = 3
    """Of one mask; another axis counts masks."""
    names: Mapping[int, str] | None = None
    """Of its labels, if the file itself has names."""


@dataclass(frozen=True)
class Opened:
    """A mask or an atlas as it was given, and the image that it is."""

    given: Any
    source: Source

    @classmethod
    def of(cls, given: Any) -> Any:
        """The same, opened; or itself where that cannot be done, for who reads it to say why."""
        with suppress(Exception):
            return cls(given, _opened(given))
        return given

    @property
    def is_several(self) -> bool:
        """Whether it holds several images of one space, each of which is one mask, or one map of weights."""
        source = self.source
        return source.n_timepoints > 1 and source.labels is None and _parcels_of(source) is None


def _opened(given: Any) -> Source:
    if isinstance(given, Opened):
        return given.source
    path = _path(given)
    return open_source(given if path is None else _file(path))


def _path(thing: Any) -> str | None:
    if isinstance(thing, Opened):
        return _path(thing.given)
    if not isinstance(thing, (str, os.PathLike)):
        return None
    return os.path.expanduser(os.fsdecode(thing))


def file_stem(thing: Any) -> str | None:
    """The file's name without its image suffix; None if there is no file."""
    thing = thing.given if isinstance(thing, Opened) else thing
    path = _path(thing.get_filename() if isinstance(thing, DataobjImage) else thing)
    return None if path is None else readable(image_stem(path))


def matching(masks: Any) -> dict[str, str]:
    """Name -> file of a pattern's matches, sorted; empty if ``masks`` is no pattern."""
    path = _path(masks)
    files = matches(path) if path else []
    return dict(zip(unique_names(file_stem(file) or file for file in files), files, strict=True))


def spread(masks: Iterable[Any]) -> list[Any]:
    """The masks, with the files that each pattern among them matches in its place."""
    return [one for mask in masks for one in (matching(mask).values() or [mask])]


def named_masks(masks: Any) -> dict[str, Any]:
    """Name -> mask, of a dict, list, iterator, pattern or one mask; names are unique, nothing is read."""
    masks = list(masks) if isinstance(masks, Iterator) else matching(masks) or masks
    if isinstance(masks, Mapping):
        return dict(zip(unique_names(map(str, masks)), masks.values(), strict=True))
    items = spread(masks) if isinstance(masks, (list, tuple)) else [masks]
    return dict(zip(unique_names(_stems(items)), items, strict=True))


def _stems(masks: Iterable[Any]) -> list[str]:
    return [file_stem(mask) or f"mask_{number:03d}" for number, mask in enumerate(masks)]


def is_label_pair(masks: Any) -> bool:
    """Whether these are the files of labels of two hemispheres: one atlas."""
    masks = list(matching(masks).values()) or masks
    several = isinstance(masks, (list, tuple)) and len(masks) > 1
    return several and all((_path(one) or "").lower().endswith((".label.gii", ".annot")) for one in masks)


def unique_names(given: Iterable[str]) -> tuple[str, ...]:
    """The names, with _2, _3, ... appended to those that were there before."""
    names, seen = list(given), set[str]()
    taken, suffixes = set(names), defaultdict[str, Iterator[int]](lambda: count(2))
    for i, name in enumerate(names):
        if name in seen:
            names[i] = next(new for n in suffixes[name] if (new := f"{name}_{n}") not in taken)
        seen.add(name)
    return tuple(names)


def unpack(
    masks: Any, on: Space | None = None, space: Space | None = None
) -> tuple[Container, list[Any], list[Any]]:
    """Container, keys and masks; only a single mask is read already, as by :func:`read_volume`."""
    container: Container = "list"
    masks = matching(masks) or masks
    if isinstance(masks, Mapping):
        container, keys, items = "dict", list(masks), list(masks.values())
    elif isinstance(masks, (list, tuple)):
        items = spread(masks)
        keys = _stems(items)
    else:
        stem = file_stem(masks)
        volume = read_volume(masks, stem or "mask_000", on=on, space=space)
        if volume.data.ndim == volume.n_axes:
            return "single", [stem or "mask_000"], [volume]
        each = enumerate(np.moveaxis(volume.data, -1, 0))
        items = [volume._replace(where=f"{volume.where}, volume {i}", data=one) for i, one in each]
        keys = [f"{stem or 'mask'}_{i:03d}" for i in range(len(items))]
    if not items:
        raise MaskError("no mask was given")
    return container, keys, items


def target_grid(volume: _Volume, grid: Space | None, own: bool = False) -> Space:
    """The grid to put the volume on: the image's, else (or if asked for) its own."""
    shape = volume.data.shape
    if len(shape) != volume.n_axes:
        raise MaskError(_dimensions(volume.where, shape, volume.n_axes))
    if volume.grid is not None:
        return volume.grid if own or grid is None else grid
    if grid is None:
        raise MaskError(f"{volume.where} is an array and has no affine: {_GRID}")
    if shape != grid.shape:
        shapes = f"{times(shape)}, the image {times(grid.shape)}"
        raise GridMismatchError(f"{volume.where} is an array of {shapes}")
    return grid


@contextmanager
def _reading(where: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, GridMismatchError, MaskError):
        raise
    except FileNotFoundError as error:
        raise errors.MissingFileError(f"{where}: {error}") from error
    except Exception as error:  # nibabel's readers of other formats raise whatever their bytes lead to
        raise MaskError(f"{where} cannot be read: {str(error) or type(error).__name__}") from error


def read_volume(
    mask: Any, name: str, what: str = "mask", on: Space | None = None, space: Space | None = None
) -> _Volume:
    """The values and the grid of a mask; nothing is cached on the caller's objects.

    On another grid than ``on``, if that is given, or without the memory for it, nothing is read. Arrays and
    names of parts are of ``space``.
    """
    where, path = f"{what} {name!r}", _path(mask)
    if isinstance(mask, _Volume):
        return mask
    if isinstance(mask, np.ndarray):
        return _volume(where, _filled(mask), None, 3 if space is None else len(space.shape))
    if isinstance(space, BrainModels | Parcellation) and path is not None and not _names_a_file(path):
        return _part(where, path, space)
    if path is not None:
        where = f"{where} ({path})"
    elif not isinstance(mask, DataobjImage | Opened) and not is_surface(mask) and not are_surfaces(mask):
        raise MaskError(f"{where}: not a path, a volume image or an array but {_shown(mask)}")
    with _reading(where):
        source = _opened(mask)
        if what == "label image" and (parcels := _parcels_of(source)):
            return _of_parcels(where, parcels, space)
        if on is not None and _is_elsewhere(source.grid, on):
            raise mismatch_error(where, source.grid, on, "image")
        if source.labels is not None and source.n_timepoints > 1:
            raise MaskError(
                f"{where} holds {source.n_timepoints} label maps: give a file of the one that is meant"
            )
        _require_memory(source, where)
        values = source.read()
    return _volume(where, values, source.grid, len(source.grid.shape))._replace(names=source.labels)


def _shown(thing: Any) -> str:
    """What is none of these; points are what many programs take as seeds."""
    points = thing if isinstance(thing, (list, tuple)) else []
    for point in (points, *points[:1]):
        is_point = isinstance(point, (list, tuple)) and len(point) in (3, 4)
        if is_point and all(isinstance(one, int | float) for one in point):
            return f"the numbers {point}: SharedSpheresMasker and --sphere make spheres around points"
    return f"a {type(thing).__name__}"


def _filled(given: Array) -> Array:
    """What a masked array masks has no value."""
    return given.filled(0) if isinstance(given, np.ma.MaskedArray) else given


def _names_a_file(path: str) -> bool:
    """Whether it is one, or cannot be anything else."""
    return os.path.lexists(path) or os.sep in path or image_stem(path) != path


def _parcels_of(source: Source) -> Parcellation | None:
    """The parcels of a parcellated series, which is an atlas of these."""
    return source.grid if isinstance(source.grid, Parcellation) and source.is_series else None


def _of_parcels(where: str, parcels: Parcellation, space: Space | None) -> _Volume:
    """Each parcel as a label: of parcels if the image has such, else of elements."""
    names = dict(enumerate(parcels.names, 1))
    if isinstance(space, BrainModels | Grid):
        return _Volume(where, parcels.owners + 1, parcels.models, 1, names)
    return _Volume(where, np.arange(1, parcels.n_voxels + 1), parcels, 1, names)


def _is_elsewhere(own: Space, target: Space) -> bool:
    return target.numbers_of(own, np.empty(0, np.intp)) is None


def _part(where: str, name: str, space: Elements) -> _Volume:
    """The elements of a structure of that name, or a parcel."""
    numbers = space.part(name)
    if numbers is None:
        what = "structure" if isinstance(space, BrainModels) else "parcel"
        raise errors.MissingFileError(f"{where} is no file, and no {what}: there are {space.parts}")
    inside = np.zeros(space.n_voxels, bool)
    inside[numbers] = True
    return _Volume(where, inside, space, 1)


def open_maps(
    maps: Any, grid: Space | None, resampling_target: str | None
) -> tuple[Iterator[tuple[str, Array]], Space]:
    """Name and values, in the order of voxel numbers, of each map of a 4D image; and the grid they lie on."""
    where = f"maps {file_stem(maps) or 'maps'!r}"
    if isinstance(maps, np.ndarray):
        if grid is None:
            raise MaskError(f"{where} are an array and have no affine: {_GRID}")
        if maps.shape[:-1] == grid.shape and maps.shape[-1] > 1:
            flat = _filled(maps).reshape(-1, maps.shape[-1], order="F").T
            return iter((f"{where}, volume {i}", one) for i, one in enumerate(flat)), grid
        maps = nib.Nifti1Image(maps, box_of(grid, where).affine)
    once = None if isinstance(maps, (list, tuple, Mapping)) else Opened.of(maps)
    if not isinstance(once, Opened) or not once.is_several:
        raise MaskError(f"{where}: one 4D image is needed, of a map each volume")
    source = once.source
    stays = grid is None or moves_the_image(resampling_target)
    if grid is not None and not stays and _is_elsewhere(source.grid, grid):
        if resampling_target != "data" or not isinstance(grid, Grid):
            raise mismatch_error(where, source.grid, grid, "image")
        source = resampled(source, grid, "linear")
    return _each_map(source, where), source.grid


def _each_map(source: Source, where: str) -> Iterator[tuple[str, Array]]:
    with _reading(where):
        for number, stored in enumerate(source.each_volume()):
            yield f"{where}, volume {number}", apply_read_scaling(stored, source.slope, source.inter)


def _require_memory(source: Source, where: str) -> None:
    """Values as stored and scaled, those inside, and their labels."""
    if source.nbytes > _SMALL_BYTES:
        per_value = source.dtype.itemsize + 2 * source.scaled_dtype.itemsize + 16
        MemoryBudget.here().require(f"reading {where}", source.nbytes // source.dtype.itemsize * per_value)


def _file(path: str) -> Any:
    """What to open: formats that only nibabel reads, and reads whole, are fine for a mask."""
    streamed = re.search(r"\.(nii|img|hdr)$", without_codec(named(path)), re.IGNORECASE) or is_surface(path)
    if streamed or not Path(path).is_file():
        return path
    try:
        return _load_mgh(path) if path.lower().endswith((".mgh", ".mgz")) else nib.load(path)
    except ImageFileError:  # which opening it will say
        return path


def _load_mgh(path: str) -> Any:
    """The image whose header nibabel reads from a file that, given its path, it would leave open."""
    with ImageOpener(path) as file:
        image = MGHImage.from_file_map({"image": FileHolder(path, file)})  # type: ignore[arg-type]
    image.dataobj.file_like = path
    return image


def _volume(where: str, data: Array, grid: Space | None, n_axes: int) -> _Volume:
    if data.dtype.kind not in "biuf":
        raise MaskError(f"{where} holds {data.dtype}, not real numbers")
    if data.ndim > n_axes and set(data.shape[n_axes:]) == {1}:
        data = data.reshape(data.shape[:n_axes])
    if data.ndim not in (n_axes, n_axes + 1):
        raise MaskError(_dimensions(where, data.shape, n_axes))
    return _Volume(where, data, grid, n_axes)


def _dimensions(where: str, shape: tuple[int, ...], needed: int) -> str:
    if needed == 1 and len(shape) == 2:
        return f"{where} holds {times(shape[1:])} maps of {shape[0]} elements; one is needed"
    return f"{where} has {len(shape)} dimensions ({times(shape)}); {needed} are needed"


def voxels_inside(volume: _Volume) -> tuple[NDArray[np.bool_], str]:
    """Nonzero and finite; and what is to be said of a mask that may be none."""
    if volume.data.dtype.kind == "b":
        return volume.data, ""
    inside: NDArray[np.bool_] = volume.data != 0
    if volume.data.dtype.kind == "f":
        inside &= np.isfinite(volume.data)
    said = _doubt(volume.data[inside], has_outside=not inside.all())
    return inside, said and f"{volume.where} {said}"


def _doubt(inside: Array, has_outside: bool) -> str:
    """What is to be said of a mask with these values inside."""
    values = whole_labels(inside)
    values = values if np.all(values) else inside  # what is tiny is inside
    if values.dtype.kind == "b" or not values.size:
        return ""
    low, high = values.min(), values.max()
    if low == high or (values.dtype.kind == "f" and np.isclose(low, high)):
        return ""
    span = f"{low:g} to {high:g}"
    if not np.all(values == np.rint(values)):
        what = "as of probabilities" if low > 0 and high <= 1 else "no whole numbers"
        return f"holds {span}, {what}; all but 0 are inside: put a threshold to it first"
    if not has_outside and np.all((values == low) | (values == high)):
        return f"holds {low:g} and {high:g} and no 0: all its voxels are inside"
    atlas = "For one region per value use Regions.from_labels, or --atlas on the command line"
    return f"holds more than two values, {span}; all but 0 are inside. {atlas}"


def whole_labels(data: Array) -> Array:
    """Label values without the rounding errors of a header's scaling.

    The nearest integers if all finite values are within a hundredth of one; else ``data`` itself.
    """
    if data.dtype.kind != "f":
        return data
    nearest = np.rint(data)
    off = np.abs(data - nearest)[np.isfinite(data)]
    return nearest if 0 < off.max(initial=0) <= _LABEL_ROUNDING else data


def label_codes(volume: _Volume, background_label: Any) -> tuple[list[int], NDArray[np.int32]]:
    """The sorted values; and for each voxel 0 if background, else 1 + the position of its value."""
    if not isinstance(background_label, int | float | np.number | None):
        raise errors.ParameterError(f"background_label={background_label!r} is no value of an atlas")
    data = whole_labels(volume.data)
    inside = (data != background_label) & np.isfinite(data)
    labels = data[inside]
    fractional = labels[labels != np.rint(labels)] if labels.dtype.kind == "f" else labels[:0]
    if fractional.size:
        raise MaskError(f"{volume.where} holds {fractional[0]}: not an atlas, whose values are integers")
    values, positions = _distinct(labels)
    codes = np.zeros(inside.shape, dtype=np.int32)
    codes[inside] = positions + 1
    return [int(value) for value in values], codes


def _distinct(labels: Array) -> tuple[Array, Array]:
    """The sorted values of whole numbers, and the place of each among them."""
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if high - low >= _MOST_COUNTED or max(high, -low) >= 2**53:
        return np.unique(labels, return_inverse=True)
    above = labels.astype(np.int64) - low
    there = np.bincount(above, minlength=1) > 0  # faster than sorting them
    return np.flatnonzero(there) + low, (np.cumsum(there) - 1)[above]


def place_on(
    volume: _Volume, codes: Array, grid: Space, resampling_target: str | None
) -> tuple[Numbers, Array]:
    """Numbers on ``grid`` of the voxels whose code is not 0, in C order as given, and their codes."""
    own = volume.grid or grid
    found, numbers = _placed(codes, own, grid)
    is_box = isinstance(own, Grid) and isinstance(grid, Grid)
    if numbers is None and not (resampling_target == "data" and is_box):
        whose = "first" if moves_the_image(resampling_target) else "image"
        raise mismatch_error(volume.where, own, grid, whose)
    if not codes.any():
        raise EmptyMaskError(f"{volume.where} is empty: all its voxels are 0, background or not finite")
    if numbers is None:
        target = box_of(grid, f"resampling {volume.where}")
        found, numbers = _placed(_resample(volume.where, codes, box_of(own, ""), target), target, target)
        assert numbers is not None
    if np.any(outside := numbers < 0):
        found, numbers = found[~outside], numbers[~outside]
        if not len(numbers):
            raise EmptyMaskError(f"{volume.where} has no place in {grid}")
    return numbers, found


def _placed(codes: Array, own: Space, grid: Space) -> tuple[Array, Numbers | None]:
    """The codes that are not 0, in C order, and the numbers of their places on ``grid``, if it has them."""
    if not codes.flags.c_contiguous and np.count_nonzero(codes) * _FEW < codes.size:
        flat = codes.reshape(-1, order="F")  # mostly no copy; few numbers are sorted sooner than all turned
        numbers = np.flatnonzero(flat)
        turned = np.ravel_multi_index(np.unravel_index(numbers, codes.shape, order="F"), codes.shape)
        numbers = places = numbers[np.argsort(turned)]
    else:
        flat = codes.reshape(-1)
        places = np.flatnonzero(flat)  # of the flat array, which is several times faster than of the 3D one
        numbers = np.ravel_multi_index(np.unravel_index(places, codes.shape), codes.shape, order="F")
    return flat[places], grid.numbers_of(own, np.asarray(numbers, np.intp))


def moves_the_image(resampling_target: object) -> bool:
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


def wanted_labels(asked: Any, available: set[int], names: Mapping[int, str], where: str) -> dict[int, str]:
    """Value -> unique name of the regions to make, sorted by value."""
    if isinstance(asked, str) or not isinstance(asked, Iterable | None):
        raise errors.ParameterError(f"labels={asked!r} are no list of values")
    wanted = available if asked is None else set(asked)
    if unknown := wanted - available:
        raise MaskError(f"{where} and its look-up table have no label {', '.join(sorted(map(str, unknown)))}")
    values = sorted(int(value) for value in wanted)
    return dict(zip(values, unique_names(names.get(value, str(value)) for value in values), strict=True))
