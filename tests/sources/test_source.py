"""What images are, and their volumes: every encoding against what nibabel reads, and every refusal."""

from __future__ import annotations

import bz2
import gzip
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.spatialimages import SpatialImage
from source_files import (
    AFFINE,
    DATA,
    assert_reads_as_nibabel,
    assert_same,
    gz,
    make,
    patch_header,
    peak,
    read,
    save,
    signal,
    values,
    wrong_crc,
)

from sharedmask.errors import (
    DamagedImageError,
    ImageError,
    MissingFileError,
    ParameterError,
    SourceChangedError,
)
from sharedmask.sources.opening import open_source
from sharedmask.sources.source import ArraySource, FileSource, SeriesSource, Source
from sharedmask.sources.transform import smoothed
from sharedmask.system import platform

# ---- encodings


@pytest.mark.parametrize(
    "dtype",
    [
        np.uint8,
        np.int8,
        np.uint16,
        np.int16,
        np.uint32,
        np.int32,
        np.uint64,
        np.int64,
        np.float32,
        np.float64,
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nii.bz2"])
def test_every_dtype_in_both_byte_orders(tmp_path: Path, dtype: Any, order: str, name: str) -> None:
    data = signal(dtype=dtype)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(dtype)
    nib.Nifti1Image(data, AFFINE, header).to_filename(tmp_path / name)
    source = assert_reads_as_nibabel(tmp_path / name, k=2)
    np.testing.assert_array_equal(values(source), data)
    assert source.dtype == dtype
    assert source.nbytes == data.nbytes
    assert source.shape == data.shape
    assert (source.n_voxels, source.n_timepoints) == (60, 7)


@pytest.mark.parametrize(("slope", "inter"), [(0.25, -100.0), (1.0, 5.0), (-2.0, 0.0), (1e30, 1e30)])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.int64])
def test_scaled_values_stay_stored(plain: Path, slope: float, inter: float, dtype: Any) -> None:
    save(plain, signal(dtype=dtype))
    patch_header(plain, scl_slope=slope, scl_inter=inter)
    source = assert_reads_as_nibabel(plain)
    assert source.dtype == dtype
    assert (source.slope, source.inter) == (float(np.float32(slope)), float(np.float32(inter)))
    np.testing.assert_array_equal(read(source), signal(dtype=dtype).reshape(-1, 7, order="F").T)


def test_nan_and_inf_are_kept(tmp_path: Path) -> None:
    data = signal(dtype=np.float32)
    data[0, 0], data[1, 1] = np.nan, np.inf
    assert_reads_as_nibabel(save(tmp_path / "a.nii.gz", data))


def test_bytes_after_the_data(plain: Path) -> None:
    raw = plain.read_bytes() + b"more" * 1000
    plain.write_bytes(raw)
    assert_reads_as_nibabel(plain)
    assert_reads_as_nibabel(gz(plain.with_suffix(".nii.gz"), gzip.compress(raw)))
    assert_reads_as_nibabel(gz(plain.with_suffix(".nii.bz2"), bz2.compress(raw)))


# ---- properties

DTYPES = st.sampled_from([np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
SHAPES = st.one_of(
    st.tuples(*[st.integers(1, 6)] * 3),
    st.tuples(*[st.integers(1, 6)] * 3, st.integers(1, 9)),
    st.tuples(*[st.integers(1, 6)] * 3, st.just(1), st.integers(1, 9)),
    st.tuples(*[st.integers(1, 6)] * 3, st.integers(1, 9), st.just(1)),
)
FLOAT32 = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


def members(data: st.DataObject, raw: bytes, compress: Callable[[bytes], bytes]) -> bytes:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=4), label="cuts"))
    edges = zip([0, *cuts], [*cuts, len(raw)], strict=True)
    return b"".join(compress(raw[start:end]) for start, end in edges)


CONTAINERS = ["nii", "gz", "bz2", "pair", "pair.gz", "analyze"]


