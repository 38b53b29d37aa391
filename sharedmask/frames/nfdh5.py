"""NFDH5: frames and what is known of them in one HDF5 file.

Covers: the layout of the file, reading versions 1 and 2 (nifreeze's, too) and writing version 2, one
volume at a time. Does not cover: temporary names (``registry``), mapping the file (``mapped_file``), what
fields must be (``metadata``).

::

    /              Format, Version; Type of diffusion data
    /0             Type
      dataobj      version 2: (N, X, Y, Z), volume_axis=0; version 1: (X, Y, Z, N)
      affine       (4, 4)
      brainmask, motion_affines, gradients, midframe, bzero, total_duration ...
      _header      the image's header, as bytes
      _numbers     which frame of the original run each is
      _per_frame/, _overall/     fields that nifreeze does not know, and would not read

Uncompressed frames of version 2 lie in the file one after the other, as they are, and can be mapped;
compressed ones are one chunk each.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import isal_zlib

from sharedmask.errors import DamagedImageError, ImageError, MissingFileError, ParameterError
from sharedmask.frames import nifti
from sharedmask.frames.metadata import Metadata
from sharedmask.sources.source import Facts, Source, VolumeReader, open_source
from sharedmask.typing import Array

Read = Callable[[int, Array], None]

ENDINGS = (".h5", ".hdf5")

_VERSIONS = (1, 2)
_FORMATS = ("NFDH5", "EMC/PET")
_PER_FRAME = ("gradients", "midframe", "eddy_xfms", "uptake")  # of nifreeze's
_OVERALL = ("bzero", "total_duration")
_KNOWN = ("dataobj", "affine", "brainmask", "motion_affines", "datahdr")
_BLOCK_BYTES = 8 * 2**20  # read at once where frames are interleaved
_SLAB_BYTES = 2 * 2**20  # read or written at once where they are not
_ISAL_LEVEL = 3  # the highest of ISA-L's, which are faster than zlib's of the same number
_ALIGNMENT = 4096  # of the frames in a file that we write: a page


def is_nfdh5(path: object) -> bool:
    """Whether this is the name of such a file."""
    return isinstance(path, (str, os.PathLike)) and os.fsdecode(path).lower().endswith(ENDINGS)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ParameterError("HDF5 files need h5py: pip install 'sharedmask[frames]'") from error
    return h5py


# --- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Nfdh5Source(Source):
    """The frames of one file, as a source like any image."""

    fields: Metadata = field(repr=False)
    offset: int | None = field(repr=False)
    """Where frames that can be mapped begin, each in C order; else None."""
    volume_axis: int = field(repr=False)

    @contextmanager
    def volumes(self) -> Iterator[VolumeReader]:
        with _opened(self.paths[0], self.name) as file:
            read = _reader(file["0/dataobj"], self.volume_axis, self.dtype)
            yield VolumeReader(self, partial(self._fill, read))

    def _fill(self, read: Read, rows: Array, remaining: int) -> None:
        first = self.n_timepoints - remaining - len(rows)
        for number, row in enumerate(rows, first):
            try:
                read(number, row.reshape(self.shape[:3], order="F"))
            except (OSError, ValueError, isal_zlib.error) as error:  # type: ignore[misc]
                raise DamagedImageError(f"{self.name} cannot be read at frame {number}: {error}") from error

    def _identify(self, digest: Any) -> None:
        status = os.stat(self.paths[0])
        digest.update(repr((os.path.realpath(self.paths[0]), status.st_size, status.st_mtime_ns)).encode())


def _reader(dataset: Any, axis: int, dtype: np.dtype[Any]) -> Read:
    """The function that reads a frame into an (X, Y, Z) array."""
    if axis == 3:
        return _Interleaved(dataset, dtype)
    if _is_deflated(dataset, dtype):
        return partial(_inflate, dataset, dtype)
    return partial(_read_slabs, dataset, dtype)


def _is_deflated(dataset: Any, dtype: np.dtype[Any]) -> bool:
    """Whether each frame is one chunk of deflated values and nothing else."""
    whole = dataset.chunks == (1, *dataset.shape[1:]) and dataset.id.get_num_chunks() == len(dataset)
    return whole and dataset.dtype == dtype and _deflates_only(dataset)


def _inflate(dataset: Any, dtype: np.dtype[Any], number: int, out: Array) -> None:
    """HDF5 itself takes several frames of memory for this."""
    skipped, packed = dataset.id.read_direct_chunk((number, 0, 0, 0))
    decoder = isal_zlib.decompressobj()
    for slab in _slabs(out):
        nbytes = slab.size * dtype.itemsize
        values = packed[:nbytes] if skipped else decoder.decompress(packed, nbytes)
        packed = packed[nbytes:] if skipped else decoder.unconsumed_tail
        slab[...] = np.frombuffer(values, dtype).reshape(slab.shape)
    if not skipped:
        decoder.flush()  # the checksum


def _read_slabs(dataset: Any, dtype: np.dtype[Any], number: int, out: Array) -> None:
    start = 0
    for slab in _slabs(out):
        values = np.empty(slab.shape, dtype)
        dataset.read_direct(values, np.s_[number, start : start + len(slab)])
        slab[...] = values
        start += len(slab)


def _slabs(volume: Array) -> Iterator[Array]:
    """The volume in parts along x, small beside it: in the file x is the slowest axis of a frame."""
    step = max(1, _SLAB_BYTES * len(volume) // max(volume.nbytes, 1))
    for start in range(0, len(volume), step):
        yield volume[start : start + step]


class _Interleaved:
    """Frames of version 1: as many at once as a block holds, since each pass goes over the whole file."""

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

    Raises
    ------
    MissingFileError
    DamagedImageError
        It is not HDF5, or not complete.
    ImageError
        It is HDF5 of another format or version, or its frames are of a kind that cannot be served.
    """
    name = os.fsdecode(path)
    found = Path(os.path.abspath(os.path.expanduser(name)))
    with _opened(found, name) as file:
        root, version = _checked_root(file, name)
        dataset = root["dataobj"]
        axis = int(dataset.attrs.get("volume_axis", 3))
        header, t_r = _read_header(root)
        facts = _facts(name, dataset, axis, np.asarray(root["affine"], np.float64), t_r)
        fields = _read_fields(root, facts["shape"], name)
        offset = _map_offset(dataset, facts["dtype"], axis)
    if version == 1 and axis != 3:
        raise ImageError(f"{name} says version 1 and volume_axis={axis}: version 1 has it last")
    return Nfdh5Source(**facts, paths=(found,), header=header, fields=fields, offset=offset, volume_axis=axis)


