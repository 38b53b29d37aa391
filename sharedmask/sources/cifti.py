"""CIFTI-2 files: their axes, and what these say of an image.

Covers: which axis is time and which are places, whatever their order; brain models, parcels, names of
labels, the time from one volume to the next; refusing what has no values of elements. Does not cover: the
header before the axes and the bytes after it (``nifti``), reading values (``source``, ``by_row``).

On disk a file's first axis is the fastest: of time by elements, as these files usually are, a row is one
element's whole series. The axes are read here and not by nibabel, which makes an object of each element and
takes longer for them than reading all values does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field, replace
from functools import lru_cache
from typing import Any
from xml.etree import ElementTree

import numpy as np
from nibabel import Nifti2Header, Nifti2Image
from nibabel.cifti2.cifti2 import Cifti2Image

from sharedmask.errors import DamagedImageError, ImageError
from sharedmask.records import dataclass
from sharedmask.sources.nifti import HEADER_TIME, untimed
from sharedmask.sources.sidecar import positive
from sharedmask.spaces.brain_models import VOXELS, BrainModels
from sharedmask.spaces.grid import Grid
from sharedmask.spaces.parcellation import Parcellation, names_of
from sharedmask.typing import Array, Numbers

Element = ElementTree.Element

_EXTENSION = 32
_MOST_PLACES = 2**27  # vertices of a surface, voxels of a box: for each of them there is a number in memory
_KEPT = 4  # axes that were read last: a file of labels is opened twice, and the runs of a study are alike
_KINDS = {
    "CIFTI_INDEX_TYPE_BRAIN_MODELS": "elements",
    "CIFTI_INDEX_TYPE_SERIES": "a series",
    "CIFTI_INDEX_TYPE_SCALARS": "maps",
    "CIFTI_INDEX_TYPE_LABELS": "label maps",
    "CIFTI_INDEX_TYPE_PARCELS": "parcels",
}
_PLACES = ("elements", "parcels")
_LISTS = re.compile(rb"(?<=>)([0-9\s]{200,})(?=<)")
_CALLED = re.compile(r"\.([dp])tseries\.", re.IGNORECASE)


@dataclass(frozen=True)
class Axes:
    """What the axes of a file say."""

    facts: dict[str, Any]
    """Of :class:`sharedmask.sources.source.Facts`, slope and intercept aside; and the labels' names."""
    by_row: bool
    """Whether an element's values lie side by side on disk."""


def axes_text(image: Any) -> bytes | None:
    """The axes of a loaded image, in XML; None of one that is not CIFTI-2."""
    if isinstance(image, Cifti2Image):
        text: bytes = image.header.to_xml()
        return text
    if not isinstance(image, Nifti2Image) or not 3000 <= image.header["intent_code"] < 3100:
        return None
    found = (one.content for one in image.header.extensions if one.get_code() == _EXTENSION)
    return next(found, b"")


def read_axes(name: str, image: Any, text: bytes, dtype: np.dtype[Any]) -> Axes:
    """What the axes say, of which ``text`` is the XML; no value is read.

    Raises DamagedImageError: the axes cannot be read, or are not those of the values.
    Raises ImageError: there are no elements with values, or no real numbers.
    """
    if dtype.kind not in "iuf":
        raise ImageError(f"{name} holds {dtype} values; only real numbers can be served")
    if not text:
        raise DamagedImageError(f"{name} is a CIFTI-2 file by its intent, and has no axes in its header")
    with _reading(name):
        root = _root(text)
    if (version := root.get("Version", "")).partition(".")[0] != "2":
        todo = "convert it: wb_command -file-convert -cifti-version-convert"
        raise ImageError(f"{name} is of version {version or 'unknown'} of CIFTI, and 2 is read; {todo}")
    with _reading(name):
        maps = _index_maps(root)
    shape = tuple(int(size) for size in image.shape[-len(maps) :])
    kinds = [_KINDS.get(one.get("IndicesMapToDataType", ""), "an unknown axis") for one in maps]
    _check_kinds(name, kinds)
    place = next(axis for axis, kind in enumerate(kinds) if kind in _PLACES)
    along, kind = maps[1 - place], kinds[1 - place]
    with _reading(name):
        models = replace(
            (_models if kinds[place] == "elements" else _parcels)(_Places.of(maps[place])), name=name
        )
        table = list(_labels(along)) if kind == "label maps" else None
        said = _length(along)
        seconds = _seconds(along) if kind == "a series" else None
    n_maps = shape[1 - place]
    if models.n_voxels != shape[place] or not n_maps or said not in (None, n_maps):
        told = kind if said is None else f"{kind} of {said}"
        raise DamagedImageError(f"{name} has values of shape {shape}, and its axes {models} by {told}")
    labels = None if table is None else names_of(name, table)
    volume = models.volume if isinstance(models, BrainModels) else models.models.volume
    affine = np.eye(4) if volume is None else np.array(volume.affine)
    affine.setflags(write=False)
    facts = {
        "name": name,
        "shape": (models.n_voxels, n_maps),
        "ndim": 1 if n_maps == 1 and kind != "a series" else 2,
        "dtype": dtype.newbyteorder("="),
        "affine": affine,
        "t_r": seconds,
        "t_r_origin": HEADER_TIME if seconds else untimed(name),
        "header": _plain_header(image),
        "models": models,
        "labels": labels,
    }
    return Axes(facts, by_row=place == 1)


