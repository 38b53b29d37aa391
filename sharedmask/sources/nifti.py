"""NIfTI and Analyze files: their headers, and what these say of an image.

Covers: telling what kind of file it is, reading its header (a compressed one, too), shape, dtype, affine and
repetition time, refusing what is no image. Does not cover: voxels (``source``), decompression (``codecs``).
"""

from __future__ import annotations

import math
import os
import stat
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import Cifti2Image, MGHImage, Nifti1Header, Nifti1Pair, Nifti2Image, Spm99AnalyzeImage
from nibabel.analyze import AnalyzeHeader, AnalyzeImage
from nibabel.gifti.gifti import GiftiImage
from nibabel.imageclasses import all_image_classes
from nibabel.spatialimages import SpatialImage
from nibabel.wrapstruct import WrapStructError

from sharedmask import errors
from sharedmask.decoding.codecs import ENDINGS, Codec, Stream, codec_of, open_raw, open_stream, without_codec
from sharedmask.errors import DamagedImageError, ImageError, MissingFileError
from sharedmask.remote.addresses import named, own_name, url_of
from sharedmask.sources.sidecar import positive
from sharedmask.system import inputs

HEADER = 348  # bytes of a NIfTI-1 or Analyze header; those of NIfTI-2 say that they have 540
HEADER_TIME = "its header"
"""Where a repetition time is from that no sidecar tells."""
_UNTOLD = 1.0, "unknown"  # what nibabel makes of no header
_HEADERS = ("Nifti1Header", "Nifti1PairHeader", "Nifti2Header", "Nifti2PairHeader")
_LAYOUT = {"sizeof_hdr", "magic", "dim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter"}
"""Fields that say how values are stored."""
_HEADER_BYTES = 64 * 2**20  # with extensions
_MAT_BYTES = 2**20
_OFTEN = 4096  # bytes of a header that other images may have, too
SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}


@contextmanager
def as_image_error(name: str) -> Iterator[None]:
    """What nibabel raises on an image it cannot read, as an `ImageError`; the system's own errors pass."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (errors.SharedMaskError, MemoryError)) or getattr(error, "errno", None):
            raise
        where = " (header fields scl_slope and scl_inter)" if "intercept" in str(error) else ""
        raise ImageError(f"{name} cannot be read as an image: {error}{where}") from error


def check_path(path: str, name: str) -> None:
    """Refuse what is no file, or compressed in a way that is not supported."""
    mode = 0
    if url_of(path) is None:
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError):
            raise MissingFileError(f"{name} {inputs.dangling(path) or 'does not exist'}") from None
    if stat.S_ISDIR(mode):
        raise ImageError(f"{name} is a directory; give a file, or a pattern such as {name}/*.nii.gz")
    if named(path).lower().endswith(".zst"):
        raise ImageError(f"{name} is compressed with zstd, which is not supported; recompress it with gzip")


def check_magic(path: str, name: str) -> None:
    """The first bytes are those of the compression that the name tells, or of none."""
    with open_raw(path) as file:
        head = file.read(32)
    if not head:
        raise DamagedImageError(f"{name} is empty (0 bytes)")
    inputs.check_content(head, path)  # of a file on a server
    head = head[:4]
    said = codec_of(path)
    holds = _codec_in(head)
    if holds is not said:
        found, told = (codec.name if codec else "uncompressed" for codec in (holds, said))
        raise DamagedImageError(f"{name} holds {found} data ({head.hex(' ')} ...) where its name says {told}")


def _codec_in(head: bytes) -> Codec | None:
    """By which bytes that begin so are compressed."""
    return next((codec for codec in ENDINGS.values() if head.startswith(codec.magic)), None)


def load(path: str, name: str) -> Any:
    """The nibabel image, of which no voxel is read; ``name`` is the file's in messages.

    The bytes of headers are read here and not by nibabel, which reads as many as they promise. With
    indexed_gzip installed it also refuses files with a wrong checksum or bytes after their end, saying that
    they are of no known type.
    """
    meta = _header_path(path)
    try:
        with open_stream(meta, name) as stream:
            head = _read_head(stream)
            kind = _kind_of(path, meta, head, name)
            extensions = _read_extensions(stream, kind, head, name)
    except ImageError:
        check_magic(meta, name if meta == path else f"{meta} (header of {name})")  # which says why
        raise
    if issubclass(kind, Nifti1Pair):
        _check_extensions(extensions, kind, head, name)
    head += extensions
    if len(kind.files_types) == 1 and len(head) <= _OFTEN:
        return _parsed(kind, head)
    file_map = kind.filespec_to_file_map(named(path))
    file_map["header" if "header" in file_map else "image"].fileobj = BytesIO(head)
    if "mat" in file_map:
        file_map["mat"].fileobj = BytesIO(_read_affines(file_map["mat"].filename))
    return kind.from_file_map(file_map)


@lru_cache(maxsize=32)
def _parsed(kind: Any, head: bytes) -> Any:
    """The image of a header, which many runs of a study have to the byte; nobody changes it."""
    file_map = kind.make_file_map()
    file_map["image"].fileobj = BytesIO(head)
    return kind.from_file_map(file_map)


def _read_head(stream: Stream) -> bytes:
    # No more than the header: in a small file bytes after it may not be the image's.
    head = stream.take(HEADER)
    is_nifti2 = b"\x02\x1c" in (head[2:4], head[1::-1])
    return head + stream.take(540 - HEADER) if is_nifti2 else head


def _kind_of(path: str, meta: str, head: bytes, name: str) -> Any:
    """nibabel's class of the image whose header, in the file ``meta``, begins so."""
    kind = _kind_by(_endings(path), _endings(meta), head)
    if kind is None and (twice := _codec_in(head)) is not None:
        raise DamagedImageError(f"{name} is compressed twice: it holds {twice.name} data; decompress it once")
    if kind is None and len(head) < HEADER:
        raise DamagedImageError(f"{name} is no complete image: {len(head)} bytes, a header is {HEADER}")
    if kind is None or not issubclass(kind, AnalyzeImage):
        raise refused_kind(name, kind)
    return kind


