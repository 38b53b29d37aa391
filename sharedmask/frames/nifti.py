"""A NIfTI file written volume by volume.

Covers: headers for other values than those they came with, plain and gzip files.
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

from sharedmask.errors import ParameterError
from sharedmask.sources.nifti import time_of
from sharedmask.typing import Array

_LEVEL = 2  # of ISA-L, which has 0 to 3: smaller than gzip's 1 and five times as fast
_ENDINGS = (".nii", ".nii.gz")


def check_ending(path: Path) -> None:
    """Refuse what is not called ``.nii`` or ``.nii.gz``."""
    if not path.name.lower().endswith(_ENDINGS):
        raise ParameterError(f"{path}: a NIfTI file's name ends in {' or '.join(_ENDINGS)}")


def header_for(
    header: Any, shape: tuple[int, ...], dtype: np.dtype[Any], affine: Array, t_r: float | None
) -> Any:
    """A NIfTI header for true values of that shape, dtype and repetition time, with what ``header`` knows."""
    kind: Any = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    nothing = np.broadcast_to(np.zeros((), dtype), shape)
    try:
        made = kind(nothing, affine, header, dtype=dtype).header
        made.set_data_dtype(dtype)
    except (HeaderDataError, ValueError) as error:
        raise ParameterError(f"NIfTI cannot hold {dtype} values of shape {shape}: {error}") from error
    made.set_slope_inter(1.0, 0.0)
    if t_r is not None and time_of(made) != t_r:  # a sidecar's: the new file has none
        made["pixdim"][4] = t_r
        made.set_xyzt_units(made.get_xyzt_units()[0], "sec")
    return made


def write(path: Path, header: Any, volumes: Iterable[Array], *, compress: bool) -> None:
    """Write ``volumes``, (X, Y, Z) arrays of the header's dtype, one after the other, in its byte order."""
    stored = header.get_data_dtype()
    with open(path, "wb") as file, _compressed(file, compress) as out:
        head = BytesIO()
        header.write_to(head)  # with its extensions
        out.write(head.getvalue().ljust(header.get_data_offset(), b"\0"))
        for volume in volumes:
            for z in range(volume.shape[2]):  # frames of HDF5 files have x as the slowest axis
                values = volume[..., z].ravel(order="F").astype(stored, copy=False)
                out.write(values.view(np.uint8).data)


@contextmanager
def _compressed(file: IO[bytes], compress: bool) -> Iterator[Any]:
    if not compress:
        yield file
        return
    from isal import igzip

    # No name and no time in it: the same frames give the same bytes.
    with igzip.IGzipFile("", "wb", _LEVEL, file, mtime=0) as out:
        yield out
