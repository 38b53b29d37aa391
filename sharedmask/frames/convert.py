"""Converting: frames from one file to another, one at a time.

Covers: NIfTI to NFDH5 and back, files that appear whole or not at all, refusing to replace a file that
is mapped. Does not cover: the layouts (``nfdh5``, ``nifti``), frames that are held (``store``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling

from sharedmask.errors import ParameterError
from sharedmask.frames import nfdh5, nifti
from sharedmask.frames.metadata import Metadata
from sharedmask.frames.nfdh5 import Nfdh5Source, open_frames
from sharedmask.records import dataclass
from sharedmask.sources.source import Facts, Source
from sharedmask.storage import mapped_file
from sharedmask.system.files import atomic_write
from sharedmask.typing import Array


@dataclass(frozen=True)
class Writer:
    """What is known of frames that are to be written."""

    facts: Facts
    metadata: Metadata
    header: Any
    dtype: np.dtype[Any]

    def write_h5(self, path: Path, frames: Iterable[Array], packing: nfdh5.Packing) -> None:
        """Write an NFDH5 file."""
        _check_target(path)
        with atomic_write(path) as file:
            nfdh5.write(file, self.facts, self.metadata, self.header, frames, self.dtype, packing)

    def write_nifti(self, path: Path, frames: Iterable[Array]) -> None:
        """Write a ``.nii`` or ``.nii.gz``."""
        nifti.check_ending(path)
        _check_target(path)
        header = self._nifti_header()
        with atomic_write(path) as file:
            nifti.write(file, header, frames, compress=path.suffix.lower() == ".gz")

    def _nifti_header(self) -> Any:
        shape = (*self.facts.shape[:3], len(self.metadata.numbers))
        return nifti.header_for(self.header, shape, self.dtype, self.facts.affine, self.facts.t_r)

    def image(self, frames: Array) -> nib.Nifti1Image:
        """An image in memory of (X, Y, Z, N) true values."""
        header = self._nifti_header()
        kind: Any = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        made: nib.Nifti1Image = kind(frames, self.facts.affine, header)
        return made


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    compression: str | None = None,
    compression_opts: Any = None,
    version: int = 1,
) -> None:
    """Write the frames of a file to another one, holding one at a time.

    ``source``: NIfTI, Analyze or NFDH5 (``.h5``).
    ``target``: ``.h5``, ``.nii`` or ``.nii.gz``.
    ``compression``, ``compression_opts``, ``version``: of an ``.h5`` file, as in
    :meth:`FrameDataset.to_filename`.

    Raises ImageError, ParameterError: nothing is left behind, and an old target stays as it was.
    """
    opened, path = open_frames(source), Path(target).expanduser()
    here = [file.path for file in opened.files if not file.is_remote]
    if path.exists() and any(os.path.samefile(path, file) for file in here):
        raise ParameterError(f"{path} would be written over itself: give another file")
    metadata = opened.metadata if isinstance(opened, Nfdh5Source) else Metadata.checked(opened.shape)
    writer = Writer(opened, metadata, opened.header, opened.scaled_dtype)
    if nfdh5.is_nfdh5(path):
        writer.write_h5(path, _frames(opened), nfdh5.Packing(version, compression, compression_opts))
        return
    if compression is not None:
        raise ParameterError(f"{path}: compression is for .h5 files; a NIfTI file's name says it")
    writer.write_nifti(path, _frames(opened))


def _frames(source: Source) -> Iterator[Array]:
    """True values, (X, Y, Z); each in the place of the one before."""
    for row in source.each_volume():
        volume = row.reshape(source.shape[:3], order="F")
        yield np.asarray(apply_read_scaling(volume, source.slope, source.inter))


def _check_target(path: Path) -> None:
    if mapped_file.is_mapped(path):
        raise ParameterError(f"{path} is mapped: its frames are in use; write to another file, or close it")