@lru_cache(maxsize=32)
def _kind_by(ending: str, meta_ending: str, head: bytes) -> Any:
    """The class by a header and endings of names, of which a study has few; None if it is of none."""
    told = f"image{ending}", (head, f"image{meta_ending}")
    # With fewer bytes than it looks at nibabel would open what has that name in whatever folder this is.
    kinds = (k for k in all_image_classes if k._meta_sniff_len <= len(head))
    kind: Any = next((k for k in kinds if k.path_maybe_image(*told)[0]), None)
    return Nifti2Image if kind is Cifti2Image else kind  # which leaves the axes as they are


def _endings(path: str) -> str:
    """Of a file's name what tells its kind, at most ``.nii.gz``."""
    return ".".join(["", *os.path.basename(own_name(path)).split(".")[1:][-2:]])


@lru_cache(maxsize=32)
def _data_begin(kind: Any, head: bytes) -> int:
    """What a header says of where the data begin, in its file."""
    return int(kind.header_class(head[: kind.header_class.sizeof_hdr], check=False)["vox_offset"])


def _read_extensions(stream: Stream, kind: Any, head: bytes, name: str) -> bytes:
    """What follows the header up to the data, or (of a pair) to the end of the file."""
    if len(kind.files_types) == 1:
        end = _data_begin(kind, head)
        more = stream.take(end - len(head)) if end <= _HEADER_BYTES else b""
    else:
        more = stream.take(_HEADER_BYTES + 1 - len(head))
        end = len(head) + len(more)
    if end > _HEADER_BYTES:
        raise ImageError(f"{name} says that its header has {end} bytes; at most {_HEADER_BYTES} are read")
    if (there := len(head) + len(more)) < end:
        said = f"its header says that data begin at {end}, and it has {there} bytes"
        raise DamagedImageError(f"{name} is truncated: {said}")
    return more


def _check_extensions(content: bytes, kind: Any, head: bytes, name: str) -> None:
    """Refuse extensions that are not as long as they say; the first byte says whether there are any."""
    if content[:1] in (b"", b"\0"):
        return
    header, is_single = kind.header_class, len(kind.files_types) == 1
    order: Any = "little" if header(head[: header.sizeof_hdr], check=False).endianness == "<" else "big"
    place, number = 4, 1
    while (left := len(content) - place) >= (16 if is_single else 1):
        size = int.from_bytes(content[place : place + 4], order, signed=True)
        if not 8 <= size <= left:
            said = f"extension {number} of its header says that it has {size} bytes, and {left} are left"
            raise DamagedImageError(f"{name} is damaged: {said}")
        place, number = place + size, number + 1


def _read_affines(path: str) -> bytes:
    """SPM's file of an image's affine; empty if there is none."""
    try:
        with open_stream(path, path) as stream:
            return stream.take(_MAT_BYTES)
    except MissingFileError:
        return b""


def _is_pair(path: str) -> bool:
    return without_codec(own_name(path)).lower().endswith((".img", ".hdr"))


def _header_path(path: str) -> str:
    return str(Nifti1Pair.filespec_to_file_map(path)["header"].filename) if _is_pair(path) else path


def refused_kind(name: str, kind: Any) -> ImageError:
    """What to raise for an image of a class, or None, that cannot be served."""
    if kind is None:
        return ImageError(f"{name} is not an image: neither NIfTI nor Analyze, by its name and first bytes")
    if issubclass(kind, GiftiImage):
        return ImageError(
            f"{name} is GIFTI, and compressed as a whole: decompress it, its arrays may be compressed"
        )
    todo = "save it as NIfTI, or give nibabel.load(path), which is read whole into memory"
    if not issubclass(kind, SpatialImage):
        todo = "it holds no volume"
    return ImageError(f"{name} is a {kind.__name__}, neither NIfTI nor Analyze: {todo}")