@settings(max_examples=60)
@given(st.data(), SHAPES, DTYPES, st.sampled_from("<>"), st.booleans(), st.sampled_from(CONTAINERS))
def test_any_image_reads_as_nibabel_reads_it(
    tmp_path: Path,
    data: st.DataObject,
    shape: tuple[int, ...],
    dtype: Any,
    order: str,
    second: bool,
    container: str,
) -> None:
    dtype = np.int16 if container == "analyze" else dtype
    stored = signal(shape, dtype)
    kind: Any = nib.AnalyzeImage
    if container in ("nii", "gz", "bz2"):
        kind = nib.Nifti2Image if second else nib.Nifti1Image
    elif container != "analyze":
        kind = nib.Nifti2Pair if second else nib.Nifti1Pair
    header = kind.header_class(endianness=order)
    header.set_data_dtype(dtype)
    plain = tmp_path / ("a.nii" if ".nii" in str(kind.files_types) else "a.img")
    kind(stored, np.eye(4), header).to_filename(plain)
    files = [plain] if plain.suffix == ".nii" else [plain.with_suffix(".hdr"), plain]
    if container != "analyze":
        scaling = {
            "scl_slope": data.draw(FLOAT32, label="slope"),
            "scl_inter": data.draw(FLOAT32, label="inter"),
        }
        patch_header(files[0], **scaling)
    oracle = np.asanyarray(nib.load(plain).dataobj).copy()
    suffix = {"gz": ".gz", "bz2": ".bz2", "pair.gz": ".gz"}.get(container, "")
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, "": bytes}[suffix]
    for file in files:
        gz(tmp_path / (file.name + suffix), members(data, file.read_bytes(), compress))
    path = tmp_path / (plain.name + suffix)
    source = open_source(path)
    assert_same(source, oracle, k=data.draw(st.integers(1, source.n_timepoints), label="k"))
    assert source.ndim == (3 if len(shape) == 3 else 4)


@settings(max_examples=60)
@given(st.data())
def test_any_cut_of_a_file_is_refused_or_complete(tmp_path: Path, data: st.DataObject) -> None:
    """However few bytes are missing, no wrong value is ever delivered."""
    raw = save(tmp_path / "a.nii").read_bytes()
    compress, suffix = data.draw(st.sampled_from([(gzip.compress, ".gz"), (bz2.compress, ".bz2")]))
    content = members(data, raw, compress)
    path = gz(
        tmp_path / f"a.nii{suffix}", content[: data.draw(st.integers(0, len(content) - 1), label="keep")]
    )
    try:
        got = values(open_source(path))
    except ImageError as error:
        assert str(path) in str(error)
    else:
        np.testing.assert_array_equal(got, signal())


@settings(max_examples=50)
@given(st.data())
def test_any_wrong_byte_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    raw = save(tmp_path / "a.nii").read_bytes()
    content = bytearray(members(data, raw, gzip.compress))
    where = data.draw(st.integers(0, len(content) - 1), label="where")
    content[where] ^= data.draw(st.integers(1, 255), label="flip")
    try:
        got = values(open_source(gz(tmp_path / "a.nii.gz", bytes(content))))
    except ImageError as error:
        assert "a.nii.gz" in str(error)
    else:
        np.testing.assert_array_equal(got, signal())


# ---- real files


@pytest.mark.parametrize(
    ("name", "dtype", "t_r"),
    [
        ("functional.nii", "int16", 1.0),
        ("example4d.nii.gz", "int16", 2000.0),
        ("example_nifti2.nii.gz", "int16", 2000.0),
        ("anatomical.nii", "int16", None),
        ("reoriented_anat_moved.nii", "float32", None),
        ("resampled_anat_moved.nii", "float32", None),
        ("standard.nii.gz", "uint8", None),
    ],
)
def test_real_files(name: str, dtype: str, t_r: float | None) -> None:
    source = assert_reads_as_nibabel(DATA / name, k=2 if "4d" in name else 1)
    assert source.dtype == dtype
    assert source.name == str(DATA / name)
    assert source.ndim == len(nib.load(DATA / name).shape)
    if t_r != 1.0:
        assert source.t_r == t_r


