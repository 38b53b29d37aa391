"""NFDH5: frames and what is known of them in one HDF5 file.

Covers: the layout of the file, reading and writing versions 1 (nifreeze's) and 2, one volume at a
time. Does not cover: temporary names (``files``), mapping the file (``mapped_file``), what fields must
be (``metadata``).

::

    /              Format, Version; Type of diffusion data
    /0             Type
      dataobj      version 1: (X, Y, Z, N); version 2: (N, X, Y, Z), volume_axis=0
      affine       (4, 4)
      brainmask, motion_affines, gradients, midframe, bzero, total_duration ...
      _header      the image's header, as bytes
      _numbers     which frame of the original run each is
      _per_frame/, _overall/     fields that nifreeze does not know, and would not read

Uncompressed frames lie in the file one after the other, as they are, and can be mapped: in version 1
each is a chunk, and HDF5 puts such chunks side by side. Compressed ones are a chunk each, too.
Files that nifreeze wrote have the values of a voxel side by side: these are read in blocks of frames.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from sharedmask.errors import DamagedImageError, ImageError, ParameterError
from sharedmask.frames.metadata import Metadata
from sharedmask.records import dataclass
from sharedmask.sources import hdf5
from sharedmask.sources.layout import FileLayout
from sharedmask.sources.nifti import HEADER_TIME, pack_header, unpack_header
from sharedmask.sources.opening import open_source, warn_of_time
from sharedmask.sources.source import Facts, Source
from sharedmask.sources.volumes import VolumeReader
from sharedmask.spaces.grid import box_of
from sharedmask.storage.indexes import indexed
from sharedmask.system.identity import FileState
from sharedmask.typing import Array

Read = Callable[[int, Array], None]

ENDINGS = (".h5", ".hdf5")

VERSIONS = (1, 2)
_FORMATS = ("NFDH5", "EMC/PET")
_PER_FRAME = ("gradients", "midframe", "eddy_xfms", "uptake")  # of nifreeze's
_OVERALL = ("bzero", "total_duration")
_KNOWN = ("dataobj", "affine", "brainmask", "motion_affines", "datahdr")
_BLOCK_BYTES = 8 * 2**20  # read at once where frames are interleaved
_ALIGNMENT = 4096  # of the frames in a file that we write: a page
_LIBVER = ("v110", "v110")  # the first that puts chunks side by side


def is_nfdh5(path: object) -> bool:
    """Whether this is the name of such a file."""
    return isinstance(path, (str, os.PathLike)) and os.fsdecode(path).lower().endswith(ENDINGS)


# --- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Nfdh5Source(Source):
    """The frames of one file, as a source like any image."""

    metadata: Metadata = field(repr=False)
    offset: int | None = field(repr=False)
    """Where frames begin that lie in the file one after the other; else None."""
    volume_axis: int = field(repr=False)

    @property
    def layout(self) -> FileLayout | str:
        if self.offset is None:
            return "its frames are compressed or interleaved"
        return FileLayout.aligned(os.fspath(self.paths[0]), self.offset, self.dtype, "C")

    @contextmanager
    def _volumes(self) -> Iterator[VolumeReader]:
        with hdf5.open_file(self.paths[0], self.name) as file:
            read = self._reader(file["0/dataobj"])
            yield VolumeReader(self, partial(self._fill, read))

    def _reader(self, dataset: Any) -> Read:
        """The function that reads a frame into an (X, Y, Z) array."""
        entries = _entries(dataset, self.volume_axis)
        if entries.last and not entries.are_chunks:
            return _Interleaved(dataset, self.dtype)
        return lambda number, out: entries.read(number, out, f"{self.name}, frame {number}")

    def _fill(self, read: Read, rows: Array, remaining: int) -> None:
        first = self.n_timepoints - remaining - len(rows)
        for number, row in enumerate(rows, first):
            try:
                read(number, row.reshape(self.shape[:3], order="F"))
            except hdf5.DAMAGE as error:
                raise DamagedImageError(f"{self.name} cannot be read at frame {number}: {error}") from error


class _Interleaved:
    """Frames that are no chunks: as many at once as a block holds; each pass goes over the whole file."""

    def __init__(self, dataset: Any, dtype: np.dtype[Any]) -> None:
        self._dataset = dataset
        nbytes = dataset.size * dtype.itemsize // dataset.shape[3]
        self._block = np.empty((*dataset.shape[:3], max(1, _BLOCK_BYTES // nbytes)), dtype)
        self._held = range(0)

    def __call__(self, number: int, out: Array) -> None:
        if number not in self._held:
            stop = min(number + self._block.shape[3], self._dataset.shape[3])
            into = np.s_[..., : stop - number]
            self._dataset.read_direct(self._block, np.s_[..., number:stop], into)
            self._held = range(number, stop)
        out[...] = self._block[..., number - self._held.start]


def open_nfdh5(path: str | os.PathLike[str]) -> Nfdh5Source:
    """Learn what the file holds, without reading its frames.

    One that is not HDF5, or not complete, is a DamagedImageError; one of another format or version, or whose
    frames are of a kind that cannot be served, an ImageError.
    """
    name = os.fsdecode(path)
    found = Path(os.path.abspath(os.path.expanduser(name)))
    state = FileState.now(found)
    with hdf5.open_facts(found, name) as file:
        root, version = _checked_root(file, name)
        dataset = root["dataobj"]
        axis = int(dataset.attrs.get("volume_axis", 3))
        header, t_r = _read_header(root)
        facts = _facts(name, dataset, axis, _affine(root, name), t_r)
        metadata = _read_fields(root, facts["shape"], name)
        offset = _entries(dataset, axis).offset if dataset.dtype == facts["dtype"] else None
    if version == 1 and axis != 3:
        raise ImageError(f"{name} says version 1 and volume_axis={axis}: version 1 has it last")
    own: dict[str, Any] = {"metadata": metadata, "offset": offset, "volume_axis": axis}
    return Nfdh5Source(**facts, files=(state,), header=header, **own)


def _entries(dataset: Any, volume_axis: int) -> hdf5.Entries:
    return hdf5.Entries(dataset, last=volume_axis != 0)


def open_frames(source: Any) -> Source:
    """The source of an NFDH5 file, or of an image."""
    if is_nfdh5(source):
        return open_nfdh5(source)
    opened = indexed(open_source(source))
    box_of(opened.grid, "a data set of frames")
    warn_of_time(opened)
    return opened


def _checked_root(file: Any, name: str) -> tuple[Any, int]:
    told, version = _text(file.attrs.get("Format")), file.attrs.get("Version")
    if told not in _FORMATS:
        raise ImageError(f"{name} is no NFDH5 file: its Format is {told!r}, not one of {_FORMATS}")
    if version not in VERSIONS:
        raise ImageError(f"{name} is NFDH5 of version {version}; versions {VERSIONS} can be read")
    missing = [one for one in ("dataobj", "affine") if f"0/{one}" not in file]
    if missing:
        raise DamagedImageError(f"{name} has no {' and no '.join(missing)}")
    return file["0"], int(version)


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _affine(root: Any, name: str) -> Array:
    if root["affine"].shape != (4, 4):
        raise DamagedImageError(f"{name} has an affine of shape {root['affine'].shape}, not (4, 4)")
    return np.asarray(root["affine"][()], np.float64)


def _facts(name: str, dataset: Any, axis: int, affine: Array, t_r: float | None) -> dict[str, Any]:
    if dataset.ndim != 4 or axis not in (0, 3) or not dataset.size:
        told = f"frames of shape {dataset.shape} with volume_axis={axis}"
        raise ImageError(f"{name} has {told}; 4 axes are needed")
    dtype = np.dtype(np.uint8) if dataset.dtype == bool else dataset.dtype.newbyteorder("=")
    if dtype.kind not in "iuf":
        raise ImageError(f"{name} holds {dtype} values; only real numbers can be served")
    shape = tuple(int(n) for n in dataset.shape)
    affine.setflags(write=False)
    return {
        "name": name,
        "shape": shape if axis == 3 else (*shape[1:], shape[0]),
        "ndim": 4,
        "dtype": dtype,
        "affine": affine,
        "slope": 1.0,
        "inter": 0.0,
        "t_r": t_r,
        "t_r_origin": f"{name} gives no repetition time" if t_r is None else HEADER_TIME,
    }


def _read_fields(root: Any, shape: tuple[int, int, int, int], name: str) -> Metadata:
    groups = {kind: list(root.get(kind, ())) for kind in ("_per_frame", "_overall")}
    own = {f"{kind}/{key}": root[kind][key] for kind, keys in groups.items() for key in keys}
    known = {key: root[key] for key in ("brainmask", "motion_affines", "_numbers") if key in root}
    theirs = {key: root[key] for key in root if not key.startswith("_") and key not in _KNOWN}
    read = hdf5.read_small(own | known | theirs)
    ours = {kind: {key: read[f"{kind}/{key}"] for key in keys} for kind, keys in groups.items()}
    per_frame = {key: read[key] for key in theirs if key in _PER_FRAME}
    try:
        return Metadata.checked(
            shape,
            brainmask=read.get("brainmask"),
            motion_affines=read.get("motion_affines"),
            per_frame=_ordered(root, per_frame | ours["_per_frame"]),
            overall={key: read[key] for key in theirs if key not in per_frame} | ours["_overall"],
            numbers=read.get("_numbers"),
        )
    except ParameterError as error:
        raise DamagedImageError(f"{name}: {error}") from error


def _ordered(root: Any, per_frame: dict[str, Any]) -> dict[str, Any]:
    """In the order in which they were given; HDF5 has them by name."""
    told = [_text(name) for name in root.attrs.get("_order", ())]
    return {name: per_frame[name] for name in told if name in per_frame} | per_frame


def _read_header(root: Any) -> tuple[Any, float | None]:
    if "_header" not in root:
        header = nib.Nifti1Header()
        header.set_xyzt_units("mm")
        return header, None
    stored = root["_header"]
    (content,) = hdf5.read_small({"_header": stored}).values()
    header = unpack_header(_text(stored.attrs["class"]), content.tobytes())
    return header, float(stored.attrs["t_r"]) or None


# --- writing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packing:
    """How frames are laid out in a file that is written; compression is h5py's."""

    version: int = 1
    compression: str | None = None
    compression_opts: Any = None

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise ParameterError(f"version={self.version!r} of NFDH5: it is one of {VERSIONS}")

    def create(self, root: Any, shape: tuple[int, ...], n_frames: int, dtype: np.dtype[Any]) -> Any:
        """The data set of the frames."""
        last = self.version == 1
        extent, chunk = ((*shape, n_frames), (*shape, 1)) if last else ((n_frames, *shape), (1, *shape))
        plain = hdf5.side_by_side(chunk) if last else {}
        packed = {"compression": self.compression, "compression_opts": self.compression_opts, "chunks": chunk}
        try:
            dataset = root.create_dataset("dataobj", extent, dtype, **(packed if self.compression else plain))
        except (ValueError, TypeError) as error:
            said = f"compression={self.compression!r} with compression_opts={self.compression_opts!r}"
            raise ParameterError(f"{said} is none that HDF5 has: {error}") from error
        if not last:
            dataset.attrs["volume_axis"] = 0
        return dataset


