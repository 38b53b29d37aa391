"""Headers: every kind of NIfTI and Analyze, and every file that is no image refused."""

from __future__ import annotations

import bz2
import gzip
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from source_files import (
    AFFINE,
    DATA,
    assert_reads_as_nibabel,
    assert_same,
    gz,
    make,
    patch_header,
    save,
    signal,
)

from sharedmask import Grid, Regions
from sharedmask.errors import (
    DamagedImageError,
    ImageError,
    MaskError,
    MissingFileError,
    ParameterError,
)
from sharedmask.sources.opening import open_source


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr", "a.img", "a.img.gz", "a.hdr.gz", "a.img.bz2"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
def test_nifti_versions_and_pairs(tmp_path: Path, name: str, order: str, version: int) -> None:
    pair = ".nii" not in name
    cls = {
        (1, False): nib.Nifti1Image,
        (2, False): nib.Nifti2Image,
        (1, True): nib.Nifti1Pair,
        (2, True): nib.Nifti2Pair,
    }
    kind = cls[version, pair]
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    kind(signal(), AFFINE, header).to_filename(tmp_path / name)
    source = assert_reads_as_nibabel(tmp_path / name, k=3)
    assert source.compressed == name.endswith(("gz", "bz2"))
    assert [path.exists() for path in source.paths] == [True] * (2 if pair else 1)
    assert source.paths[0].name.startswith("a.img" if pair else "a.nii")


# Where nibabel finds no .mat.gz, gzip of Python 3.14 regrets its half-made file.
@pytest.mark.filterwarnings("ignore:.*GzipFile.__del__:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("cls", [nib.AnalyzeImage, nib.Spm99AnalyzeImage, nib.Spm2AnalyzeImage])
@pytest.mark.parametrize("name", ["a.img", "a.hdr", "a.img.gz"])
def test_analyze_and_spm(tmp_path: Path, cls: Any, name: str) -> None:
    data = signal(dtype=np.float32) / 7
    image = cls(data.astype(np.float32), np.diag([-3.0, 3, 4, 1]))
    image.header.set_data_dtype(np.int16 if cls is not nib.AnalyzeImage else np.float32)
    image.to_filename(tmp_path / name)
    source = assert_reads_as_nibabel(tmp_path / name)
    assert source.t_r is None
    if cls is not nib.AnalyzeImage:
        assert source.slope != 1
        assert [path.suffix for path in source.paths][-1] == (".gz" if name.endswith("gz") else ".mat")


def test_spm_reader_with_its_float32_scaling_is_read_as_nibabel_does(tmp_path: Path) -> None:
    image = nib.Spm99AnalyzeImage((signal() / 7).astype(np.float32), np.diag([-3.0, 3, 4, 1]))
    image.header.set_data_dtype(np.int16)
    image.to_filename(tmp_path / "a.img")
    loaded = nib.Spm99AnalyzeImage.from_filename(tmp_path / "a.img")
    assert_same(open_source(loaded), np.asanyarray(loaded.dataobj))


@pytest.mark.parametrize("slope", [0, np.nan, np.inf, -np.inf])
def test_slope_of_no_meaning_is_unscaled(plain: Path, slope: float) -> None:
    patch_header(plain, scl_slope=slope, scl_inter=7)
    source = assert_reads_as_nibabel(plain)
    assert (source.slope, source.inter, source.scaled_dtype) == (1.0, 0.0, np.int16)


def test_slope_with_invalid_intercept_is_refused(plain: Path) -> None:
    patch_header(plain, scl_slope=2, scl_inter=np.nan)
    for path in (plain, gz(plain.with_suffix(".nii.gz"), gzip.compress(plain.read_bytes()))):
        with pytest.raises(ImageError, match="scl_slope and scl_inter") as caught:
            open_source(path)
        assert str(path) in str(caught.value)


def test_header_extension(tmp_path: Path) -> None:
    image = make()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", os.urandom(70_000)))
    for name in ("a.nii", "a.nii.gz", "a.nii.bz2"):
        image.to_filename(tmp_path / name)
        source = assert_reads_as_nibabel(tmp_path / name)
        assert source.offset > 70_000
        assert len(source.header.extensions) == 1


@pytest.mark.parametrize("says", [0, -16, 7, 2**30])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair])
@pytest.mark.parametrize("order", ["<", ">"])
def test_extensions_of_other_lengths(tmp_path: Path, says: int, kind: Any, order: str) -> None:
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype("i2").newbyteorder(order))
    image = kind(np.ones((2, 2, 2), "i2"), np.eye(4), header)
    for content in (b"first", b"second"):
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", content))
    path = tmp_path / ("a.img" if kind is nib.Nifti1Pair else "a.nii")
    nib.save(image, path)
    assert open_source(path).nbytes == 16
    meta = path.with_suffix(".hdr") if kind is nib.Nifti1Pair else path
    whole = bytearray(meta.read_bytes())
    second = header.sizeof_hdr + 4 + 16
    whole[second : second + 4] = np.array([says], f"{order}i4").tobytes()
    meta.write_bytes(whole)
    with pytest.raises(DamagedImageError, match=rf"extension 2 of its header says that it has {says} bytes"):
        open_source(path)