class _UnfitError(ValueError):
    """Axes contradict themselves; says how."""


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (ElementTree.ParseError, KeyError, ValueError, TypeError, OverflowError) as error:
        said = f"{name}: the axes in its header, which are XML, are damaged"
        raise DamagedImageError(f"{said}: {_fault(error)}") from error


def _fault(error: Exception) -> str:
    if isinstance(error, ElementTree.ParseError):
        line, column = error.position
        return f"they break off, or are not well formed, at line {line}, column {column}"
    if isinstance(error, KeyError):
        return f"there is no {error.args[0]}"
    return str(error) if isinstance(error, _UnfitError) else "what should be numbers is not"


@dataclass(frozen=True)
class _Places:
    """An axis of places, the same as that of another file that says the same: an atlas's is its series'."""

    axis: Element = field(compare=False)
    said: tuple[Any, ...]

    @classmethod
    def of(cls, axis: Element) -> _Places:
        return cls(axis, tuple(map(_said, axis)))


def _said(element: Element) -> tuple[Any, ...]:
    return element.tag, *element.attrib.items(), element.text, *map(_said, element)


@lru_cache(maxsize=_KEPT)
def _root(text: bytes) -> Element:
    text = text.rstrip(b"\0 \n")
    said = _LISTS.split(text)  # lists are left out, for the parser takes them line by line
    lists = {f"#{place}": one for place, one in enumerate(said[1::2])}
    said[1::2] = [place.encode() for place in lists]
    try:
        root = ElementTree.fromstring(b"".join(said))
    except ElementTree.ParseError:
        root, lists = ElementTree.fromstring(text), {}  # says where
    for one in root.iter():  # whatever the namespace
        one.tag = one.tag.rpartition("}")[2]
        if one.text in lists:
            one.text = lists[one.text].decode()
    return root


def _index_maps(root: Element) -> list[Element]:
    """The map of each axis, in the order of the values' axes."""
    matrix = root.find("Matrix")
    found: dict[int, Element] = {}
    for one in () if matrix is None else matrix.iterfind("MatrixIndicesMap"):
        for axis in one.attrib["AppliesToMatrixDimension"].split(","):
            found[int(axis)] = one
    if not found or sorted(found) != list(range(len(found))):
        raise _UnfitError("they are of no matrix")
    return [found[axis] for axis in sorted(found)]


def _check_kinds(name: str, kinds: list[str]) -> None:
    said = " by ".join(kinds)
    places = [kind for kind in kinds if kind in _PLACES]
    if len(places) > 1:
        what, ending = ("dense ", "dt") if kinds == ["elements", "elements"] else ("", "pt")
        raise ImageError(f"{name} is a {what}matrix, {said}, and no series: give the .{ending}series.nii")
    if len(kinds) != 2 or not places:
        raise ImageError(f"{name} holds {said}, and no values of elements: give a .dtseries.nii")
    if (called := _CALLED.search(name)) and "a series" not in kinds:
        what = "dense" if called[1].lower() == "d" else "parcellated"
        raise ImageError(f"{name} is called a {what} series and has no axis of time: it holds {said}")


@lru_cache(maxsize=_KEPT)
def _models(places: _Places) -> BrainModels:
    axis = places.axis
    volume, said, numbers, end = _volume(axis), list[tuple[str, int, int | None]](), list[Numbers](), 0
    for model in sorted(axis.iterfind("BrainModel"), key=lambda one: int(one.attrib["IndexOffset"])):
        structure, vertices = model.attrib["BrainStructure"].strip(), None
        if model.attrib["ModelType"] == "CIFTI_MODEL_TYPE_SURFACE":
            vertices = int(model.attrib["SurfaceNumberOfVertices"])
            found = _integers(model, "VertexIndices")
            fits = vertices <= _MOST_PLACES and bool(np.all((found >= 0) & (found < vertices)))
        else:
            found = _voxels(model, volume)
            fits = bool(np.all(found >= 0))
        start, count = int(model.attrib["IndexOffset"]), int(model.attrib["IndexCount"])
        if structure in {one for one, _, _ in said}:
            raise _UnfitError(f"{structure} is there twice")
        fits = fits and (_ascend(found) or _ascend(np.sort(found)))
        if not fits or (start, count) != (end, len(found)):
            raise _UnfitError(f"the {count} elements of {structure} do not fit from {start} on")
        end += count
        said.append((structure, count, vertices))
        numbers.append(found)
    if not end:
        raise _UnfitError("there are no elements")
    return BrainModels.of(said, np.concatenate(numbers), volume, "")


