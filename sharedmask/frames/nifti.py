"""A NIfTI file written volume by volume.

Covers: headers for other values than those they came with, headers as bytes, plain and gzip files.
Does not cover: reading (``source``), temporary names (``files``), shared images (``niimg``).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from sharedmask.errors import ImageError, ParameterError
from sharedmask.typing import Array

_LEVEL = 2  # of ISA-L, which has 0 to 3: smaller than gzip's 1 and five times as fast
_ENDINGS = (".nii", ".nii.gz")
_HEADERS = ("Nifti1Header", "Nifti1PairHeader", "Nifti2Header", "Nifti2PairHeader")


def check_ending(path: Path) -> None:
    """Refuse what is not called ``.nii`` or ``.nii.gz``."""
    if not path.name.lower().endswith(_ENDINGS):
        raise ParameterError(f"{path}: a NIfTI file's name ends in {' or '.join(_ENDINGS)}")


def header_for(header: Any, shape: tuple[int, ...], dtype: np.dtype[Any], affine: Array) -> Any:
    """A NIfTI header for true values of that shape and dtype, with what ``header`` knows.

    Raises
    ------
    ParameterError
        NIfTI cannot hold them.
    """
    kind: Any = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    nothing = np.broadcast_to(np.zeros((), dtype), shape)
    try:
        made = kind(nothing, affine, header, dtype=dtype).header
        made.set_data_dtype(dtype)
    except (HeaderDataError, ValueError) as error:
        raise ParameterError(f"NIfTI cannot hold {dtype} values of shape {shape}: {error}") from error
    made.set_slope_inter(1.0, 0.0)
    return made


def pack_header(header: Any) -> tuple[str, bytes]:
    """The class and the bytes of an image's header, extensions included; as NIfTI-1 if it is another."""
    if type(header).__name__ not in _HEADERS:
        header = nib.Nifti1Header.from_header(header, check=False)
    buffer = BytesIO()
    header.write_to(buffer)
    return type(header).__name__, buffer.getvalue()


def unpack_header(kind: str, content: bytes) -> Any:
    """The opposite of :func:`pack_header`."""
    if kind not in _HEADERS:
        raise ImageError(f"image headers of the kind {kind!r} are not known")
    made = getattr(nib.nifti2 if "Nifti2" in kind else nib.nifti1, kind)
    return made.from_fileobj(BytesIO(content), check=False)


def write(path: Path, header: Any, volumes: Iterable[Array], *, compress: bool) -> None:
    """Write ``volumes``, (X, Y, Z) arrays of the header's dtype, one after the other."""
    with open(path, "wb") as file, _compressed(file, compress) as out:
        out.write(_head(header))
        for volume in volumes:
            for z in range(volume.shape[2]):  # frames of HDF5 files have x as the slowest axis
                out.write(volume[..., z].ravel(order="F").view(np.uint8).data)


def _head(header: Any) -> bytes:
    """The header, its extensions, and padding up to the data."""
    buffer = BytesIO()
    header.write_to(buffer)
    return buffer.getvalue().ljust(header.get_data_offset(), b"\0")


@contextmanager
def _compressed(file: IO[bytes], compress: bool) -> Iterator[Any]:
    if not compress:
        yield file
        return
    from isal import igzip

    # No name and no time in it: the same frames give the same bytes.
    with igzip.IGzipFile("", "wb", _LEVEL, file, mtime=0) as out:
        yield out