def write(
    path: Path,
    facts: Facts,
    metadata: Metadata,
    header: Any,
    volumes: Iterable[Array],
    dtype: np.dtype[Any],
    packing: Packing,
) -> None:
    """Write ``volumes``, (X, Y, Z) arrays of ``dtype``, one after the other, and what is known of them."""
    aligned = {"alignment_threshold": _ALIGNMENT, "alignment_interval": _ALIGNMENT}
    with hdf5.create_file(path, libver=_LIBVER, **aligned) as new:
        root = _write_head(new.file, metadata, packing.version)
        _write_fields(root, facts, metadata, header)
        dataset = packing.create(root, facts.shape[:3], len(metadata.numbers), dtype)
        entries = _entries(dataset, 3 if packing.version == 1 else 0)
        for number, volume in enumerate(volumes):
            new.write_entry(entries, number, volume)


def _write_head(file: Any, metadata: Metadata, version: int) -> Any:
    is_pet = "midframe" in metadata.per_frame
    file.attrs["Format"] = "EMC/PET" if is_pet else "NFDH5"
    file.attrs["Version"] = np.uint16(version)
    if "gradients" in metadata.per_frame:
        file.attrs["Type"] = "dmri"
    root = file.create_group("0")
    root.attrs["Type"] = "pet" if is_pet else "base dataset"
    return root


def _write_fields(root: Any, facts: Facts, metadata: Metadata, header: Any) -> None:
    root["affine"] = facts.affine
    for name in ("brainmask", "motion_affines"):
        if getattr(metadata, name) is not None:
            root[name] = getattr(metadata, name)
    for name, values in metadata.per_frame.items():
        root[name if name in _PER_FRAME else f"_per_frame/{name}"] = values
    for name, values in metadata.overall.items():
        root[name if name in _OVERALL else f"_overall/{name}"] = values
    if metadata.per_frame:
        root.attrs["_order"] = list(metadata.per_frame)
    root["_numbers"] = metadata.numbers
    kind, content = pack_header(header)
    root["_header"] = np.frombuffer(content, np.uint8)
    root["_header"].attrs.update({"class": kind, "t_r": facts.t_r or 0.0})