@lru_cache(maxsize=_KEPT)
def _parcels(places: _Places) -> Parcellation:
    axis = places.axis
    volume, names = _volume(axis), list[str]()
    surfaces = {
        one.attrib["BrainStructure"]: int(one.attrib["SurfaceNumberOfVertices"])
        for one in axis.iterfind("Surface")
    }
    found: dict[str, list[tuple[int, Numbers]]] = {structure: [] for structure in (*surfaces, VOXELS)}
    for number, parcel in enumerate(axis.iterfind("Parcel")):
        names.append(parcel.attrib["Name"].strip())
        for one in parcel.iterfind("Vertices"):
            found[one.attrib["BrainStructure"]].append((number, _numbers(one.text or "")))
        if parcel.find("VoxelIndicesIJK") is not None:
            found[VOXELS].append((number, _voxels(parcel, volume)))
    if not names:
        raise _UnfitError("there are no parcels")
    said, numbers, owners = [], [np.empty(0, np.intp)], [np.empty(0, np.intp)]
    for structure, parts in found.items():
        own = np.concatenate([numbers[0], *(places for _, places in parts)])
        most = surfaces.get(structure, _MOST_PLACES)
        if most > _MOST_PLACES or np.any((own < 0) | (own >= most)):
            raise _UnfitError(f"parcels have places that {structure} has not")
        said += [(structure, len(own), surfaces.get(structure))] if structure in surfaces or len(own) else []
        numbers.append(own)
        owners.append(np.repeat([number for number, _ in parts], [len(places) for _, places in parts]))
    models = BrainModels.of(said, np.concatenate(numbers), volume, "")
    return Parcellation(tuple(names), models, np.concatenate(owners).astype(np.intp))


def _volume(axis: Element) -> Grid | None:
    found = axis.find("Volume")
    if found is None:
        return None
    x, y, z = (int(size) for size in found.attrib["VolumeDimensions"].split(","))
    if min(x, y, z) < 1 or x * y * z > _MOST_PLACES:
        raise _UnfitError(f"a volume of {x} x {y} x {z} voxels")
    matrix = found.find("TransformationMatrixVoxelIndicesIJKtoXYZ")
    if matrix is None:
        raise _UnfitError("the volume has no affine")
    affine = np.array((matrix.text or "").split(), np.float64).reshape(4, 4)
    affine[:3] = _shifted(affine[:3], int(matrix.get("MeterExponent", -3)) + 3)  # millimetres
    return Grid((x, y, z), affine)


def _integers(model: Element, name: str) -> Numbers:
    text = model.findtext(name)
    if text is None:
        raise _UnfitError(f"{model.get('BrainStructure') or model.get('Name')} has no {name}")
    return _numbers(text)


@lru_cache(maxsize=64)  # the files of a study, and an atlas of theirs, have the same
def _numbers(text: str) -> Numbers:
    return np.fromstring(text, np.intp, sep=" ") if text.strip() else np.empty(0, np.intp)


def _voxels(model: Element, volume: Grid | None) -> Numbers:
    """In the box of the volume, x fastest; -1 for those outside."""
    if volume is None:
        raise _UnfitError("there are voxels and no volume")
    indices = _integers(model, "VoxelIndicesIJK").reshape(-1, 3)
    numbers, inside, stride = np.zeros(len(indices), np.intp), np.ones(len(indices), bool), 1
    for along, size in zip(indices.T, volume.shape, strict=True):  # of rows of three it takes far longer
        numbers += along * stride
        inside &= (along >= 0) & (along < size)
        stride *= size
    return np.where(inside, numbers, -1)


def _ascend(numbers: Numbers) -> bool:
    return bool(np.all(numbers[1:] > numbers[:-1]))


def _seconds(axis: Element) -> float | None:
    if axis.attrib["SeriesUnit"] != "SECOND":
        return None
    return positive(_shifted(float(axis.attrib["SeriesStep"]), int(axis.attrib["SeriesExponent"])))


def _shifted(value: Any, places: int) -> Any:
    """``value`` x 10 ** ``places``, to the last bit: 800 ms are 0.8 s."""
    return value * 10.0**places if places >= 0 else value / 10.0**-places


def _length(axis: Element) -> int | None:
    """How many maps, or points in time, there are; None: it does not say."""
    if (said := axis.get("NumberOfSeriesPoints")) is not None:
        return int(said)
    return sum(1 for _ in axis.iterfind("NamedMap")) or None


def _labels(axis: Element) -> Iterator[tuple[int, str | None]]:
    """Of the first map; a file of several is no atlas."""
    table = axis.find("NamedMap/LabelTable")
    return ((int(one.attrib["Key"]), one.text) for one in (() if table is None else table.iterfind("Label")))


def in_memory(data: Array, by_row: bool) -> Array:
    """The values of an image that is no file, (n_elements, n_maps)."""
    data = data.reshape(data.shape[-2:])
    return data.T if by_row else data


def _plain_header(image: Any) -> Nifti2Header:
    """The NIfTI header, without the axes."""
    header = image.nifti_header if isinstance(image, Cifti2Image) else image.header
    return Nifti2Header(header.binaryblock, header.endianness, check=False)