@pytest.mark.parametrize("kind", ["test.mgz", "example4d+orig.HEAD", "example4d+orig.BRIK.gz", "small.mnc"])
def test_other_formats_are_refused_by_name_and_read_as_objects(kind: str) -> None:
    with pytest.raises(ImageError, match=r"MGHImage|AFNIImage|Minc2Image") as caught:
        open_source(DATA / kind)
    assert str(DATA / kind) in str(caught.value)
    assert "NIfTI" in str(caught.value)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_values_that_are_no_real_numbers(tmp_path: Path, dtype: Any) -> None:
    image = nib.Nifti1Image(np.zeros((2, 2, 2, 3), dtype), AFFINE)
    image.to_filename(tmp_path / "a.nii.gz")
    for given_as in (tmp_path / "a.nii.gz", image, nib.load(tmp_path / "a.nii.gz")):
        with pytest.raises(ImageError, match=r"complex|'R'"):
            open_source(given_as)


@pytest.mark.parametrize("shape", [(4,), (4, 5), (2, 3, 4, 5, 6), (2, 3, 4, 2, 1, 2)])
def test_shapes_that_are_no_run(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = nib.Nifti1Image(np.zeros(shape, np.int16), AFFINE)
    image.to_filename(tmp_path / "a.nii")
    for given_as in (tmp_path / "a.nii", image):
        with pytest.raises(ImageError) as caught:
            open_source(given_as)
        assert str(shape) in str(caught.value)


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 3, 3, 0), (3, 0, 3, 5)])
def test_images_without_voxels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = nib.Nifti1Image(np.zeros(shape, np.int16), AFFINE)
    image.to_filename(tmp_path / "a.nii")
    for given_as in (tmp_path / "a.nii", image):
        with pytest.raises(ImageError, match="no voxels"):
            open_source(given_as)


@pytest.mark.parametrize("lost", ["a.hdr", "a.img"])
@pytest.mark.parametrize("asked", ["a.hdr", "a.img"])
def test_half_of_a_pair(tmp_path: Path, lost: str, asked: str) -> None:
    save(tmp_path / "a.img", cls=nib.Nifti1Pair)
    (tmp_path / lost).unlink()
    with pytest.raises(MissingFileError, match=lost):
        open_source(tmp_path / asked)


@pytest.mark.parametrize(
    "name", ["a.nii", "a.nii.gz", "a.txt", "noextension", "a.hdr", "a.mgz", "a.func.gii", "a.annot"]
)
def test_empty_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DamagedImageError, match="empty") as caught:
        open_source(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["a.nii", "a.txt", "noextension", "a.hdr", "a.json"])