def open_frames(source: Any) -> Source:
    """The source of an NFDH5 file, or of an image."""
    return open_nfdh5(source) if is_nfdh5(source) else open_source(source)


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Any]:
    h5py = _h5py()
    if not path.exists():
        raise MissingFileError(f"{name} does not exist")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if error.errno:
            raise
        raise DamagedImageError(f"{name} cannot be read as HDF5: {error}") from error
    with file:
        yield file


def _checked_root(file: Any, name: str) -> tuple[Any, int]:
    told, version = _text(file.attrs.get("Format")), file.attrs.get("Version")
    if told not in _FORMATS:
        raise ImageError(f"{name} is no NFDH5 file: its Format is {told!r}, not one of {_FORMATS}")
    if version not in _VERSIONS:
        raise ImageError(f"{name} is NFDH5 of version {version}; versions {_VERSIONS} can be read")
    missing = [one for one in ("dataobj", "affine") if f"0/{one}" not in file]
    if missing:
        raise DamagedImageError(f"{name} has no {' and no '.join(missing)}")
    return file["0"], int(version)


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _facts(name: str, dataset: Any, axis: int, affine: Array, t_r: float | None) -> dict[str, Any]:
    if dataset.ndim != 4 or axis not in (0, 3) or not dataset.size:
        raise ImageError(
            f"{name} has frames of shape {dataset.shape} with volume_axis={axis}; 4 axes are needed"
        )
    dtype = np.dtype(np.uint8) if dataset.dtype == bool else dataset.dtype.newbyteorder("=")
    if dtype.kind not in "iuf":
        raise ImageError(f"{name} holds {dtype} values; only real numbers can be served")
    if affine.shape != (4, 4):
        raise DamagedImageError(f"{name} has an affine of shape {affine.shape}, not (4, 4)")
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
    }


def _map_offset(dataset: Any, dtype: np.dtype[Any], axis: int) -> int | None:
    whole = axis == 0 and dataset.chunks is None and dataset.dtype == dtype and not dataset.external
    offset = dataset.id.get_offset() if whole else None
    return offset if offset is not None and offset % dtype.itemsize == 0 else None


def _read_fields(root: Any, shape: tuple[int, int, int, int], name: str) -> Metadata:
    arrays = {key: root[key][()] for key in root if not key.startswith("_") and key not in _KNOWN}
    brain, affines = (root[key][()] if key in root else None for key in ("brainmask", "motion_affines"))
    ours = {kind: {key: value[()] for key, value in root.get(kind, {}).items()} for kind in _GROUPS}
    per_frame = {key: value for key, value in arrays.items() if key in _PER_FRAME}
    try:
        return Metadata.checked(
            shape,
            brainmask=brain,
            motion_affines=affines,
            per_frame=_ordered(root, per_frame | ours["_per_frame"]),
            overall={key: arrays[key] for key in arrays if key not in per_frame} | ours["_overall"],
            numbers=root["_numbers"][()] if "_numbers" in root else None,
        )
    except ParameterError as error:
        raise DamagedImageError(f"{name}: {error}") from error


