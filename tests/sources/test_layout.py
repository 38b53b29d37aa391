"""Where values can be mapped as they are, and why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from source_files import (
    AFFINE,
    make,
    patch_header,
    save,
    signal,
)

from sharedmask.sources.layout import FileLayout
from sharedmask.sources.opening import open_source
from sharedmask.sources.transform import smoothed


def foreign(path: Path) -> Path:
    nib.save(nib.Nifti1Image(signal(), AFFINE, nib.Nifti1Header(endianness=">")), path)
    return path


def unaligned(path: Path) -> Path:
    patch_header(save(path), vox_offset=353)
    path.write_bytes(path.read_bytes() + b"0")
    return path


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda folder: save(folder / "a.nii.gz"), "compressed"),
        (lambda folder: foreign(folder / "a.nii"), "foreign byte order"),
        (lambda folder: unaligned(folder / "a.nii"), "byte 353, which is not aligned"),
        (lambda folder: [save(folder / f"{i}.nii", signal()[..., 0]) for i in range(2)], "not one file"),
        (lambda folder: make(), "not one file"),
        (lambda folder: smoothed(open_source(save(folder / "a.nii")), 4), "smoothed or resampled"),
    ],
    ids=["compressed", "foreign", "not aligned", "series", "in memory", "smoothed"],
)
def test_why_values_cannot_be_mapped(tmp_path: Path, write: Any, said: str) -> None:
    layout = open_source(write(tmp_path)).layout
    assert isinstance(layout, str) and said in layout


@pytest.mark.parametrize("name", ["a.nii", "a.img"])
def test_where_values_can_be_mapped(tmp_path: Path, name: str) -> None:
    layout = open_source(
        save(tmp_path / name, cls=nib.Nifti1Pair if name == "a.img" else nib.Nifti1Image)
    ).layout
    assert isinstance(layout, FileLayout) and layout.order == "F"
    found = np.memmap(layout.path, layout.dtype, "r", layout.offset, signal().shape, layout.order)
    np.testing.assert_array_equal(found, signal())