@pytest.mark.parametrize(
    ("name", "t_r"),
    # FreeSurfer's is in milliseconds: of 2 of them.
    [("test.mgz", 0.002), ("example4d+orig.HEAD", None), ("scaled+tlrc.HEAD", None), ("tiny.mnc", None)],
)
def test_loaded_images_of_other_formats(name: str, t_r: float | None) -> None:
    image = nib.load(DATA / name)
    source = open_source(image)
    assert isinstance(source, ArraySource)
    assert source.t_r == t_r
    assert name.split("+")[0] in source.name
    assert_same(source, np.asanyarray(image.dataobj))
    assert source.paths == ()


# ---- refusals


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 3, 4, 1, 5), (2, 3, 4, 5)),
        ((2, 3, 4, 5, 1), (2, 3, 4, 5)),
        ((2, 3, 4, 1), (2, 3, 4, 1)),
        ((2, 3, 4, 1, 1), (2, 3, 4, 1)),
    ],
)
def test_axes_of_length_one(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    image = nib.Nifti1Image(signal(shape), AFFINE)
    image.to_filename(tmp_path / "a.nii.gz")
    for given_as in (tmp_path / "a.nii.gz", image):
        source = open_source(given_as)
        assert (source.shape, source.ndim) == (expected, 4)
        assert_same(source, signal(shape))


def test_three_axes_are_one_volume(tmp_path: Path) -> None:
    source = open_source(save(tmp_path / "a.nii", signal((2, 3, 4))))
    assert (source.shape, source.ndim, source.t_r) == ((2, 3, 4, 1), 3, None)


def test_missing_and_directory(tmp_path: Path) -> None:
    for name in ("no.nii.gz", "no.img", "no-*.nii"):
        with pytest.raises(MissingFileError) as caught:
            open_source(str(tmp_path / name))
        assert isinstance(caught.value, FileNotFoundError)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(MissingFileError, match="named by an empty text"):
        open_source("")
    for name in ("pointer.nii", "pointer.nii.gz"):
        (tmp_path / name).write_text("/annex/objects/MD5E-s7--0.nii.gz\n")
        with pytest.raises(MissingFileError, match=rf"{name} is a pointer of git-annex .*datalad get"):
            open_source(tmp_path / name)
    with pytest.raises(ImageError, match="directory") as refused:
        open_source(tmp_path)
    assert str(tmp_path) in str(refused.value)
    (tmp_path / "link.nii").symlink_to(tmp_path / "target.nii")
    with pytest.raises(MissingFileError, match=r"link to .*target\.nii"):
        open_source(tmp_path / "link.nii")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    with pytest.raises(MissingFileError, match=r"loop\.nii is a link that leads back to itself$"):
        open_source(tmp_path / "loop.nii")


def test_file_that_goes_after_opening(plain: Path) -> None:
    source = open_source(plain)
    plain.unlink()
    with pytest.raises(MissingFileError, match=r"run\.nii"), source.volumes():
        pass


def test_unreadable_file_is_an_os_error(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patch, pytest.raises(PermissionError, match=r"run\.nii") as caught:
        patch.setattr(platform.os, "open", refuse)
        open_source(plain)
    assert not isinstance(caught.value, ImageError)


@pytest.mark.parametrize("given_as", [None, 3, np.zeros((2, 2, 2)), {}, iter(()), [None], [np.zeros(3)]])
def test_what_is_no_image_at_all(given_as: Any) -> None:
    with pytest.raises(ImageError, match=r"not (NoneType|int|ndarray|dict|tuple_iterator)"):
        open_source(given_as)


# ---- damage


def numbers(error: BaseException) -> set[int]:
    return {int(word) for word in str(error).replace(",", " ").split() if word.isdigit()}


@pytest.mark.parametrize("keep", [352, 353, 1000, -1])
def test_truncated_plain_file(plain: Path, keep: int) -> None:
    raw = plain.read_bytes()
    plain.write_bytes(raw[:keep])
    with pytest.raises(DamagedImageError, match="truncated") as caught:
        open_source(plain)
    assert str(plain) in str(caught.value)
    assert {840, len(raw[:keep]) - 352} <= numbers(caught.value)


def test_plain_file_truncated_after_opening(plain: Path) -> None:
    source = open_source(plain)
    os.truncate(plain, 1000)
    with pytest.raises(SourceChangedError, match=r"run\.nii changed after it was opened"):
        read(source)


@pytest.mark.parametrize("keep", [353, 500, 1191])
@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize(("compress", "suffix"), [(gzip.compress, ".nii.gz"), (bz2.compress, ".nii.bz2")])
def test_shorter_than_the_header_promises(plain: Path, keep: int, k: int, compress: Any, suffix: str) -> None:
    path = gz(plain.with_suffix(suffix), compress(plain.read_bytes()[:keep]))
    with pytest.raises(DamagedImageError, match="truncated") as caught:
        read(open_source(path), k)
    assert str(path) in str(caught.value)
    assert {840, keep - 352} <= numbers(caught.value)


@pytest.mark.parametrize("lost", [1, 4, 8, 9, 300, 1000])
@pytest.mark.parametrize("proxy", [False, True])
def test_truncated_gzip(tmp_path: Path, lost: int, proxy: bool) -> None:
    data = signal((20, 20, 10, 9))
    raw = gzip.compress(save(tmp_path / "a.nii", data).read_bytes())
    path = gz(tmp_path / "a.nii.gz", raw)
    image = nib.load(path)
    path.write_bytes(raw[:-lost])
    with pytest.raises(DamagedImageError, match="truncated") as caught:
        read(open_source(image if proxy else path), k=4)
    assert str(path) in str(caught.value)
    assert data.nbytes in numbers(caught.value) or data.nbytes + 352 in numbers(caught.value)


# ---- reading


def test_one_row_or_many(plain: Path) -> None:
    source = open_source(plain)
    row, rows = np.empty(60, np.int16), np.empty((6, 60), np.int16)
    with source.volumes() as reader:
        reader.readinto(row)
        assert reader.remaining == 6
        reader.readinto(rows)
    np.testing.assert_array_equal(np.vstack([row, rows]), read(source))


def test_readers_are_independent(plain: Path) -> None:
    source = open_source(plain)
    first, second = np.empty((2, 7, 60), np.int16)
    with source.volumes() as one, source.volumes() as other:
        for time in range(7):
            one.readinto(first[time])
            other.readinto(second[time])
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    "out",
    [
        np.empty(60, np.float32),
        np.empty(59, np.int16),
        np.empty((60, 2), np.int16),
        np.empty((2, 60), np.int16, order="F"),
        np.empty((1, 2, 60), np.int16),
        np.empty(60, ">i2"),
        np.empty(120, np.int16)[::2],
        np.frombuffer(bytes(120), np.int16),
    ],
)
def test_buffers_that_do_not_fit(plain: Path, out: np.ndarray) -> None:
    with open_source(plain).volumes() as reader:
        with pytest.raises(ParameterError, match=r"\(60,\)"):
            reader.readinto(out)
        assert reader.remaining == 7


def test_no_volume_beyond_the_last(plain: Path) -> None:
    with open_source(plain).volumes() as reader:
        reader.readinto(np.empty((5, 60), np.int16))
        with pytest.raises(ParameterError, match="2 volumes left, not 3"):
            reader.readinto(np.empty((3, 60), np.int16))
        reader.readinto(np.empty((2, 60), np.int16))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nii.bz2"])
def test_files_are_closed(tmp_path: Path, name: str) -> None:
    source = open_source(save(tmp_path / name))
    before = os.listdir("/proc/self/fd")
    with source.volumes() as reader:
        reader.readinto(np.empty(60, np.int16))
    with pytest.raises(ZeroDivisionError), source.volumes():
        raise ZeroDivisionError
    assert os.listdir("/proc/self/fd") == before


# ---- images as objects


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nii.bz2", "a.img"])
def test_loaded_image_is_streamed_and_left_untouched(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, cls=nib.Nifti1Pair if name == "a.img" else nib.Nifti1Image)
    image = nib.load(tmp_path / name)
    source = open_source(image)
    assert isinstance(source, FileSource)
    assert_same(source, signal())
    assert not image.in_memory
    assert nib.is_proxy(image.dataobj)
    assert "_opener" not in vars(image.dataobj)
    assert source.paths == open_source(tmp_path / name).paths
    assert source.fingerprint == open_source(tmp_path / name).fingerprint


def test_proxy_keeps_its_facts_and_the_image_its_affine(plain: Path) -> None:
    patch_header(plain, scl_slope=0.5, scl_inter=3)
    loaded = nib.load(plain)
    image = nib.Nifti1Image(loaded.dataobj, np.eye(4), loaded.header)
    image.header.set_slope_inter(7, 7)
    source = open_source(image)
    assert (source.slope, source.inter) == (0.5, 3)
    np.testing.assert_array_equal(source.affine, np.eye(4))
    assert_same(source, np.asanyarray(loaded.dataobj))
    assert source.fingerprint != open_source(plain).fingerprint


def test_reshaped_proxy(plain: Path) -> None:
    image = nib.Nifti1Image(nib.load(plain).dataobj.reshape((5, 4, 21, 1)), AFFINE)
    assert_same(open_source(image), signal().reshape((5, 4, 21, 1), order="F"))


def test_proxy_of_an_mgz_in_a_nifti_image(tmp_path: Path) -> None:
    loaded = nib.load(DATA / "test.mgz")
    image = nib.Nifti1Image(loaded.dataobj, loaded.affine)
    assert_same(open_source(image), np.asanyarray(loaded.dataobj))


def test_loaded_image_whose_file_is_gone(plain: Path) -> None:
    image = nib.load(plain)
    plain.unlink()
    with pytest.raises(MissingFileError, match=r"run\.nii"):
        open_source(image)


@pytest.mark.parametrize(
    "data",
    [
        signal(),
        np.asfortranarray(signal()),
        signal().astype(">f4"),
        signal()[::-1, :, ::2],
    ],
    ids=["C", "F", "big-endian", "strided"],
)
def test_image_in_memory(data: np.ndarray) -> None:
    image = nib.Nifti1Image(data, AFFINE, dtype=np.float32)
    source = open_source(image)
    assert isinstance(source, ArraySource)
    assert source.name == "Nifti1Image in memory"
    assert (source.paths, source.compressed) == ((), False)
    assert_same(source, data, k=3)


@pytest.mark.parametrize(("dtype", "stored"), [(bool, "u1"), ("f2", "f2"), (np.longdouble, np.longdouble)])
def test_dtypes_that_only_memory_can_hold(dtype: Any, stored: Any) -> None:
    data = (signal() % 2).astype(dtype)
    source = open_source(SpatialImage(data, AFFINE))
    assert source.dtype == stored
    assert_same(source, data.astype(stored))


def test_sliced_image_and_file_like_objects(plain: Path) -> None:
    sliced = nib.load(plain).slicer[1:4, :, :, 2:5]
    assert_same(open_source(sliced), signal()[1:4, :, :, 2:5])
    image = nib.Nifti1Image.from_bytes(plain.read_bytes())
    assert isinstance(open_source(image), ArraySource)
    assert_same(open_source(image), signal())
    assert not image.in_memory


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_does_not_say_where_data_begin(tmp_path: Path, name: str) -> None:
    raw = patch_header(save(tmp_path / "whole.nii"), vox_offset=0).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(raw, 1) if name.endswith("gz") else raw)
    assert_reads_as_nibabel(tmp_path / name, k=2)