_GROUPS = ("_per_frame", "_overall")


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
    header = nifti.unpack_header(_text(stored.attrs["class"]), stored[()].tobytes())
    return header, float(stored.attrs["t_r"]) or None


# --- writing -------------------------------------------------------------------------------------


def write(
    path: Path,
    facts: Facts,
    fields: Metadata,
    header: Any,
    volumes: Iterable[Array],
    *,
    dtype: np.dtype[Any],
    compression: str | None = None,
    compression_opts: Any = None,
) -> None:
    """Write ``volumes``, (X, Y, Z) arrays of ``dtype``, one after the other, and what is known of them."""
    h5py = _h5py()
    aligned = {"alignment_threshold": _ALIGNMENT, "alignment_interval": _ALIGNMENT}
    # Through a file object: HDF5 itself looks for the name of the file, and it may have none yet.
    with open(path, "w+b", buffering=0) as raw, h5py.File(raw, "w", **aligned) as file:
        root = _write_head(file, fields)
        _write_fields(root, facts, fields, header)
        shape = (len(fields.numbers), *facts.shape[:3])
        dataset = _create_frames(root, shape, dtype, compression, compression_opts)
        store = _deflate if _deflates_only(dataset) else _write_slabs
        for number, volume in enumerate(volumes):
            store(dataset, number, volume)


def _write_head(file: Any, fields: Metadata) -> Any:
    is_pet = "midframe" in fields.per_frame
    file.attrs["Format"] = "EMC/PET" if is_pet else "NFDH5"
    file.attrs["Version"] = np.uint16(2)
    if "gradients" in fields.per_frame:
        file.attrs["Type"] = "dmri"
    root = file.create_group("0")
    root.attrs["Type"] = "pet" if is_pet else "base dataset"
    return root


def _write_fields(root: Any, facts: Facts, fields: Metadata, header: Any) -> None:
    root["affine"] = facts.affine
    for name in ("brainmask", "motion_affines"):
        if getattr(fields, name) is not None:
            root[name] = getattr(fields, name)
    _write_group(root, "_per_frame", fields.per_frame, _PER_FRAME)
    _write_group(root, "_overall", fields.overall, _OVERALL)
    if fields.per_frame:
        root.attrs["_order"] = list(fields.per_frame)
    root["_numbers"] = fields.numbers
    _write_header(root, header, facts.t_r)


def _write_group(root: Any, group: str, arrays: Mapping[str, Array], known: tuple[str, ...]) -> None:
    for name, values in arrays.items():
        root[name if name in known else f"{group}/{name}"] = values


def _write_header(root: Any, header: Any, t_r: float | None) -> None:
    kind, content = nifti.pack_header(header)
    root["_header"] = np.frombuffer(content, np.uint8)
    root["_header"].attrs["class"] = kind
    root["_header"].attrs["t_r"] = t_r or 0.0


def _create_frames(
    root: Any, shape: tuple[int, ...], dtype: np.dtype[Any], compression: str | None, compression_opts: Any
) -> Any:
    packing = {"compression": compression, "compression_opts": compression_opts, "chunks": (1, *shape[1:])}
    try:
        dataset = root.create_dataset("dataobj", shape, dtype, **(packing if compression else {}))
    except (ValueError, TypeError) as error:
        said = f"compression={compression!r} with compression_opts={compression_opts!r}"
        raise ParameterError(f"{said} is none that HDF5 has: {error}") from error
    dataset.attrs["volume_axis"] = 0
    return dataset


def _deflates_only(dataset: Any) -> bool:
    return bool(dataset.compression == "gzip" and dataset.id.get_create_plist().get_nfilters() == 1)


def _deflate(dataset: Any, number: int, volume: Array) -> None:
    """HDF5 itself takes several frames of memory for this, and more time at low levels."""
    level = dataset.compression_opts
    encoder = isal_zlib.compressobj(level) if level <= _ISAL_LEVEL else zlib.compressobj(level)
    parts = [encoder.compress(np.ascontiguousarray(slab).data) for slab in _slabs(volume)]
    dataset.id.write_direct_chunk((number, 0, 0, 0), b"".join([*parts, encoder.flush()]))


def _write_slabs(dataset: Any, number: int, volume: Array) -> None:
    start = 0
    for slab in [volume] if dataset.chunks else _slabs(volume):  # a chunk is compressed whole
        dataset.write_direct(np.ascontiguousarray(slab), dest_sel=np.s_[number, start : start + len(slab)])
        start += len(slab)