def facts_of(name: str, image: Any, dtype: np.dtype[Any]) -> dict[str, Any]:
    """What an image's header says, ``slope`` and ``inter`` aside."""
    shape = tuple(int(size) for size in image.shape)
    if len(shape) < 3 or sum(size > 1 for size in shape[3:]) > 1:
        raise ImageError(f"{name} has shape {shape}; an image is (x, y, z) or (x, y, z, time)")
    if min(shape) < 1:
        raise ImageError(f"{name} has no voxels: its shape is {shape}")
    if dtype.kind not in "iuf":
        raise ImageError(f"{name} holds {dtype} values; only real numbers, one per voxel, can be served")
    if image.affine is None:
        raise ImageError(f"{name} has no affine; make the image with one")
    affine = np.array(image.affine, np.float64)
    if not np.isfinite(affine).all():
        raise ImageError(f"{name} has an affine that is not finite, {affine.tolist()}: its header is damaged")
    affine.setflags(write=False)
    return {
        "name": name,
        "shape": (*shape[:3], math.prod(shape[3:])),
        "ndim": min(len(shape), 4),
        "dtype": dtype.newbyteorder("="),
        "affine": affine,
        **_time(name, image.header if len(shape) > 3 else None),
        "header": image.header.copy(),
    }


def files_of(path: str) -> tuple[str, ...]:
    """The file with the voxels, then its header and (of SPM's Analyze) its affine: what there may be."""
    if not _is_pair(path):
        return (path,)
    file_map = Spm99AnalyzeImage.filespec_to_file_map(path)
    return tuple(str(file_map[key].filename) for key in ("image", "header", "mat"))


def _time(name: str, header: Any) -> dict[str, Any]:
    """The repetition time of a header, or of one that is no image of several volumes (None)."""
    seconds, origin = time_of(header), untimed(name)
    if seconds is not None:
        return {"t_r": seconds, "t_r_origin": HEADER_TIME}
    if hasattr(header, "get_xyzt_units") and _stored_time(header) == _UNTOLD:
        origin += "; the header has 1 without a unit, as in images whose repetition time nobody set"
    return {"t_r": None, "t_r_origin": origin}


def untimed(name: str) -> str:
    """Why a repetition time is not known."""
    return f"neither {name} nor a sidecar gives a repetition time"


def time_of(header: Any) -> float | None:
    """pixdim[4] in seconds; None of a format that has no unit, and of what nibabel puts there by itself.

    MGH has milliseconds.
    """
    if isinstance(header, MGHImage.header_class):
        return positive(float(str(header["tr"])) / 1000)
    if not hasattr(header, "get_xyzt_units") or _stored_time(header) == _UNTOLD:
        return None
    stored, unit = _stored_time(header)
    return positive(stored * SECONDS.get(unit, 0.0))


def _stored_time(header: Any) -> tuple[float, str]:
    # Through its shortest decimal form: 0.8 is stored as float32, which is 0.800000012 in float64.
    return float(str(header["pixdim"][4])), header.get_xyzt_units()[1]


# --- headers that travel -------------------------------------------------------------------------


def pack_header(header: Any) -> tuple[str, bytes]:
    """The class and the bytes of an image's header, extensions included; as NIfTI-1 if it is another."""
    header, buffer = _as_nifti(header), BytesIO()
    header.write_to(buffer)
    return type(header).__name__, buffer.getvalue()


def _as_nifti(header: Any) -> Any:
    return header if type(header).__name__ in _HEADERS else nifti1_header(header)


def unpack_header(kind: str, content: bytes) -> Any:
    """The opposite of :func:`pack_header`."""
    if kind not in _HEADERS:
        raise ImageError(f"image headers of the kind {kind!r} are not known")
    made = getattr(nib.nifti2 if "Nifti2" in kind else nib.nifti1, kind)
    return made.from_fileobj(BytesIO(content), check=False)


def nifti1_header(header: Any) -> Nifti1Header:
    """All that NIfTI-1 can say of what a header says."""
    # Of another class nibabel takes over shape, voxel sizes and dtype only.
    made: Nifti1Header = Nifti1Header.from_header(header, check=False)
    if isinstance(header, AnalyzeHeader) and type(header) is not Nifti1Header:
        own = header.structarr.dtype.names
        for name in set(own) & set(made.structarr.dtype.names) - _LAYOUT:
            made[name] = header[name]
    return made


def header_text(header: Any) -> str | None:
    """A header as a record has room for it: without extensions."""
    if header is None:
        return None
    header = _as_nifti(header)
    packed = zlib.compress(header.binaryblock, 9)
    return f"{type(header).__name__} {b64encode(packed).decode()}"


def header_of(text: str | None) -> Any:
    """The opposite of :func:`header_text`.

    Raises ValueError: it holds no header.
    """
    if text is None:
        return None
    kind, _, packed = text.partition(" ")
    try:
        return unpack_header(kind, zlib.decompress(b64decode(packed)))
    except (zlib.error, ImageError, WrapStructError) as error:
        raise ValueError(f"no image header: {error}") from error