@pytest.mark.some(1)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("offset", [1e8, 2.5e9, 3e38, float("inf"), float("nan"), -1e9])
def test_a_header_that_promises_too_much_of_itself_takes_no_memory(
    tmp_path: Path, name: str, offset: float
) -> None:
    raw = patch_header(save(tmp_path / "whole.nii"), vox_offset=offset).read_bytes()
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw + bytes(2**28), 1) if name.endswith("gz") else raw)

    def refused() -> None:
        with pytest.raises(ImageError, match=re.escape(name)):
            open_source(path)

    assert peak(refused) < 8 * 2**20


@pytest.mark.parametrize("size", [32767, 5000])
def test_gzip_that_cannot_hold_what_its_header_promises_is_truncated(tmp_path: Path, size: int) -> None:
    raw = patch_header(save(tmp_path / "whole.nii"), dim=[4, *4 * [size], 1, 1, 1]).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(raw))
    with pytest.raises(DamagedImageError, match=f"promises {2 * size**4} bytes"):
        open_source(tmp_path / "a.nii.gz")


def test_source_is_returned_as_it_is(plain: Path) -> None:
    source = open_source(plain)
    assert open_source(source) is source


def test_source_is_frozen_and_pickles(plain: Path) -> None:
    source = open_source(plain)
    with pytest.raises(AttributeError):
        source.slope = 2.0  # type: ignore[misc]
    assert_same(pickle.loads(pickle.dumps(source)), signal())
    assert "run.nii" in repr(source)
    assert "affine" not in repr(source)