@pytest.mark.parametrize("size", [3, 347, 5000])
def test_files_that_are_no_image(tmp_path: Path, name: str, size: int) -> None:
    (tmp_path / name).write_bytes(b"hello"[:size] * (size // 3))
    with pytest.raises(ImageError, match=r"not an image|no complete image") as caught:
        open_source(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_names_that_lie_about_compression(plain: Path) -> None:
    raw = plain.read_bytes()
    for name, content, said in [
        ("a.nii.gz", raw, "uncompressed data.*says gzip"),
        ("a.nii.gz", bz2.compress(raw), "bzip2 data.*says gzip"),
        ("a.nii.bz2", raw, "uncompressed data.*says bzip2"),
        ("a.nii", gzip.compress(raw), "gzip data.*says uncompressed"),
        ("a.nii", bz2.compress(raw), "bzip2 data.*says uncompressed"),
        ("a.hdr", gzip.compress(raw), "gzip data.*says uncompressed"),
    ]:
        with pytest.raises(DamagedImageError, match=said) as caught:
            open_source(gz(plain.with_name(name), content))
        assert isinstance(caught.value, OSError)
        assert name in str(caught.value)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii.bz2", "a.nii.gz.gz", "a.img.gz"])
@pytest.mark.parametrize("inside", [gzip.compress, bz2.compress])
@pytest.mark.parametrize("size", [10, None])
def test_what_is_compressed_twice(plain: Path, name: str, inside: Any, size: int | None) -> None:
    outside = bz2.compress if name.endswith(".bz2") else gzip.compress
    path = plain.with_name(name)
    content = outside(inside(plain.read_bytes()[:size]))
    path.with_name(name.replace(".img", ".hdr")).write_bytes(content)
    path.write_bytes(content)
    with pytest.raises(DamagedImageError, match=r"compressed twice: it holds (gzip|bzip2) data") as caught:
        open_source(path)
    assert str(plain.with_name(name[:5])) in str(caught.value)


def test_zstd_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="zstd"):
        open_source(gz(tmp_path / "a.nii.zst", b"\x28\xb5\x2f\xfd"))


def test_image_without_affine() -> None:
    with pytest.raises(ImageError, match="no affine"):
        open_source(nib.Nifti1Image(signal(), None))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_an_affine_that_is_not_finite(plain: Path, wrong: float) -> None:
    """Its own voxels would lie on another grid than they do."""
    header = nib.load(plain).header
    header["sform_code"], header["srow_x"][0] = 1, wrong
    with open(plain, "r+b") as file:
        file.write(header.binaryblock)
    for image in (plain, nib.load(plain)):
        with pytest.raises(ImageError, match="an affine that is not finite"):
            open_source(image)
    with pytest.raises(ParameterError, match="affine is of finite numbers"):
        Grid((1, 1, 1), np.diag([wrong, 1, 1, 1]))
    with pytest.raises(MaskError, match="an affine that is not finite"):
        Regions.from_any(plain, Grid((1, 1, 1), np.eye(4)))


@pytest.mark.parametrize("keep", [10, 40])
def test_truncated_within_the_header(plain: Path, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever files are where it is looked at."""
    shutil.copy(plain, plain.with_name("image.nii"))
    for ending, compress in ((".gz", gzip.compress), (".bz2", bz2.compress)):
        plain.with_name(f"image.nii{ending}").write_bytes(compress(plain.read_bytes()))
    monkeypatch.chdir(plain.parent)
    for suffix, compress in ((".nii.gz", gzip.compress), (".nii.bz2", bz2.compress)):
        path = gz(plain.with_suffix(suffix), compress(plain.read_bytes())[:keep])
        with pytest.raises(DamagedImageError) as caught:
            open_source(path)
        assert str(path) in str(caught.value)
