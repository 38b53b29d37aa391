"""Indexes: kept and found, never wrong bytes, whatever is in their files."""

import gzip
import os
import shutil

import numpy as np
import pytest
from gzip_files import small_pieces
from source_files import gz, read, save, signal, wrong_crc

from sharedmask import SharedImage, extract
from sharedmask.decoding.seek_points import to_arrays
from sharedmask.errors import (
    ClosedImageError,
    DamagedImageError,
    ImageError,
    MissingFileError,
    SegmentError,
    SharedMaskWarning,
)
from sharedmask.sources.opening import open_source
from sharedmask.storage import indexes
from sharedmask.system import settings

pytest.importorskip("rapidgzip")


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    small_pieces(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def run(tmp_path):
    plain = save(tmp_path / "run.nii", signal((20, 21, 22, 40)))
    return gz(tmp_path / "run.nii.gz", gzip.compress(plain.read_bytes(), 1))


def points_of(path):
    return indexes.indexed(open_source(path)).points


@pytest.mark.parametrize("where", ["cache_dir", "home", "beside"])
def test_kept_and_found(where, run, tmp_path):
    assert points_of(run) is None
    cache = {"cache_dir": tmp_path / "cache"} if where == "cache_dir" else {}
    with settings.using(**cache):
        path = indexes.make(open_source(run), beside=where == "beside")
        expected = {"cache_dir": tmp_path / "cache", "home": tmp_path / "home", "beside": tmp_path}[where]
        assert path.is_relative_to(expected) and path.is_file()
        source = indexes.indexed(open_source(run))
        assert len(source.points) > 3
        np.testing.assert_array_equal(read(source), read(open_source(run)))
        assert indexes.make(open_source(run), beside=where == "beside") == path


def test_beside_it_goes_along_with_the_file(run, tmp_path):
    path = indexes.make(open_source(run), beside=True)
    (tmp_path / "copy").mkdir()
    for one in (run, path):
        shutil.copy(one, tmp_path / "copy" / one.name)
    assert points_of(tmp_path / "copy" / run.name) is not None


@pytest.mark.parametrize("beside", [True, False])
def test_another_file_of_that_name_has_no_index(run, beside):
    indexes.make(open_source(run), beside=beside)
    run.write_bytes(gzip.compress(gzip.decompress(run.read_bytes())[:-1] + b"\x07", 1))
    assert points_of(run) is None


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize(
    "n",
    [
        100,
        pytest.param(2000, marks=pytest.mark.long),
        pytest.param(10000, marks=[pytest.mark.long, pytest.mark.slow]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_indexes_are_no_indexes(run, beside, n, caplog):
    """So many, a quarter of them of each kind; 10000 with ``SHAREDMASK_SLOW_TESTS``."""
    path = indexes.make(open_source(run), beside=beside)
    whole, expected = path.read_bytes(), to_arrays(points_of(run))
    rng = np.random.default_rng(7)
    for number in range(n):
        content = bytearray(whole)
        match number % 4:
            case 0:
                content[rng.integers(len(content))] ^= 1 << rng.integers(8)
            case 1:
                del content[rng.integers(len(content)) :]
            case 2:
                start = rng.integers(len(content))
                content[start : start + 64] = rng.bytes(64)
            case 3:
                content[: rng.integers(200)] = rng.bytes(rng.integers(200))
        path.write_bytes(content)
        found = points_of(run)
        if found is not None:  # what was changed is padding, which nobody reads
            for read, made in zip(to_arrays(found), expected, strict=True):
                np.testing.assert_array_equal(read, made)
    path.write_bytes(whole)
    assert points_of(run) is not None


def test_frames_before_the_image_is_loaded(run):
    expected = signal((20, 21, 22, 40))
    indexes.make(open_source(run))
    with SharedImage(run) as image:
        for t in (0, 39, -1, 17, np.int64(3)):
            np.testing.assert_array_equal(image.frame(t), expected[..., t])
        assert not image.frame(3).flags.writeable
        assert "not loaded" in repr(image)
        image.load()
        np.testing.assert_array_equal(image.frame(17), expected[..., 17])
    with pytest.raises(ClosedImageError):
        image.frame(3)


def test_refusals(run, tmp_path):
    plain = tmp_path / "run.nii"
    with pytest.raises(ImageError, match=r"run.nii needs no index: it is no gzip file"):
        indexes.make(open_source(plain))
    (tmp_path / "run.nii.gz.gzi").write_text("somebody's")
    with pytest.raises(SegmentError, match=r"run.nii.gz.gzi is no index of sharedmask: move it away"):
        indexes.make(open_source(run), beside=True)
    assert points_of(run) is None
    assert (tmp_path / "run.nii.gz.gzi").read_text() == "somebody's"


@pytest.mark.parametrize(
    ("put", "raised", "said"),
    [
        (os.mkfifo, OSError, "a pipe"),
        (os.mkdir, OSError, "directory"),
        (lambda path: os.symlink("../.git/annex/objects/x", path), MissingFileError, "is a link to"),
    ],
    ids=["pipe", "folder", "dangling link"],
)
def test_what_stands_beside_and_is_no_file_stays(put, raised, said, run):
    put(path := f"{run}.gzi")
    before = os.lstat(path)
    with pytest.raises(raised, match=said) as caught:
        indexes.make(open_source(run), beside=True)
    assert path in str(caught.value)
    assert os.lstat(path)[:2] == before[:2] and points_of(run) is None


NO_FOLDER = {
    "no folder can be made": lambda home: home.write_text(""),
    "a folder that others may write to": lambda home: open_to_all(home / "sharedmask-indexes"),
}
INSIDE = np.ones((20, 21, 22), bool)


def by_image(run):
    with SharedImage(run, index=True) as image:
        return image.mask(INSIDE)


MADE = {"extract": lambda run: extract(run, INSIDE, index=True), "SharedImage": by_image}


def open_to_all(folder):
    folder.mkdir(parents=True)
    folder.chmod(0o777)


@pytest.mark.parametrize("put", NO_FOLDER.values(), ids=NO_FOLDER.keys())
@pytest.mark.parametrize("made", MADE.values(), ids=MADE.keys())
def test_an_index_that_cannot_be_kept_is_no_end_of_the_work(made, put, run, tmp_path):
    put(tmp_path / "home")
    with pytest.warns(SharedMaskWarning, match=r"the index of .*run.nii.gz is not kept: .*home"):
        signals = made(run)
    np.testing.assert_array_equal(signals, signal((*INSIDE.shape, 40))[INSIDE].T)


def test_a_relative_cache_home_counts_for_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert indexes.make(open_source(run)).is_relative_to(tmp_path / "me" / ".cache")


def test_what_has_no_index_says_why(run):
    whole = run.read_bytes()
    run.write_bytes(whole + gzip.compress(b"more"))
    with pytest.raises(ImageError, match=r"run.nii.gz has no index: it is not one gzip member"):
        indexes.make(open_source(run))
    for damaged in (whole[:-8], whole[: len(whole) // 2], wrong_crc(whole)):
        run.write_bytes(damaged)
        said = []
        for read_all in (read, indexes.make):
            with pytest.raises(DamagedImageError) as caught:
                read_all(open_source(run))
            said.append(str(caught.value))
        assert said[0] == said[1]


def test_the_folder_is_bounded(run, tmp_path, monkeypatch):
    first = indexes.make(open_source(run))
    monkeypatch.setattr(indexes, "_LIMIT", first.stat().st_size)
    run.write_bytes(gzip.compress(gzip.decompress(run.read_bytes()), 6))
    second = indexes.make(open_source(run))
    assert os.listdir(second.parent) == [second.name] and first != second


@pytest.mark.parametrize("call", ["extract", "load"])
def test_made_on_request(call, run, tmp_path):
    mask = np.ones((20, 21, 22), bool)
    expected = signal((20, 21, 22, 40))[mask].T

    def signals(path):
        if call == "extract":
            return extract(path, [mask], index=True)[0]
        with SharedImage(path, index=True) as image:
            return np.array(image.mask(mask))

    assert points_of(run) is None
    for _ in range(2):
        np.testing.assert_array_equal(signals(run), expected)
        assert points_of(run) is not None
    several = gz(tmp_path / "several.nii.gz", run.read_bytes() + gzip.compress(b""))
    np.testing.assert_array_equal(signals(several), expected)
    assert points_of(several) is None
    np.testing.assert_array_equal(signals(tmp_path / "run.nii"), expected)