def test_header_is_a_copy() -> None:
    image = make()
    source = open_source(image)
    source.header["descrip"] = b"changed"
    assert image.header["descrip"] != b"changed"


def test_path_as_given(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(plain.parent))
    monkeypatch.chdir(plain.parent)
    for given_as in ("~/run.nii", "run.nii", Path("run.nii"), str(plain)):
        source = open_source(given_as)
        assert source.name == str(given_as)
        assert source.paths == (plain,)
    relative = open_source("run.nii")
    monkeypatch.chdir("/")
    assert_same(relative, signal())


# ---- series


@pytest.fixture
def volumes(tmp_path: Path) -> list[Path]:
    data = signal()
    return [save(tmp_path / f"vol{time}.nii{'.gz' * (time % 2)}", data[..., time]) for time in range(7)]


def test_series_of_files(volumes: list[Path]) -> None:
    for series in (volumes, tuple(map(str, volumes)), [nib.load(path) for path in volumes]):
        source = open_source(series)
        assert isinstance(source, SeriesSource)
        assert (source.shape, source.ndim, source.raw, source.dtype) == ((5, 4, 3, 7), 4, True, np.int16)
        assert_same(source, signal(), k=3)
        assert source.paths == tuple(volumes)
        assert source.name == f"a list of 7 volumes ({volumes[0]} ...)"
        assert source.compressed
    np.testing.assert_array_equal(source.affine, AFFINE)


