"""Files of images in every encoding, and what nibabel reads of them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling

from sharedmask.sources.opening import open_source
from sharedmask.sources.source import Source

DATA = Path(nib.__file__).parent / "tests/data"


AFFINE = np.array([[-3.0, 0, 0, 90], [0, 3, 0.5, -120], [0, 0, 4, -60], [0, 0, 0, 1]])


def read(source: Source, k: int = 1) -> np.ndarray:
    """All volumes as stored, (t, n_voxels), k at a time."""
    out = np.empty((source.n_timepoints, source.n_voxels), source.dtype)
    with source.volumes() as reader:
        for first in range(0, len(out), k):
            reader.readinto(out[first : first + k])
        assert reader.remaining == 0
    return out


def values(source: Source, k: int = 1) -> np.ndarray:
    """All values, scaled, in the image's own shape up to 4D."""
    stored = read(source, k)
    scaled = apply_read_scaling(stored, source.slope, source.inter)
    shape = source.shape[:3] if source.ndim == 3 else source.shape
    return scaled.T.reshape(shape, order="F")


def assert_same(source: Source, expected: np.ndarray, k: int = 1) -> None:
    """Values and dtype equal `expected` bit for bit, NaN included."""
    got = values(source, k)
    assert got.dtype.isnative
    assert got.dtype == expected.dtype.newbyteorder("=")
    assert source.scaled_dtype == expected.dtype.newbyteorder("=")
    assert source.dtype.isnative
    np.testing.assert_array_equal(got, expected.reshape(got.shape))


def assert_reads_as_nibabel(path: Path, k: int = 1) -> Source:
    image = nib.load(path)
    source = open_source(path)
    assert_same(source, np.asanyarray(image.dataobj), k)
    np.testing.assert_array_equal(source.affine, image.affine)
    assert not source.affine.flags.writeable
    assert source.affine.dtype == np.float64
    return source


def signal(shape: tuple[int, ...] = (5, 4, 3, 7), dtype: Any = np.int16) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    return rng.integers(0, 200, shape).astype(dtype)


def make(data: np.ndarray | None = None, cls: Any = nib.Nifti1Image, **fields: Any) -> Any:
    data = signal() if data is None else data
    image = cls(data, AFFINE, dtype=data.dtype) if issubclass(cls, nib.Nifti1Pair) else cls(data, AFFINE)
    for name, value in fields.items():
        image.header[name] = value
    return image


def save(path: Path, data: np.ndarray | None = None, cls: Any = nib.Nifti1Image) -> Path:
    make(data, cls).to_filename(path)
    return path


def patch_header(path: Path, **fields: Any) -> Path:
    """Write fields into the header of an uncompressed NIfTI file, as they are."""
    raw = path.read_bytes()
    kind = nib.Nifti2Header if 540 in (raw[0] + 256 * raw[1], raw[3] + 256 * raw[2]) else nib.Nifti1Header
    header = kind(raw[: kind.sizeof_hdr], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + raw[kind.sizeof_hdr :])
    return path


def gz(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def wrong_crc(content: bytes, at: int = -6) -> bytes:
    damaged = bytearray(content)
    damaged[at] ^= 1
    return bytes(damaged)


def peak(call: Any) -> int:
    """Bytes that a call takes at its peak."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