def test_series_by_pattern(volumes: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = volumes[0].parent
    source = open_source(str(folder / "vol*.nii*"))
    assert_same(source, signal())
    assert source.name == f"{folder}/vol*.nii* (7 volumes)"
    monkeypatch.setenv("HOME", str(folder))
    assert open_source("~/vol[0-2].nii*").shape == (5, 4, 3, 3)
    alone = open_source(str(folder / "vol3*"))
    assert (alone.ndim, alone.shape[3]) == (4, 1)  # a series of one, as nilearn takes it
    shutil.copy(volumes[0], folder / "odd[1].nii")
    assert open_source(str(folder / "odd[1].nii")).ndim == 3


def test_series_of_scaled_volumes(volumes: list[Path]) -> None:
    for path in volumes[::2]:
        patch_header(path, scl_slope=0.25, scl_inter=-3)
    source = open_source(volumes)
    oracle = np.stack([np.asanyarray(nib.load(path).dataobj) for path in volumes], axis=-1)
    assert (source.slope, source.inter, source.raw) == (1.0, 0.0, False)
    assert_same(source, oracle, k=2)
    alike = open_source(volumes[::2])
    assert (alike.slope, alike.inter, alike.dtype, alike.raw) == (0.25, -3.0, np.int16, True)
    assert_same(alike, oracle[..., ::2])


def test_series_of_several_dtypes(volumes: list[Path]) -> None:
    save(volumes[2], signal()[..., 2].astype(np.float32))
    save(volumes[4], signal()[..., 4].astype(np.int32))
    source = open_source(volumes)
    assert source.dtype == np.result_type(np.int16, np.float32, np.int32)
    assert_same(source, signal().astype(source.dtype))


def test_series_of_mixed_kinds(volumes: list[Path]) -> None:
    source = open_source(
        [volumes[0], nib.load(volumes[1]), make(signal()[..., 2:3]), open_source(volumes[3])]
    )
    assert_same(source, signal()[..., :4])
    assert open_source([volumes[0]]).shape == (5, 4, 3, 1)
    assert open_source([volumes[0]]).ndim == 4


def test_series_with_a_damaged_member(volumes: list[Path]) -> None:
    volumes[1].write_bytes(wrong_crc(volumes[1].read_bytes()))
    with pytest.raises(DamagedImageError, match=r"vol1\.nii\.gz"):
        read(open_source(volumes), k=2)


def test_series_that_do_not_fit_together(volumes: list[Path], plain: Path) -> None:
    with pytest.raises(ImageError, match=r"volume 3 .*run\.nii, has 7 time points"):
        open_source([*volumes[:2], plain])
    with pytest.raises(ImageError, match="empty list"):
        open_source([])
    with pytest.raises(ImageError, match="not list"):
        open_source([volumes])
    save(volumes[4], signal((5, 4, 2)))
    with pytest.raises(ImageError, match=r"volume 5 .*vol4.*\(5, 4, 2\).*vol0.*\(5, 4, 3\)"):
        open_source(volumes)
    nib.Nifti1Image(signal()[..., 4], np.diag([3, 3, 3.5, 1])).to_filename(volumes[4])
    with pytest.raises(ImageError, match=r"volume 5 .*vol4.*affine.*3\.5.*vol0.*-3\.0"):
        open_source(volumes)


# ---- fingerprint


def test_fingerprint_of_a_file(plain: Path, tmp_path: Path) -> None:
    def fingerprint() -> str:
        return open_source(plain).fingerprint

    first = fingerprint()
    assert first == fingerprint()
    assert int(first, 16) >= 0
    status = plain.stat()
    os.utime(plain, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    later = fingerprint()
    assert later != first
    raw = bytearray(plain.read_bytes())
    raw[-1] ^= 1
    plain.write_bytes(bytes(raw))
    os.utime(plain, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert fingerprint() not in (first, later)
    (tmp_path / "link.nii").symlink_to(plain)
    assert open_source(tmp_path / "link.nii").fingerprint == fingerprint()


def test_fingerprint_of_a_pair_sees_the_header(tmp_path: Path) -> None:
    save(tmp_path / "a.img", cls=nib.Nifti1Pair)
    first = open_source(tmp_path / "a.img").fingerprint
    header = bytearray((tmp_path / "a.hdr").read_bytes())
    header[150] ^= 1
    (tmp_path / "a.hdr").write_bytes(bytes(header))
    assert open_source(tmp_path / "a.hdr").fingerprint != first


def test_fingerprint_of_an_image_in_memory() -> None:
    first = open_source(make()).fingerprint
    assert first == open_source(make(np.asfortranarray(signal()))).fingerprint
    changed = signal()
    changed[2, 2, 2, 3] += 1
    others = [
        make(changed),
        make(signal().astype(np.int32)),
        make(signal().reshape(5, 4, 7, 3)),
        nib.Nifti1Image(signal(), np.eye(4)),
    ]
    assert len({first, *(open_source(image).fingerprint for image in others)}) == 5


def test_fingerprint_of_a_series(volumes: list[Path]) -> None:
    first = open_source(volumes).fingerprint
    assert open_source(volumes).fingerprint == first
    assert open_source(volumes[::-1]).fingerprint != first
    os.utime(volumes[3], ns=(1, 1))
    assert open_source(volumes).fingerprint != first


@pytest.mark.parametrize("kind", ["file", "series", "smoothed"])
def test_content_is_the_same_wherever_it_lies(volumes: list[Path], tmp_path: Path, kind: str) -> None:
    """Of a copy with other times; and another one where a byte, or what is done to the image, differs."""

    def opened(paths: list[Path], fwhm: float = 5.0) -> Source:
        source = open_source(paths if kind == "series" else paths[0])
        return smoothed(source, fwhm) if kind == "smoothed" else source

    (tmp_path / "copies").mkdir()
    copies = [Path(shutil.copyfile(path, tmp_path / "copies" / f"other-{path.name}")) for path in volumes]
    assert opened(volumes).content == opened(copies).content
    assert opened(volumes).fingerprint != opened(copies).fingerprint
    if kind == "smoothed":
        assert opened(volumes).content != opened(volumes, 6.0).content
    raw = bytearray(copies[0].read_bytes())
    raw[-200] ^= 1
    copies[0].write_bytes(raw)
    assert opened(volumes).content != opened(copies).content
