"""Seek points: the same bytes and the same refusals as without them, from any place, on any cores."""

import gzip
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
from source_files import assert_same, gz, read, save, signal, wrong_crc

from sharedmask.errors import DamagedImageError, MemoryLimitError, SourceChangedError
from sharedmask.sources import seeking
from sharedmask.sources.source import open_source
from sharedmask.system import settings

pytest.importorskip("rapidgzip")
SHAPE = (20, 21, 22, 60)


class Fixed:
    """An index that holds these points, whatever the file."""

    def __init__(self, points):
        self.points = points

    def find(self, file):
        return self.points


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(seeking, "_SPACING", 32 * 1024)
    monkeypatch.setattr(seeking, "_SMALL_BYTES", 0)
    monkeypatch.setattr(seeking, "n_cpus", lambda: 4)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """An image of which gzip makes many blocks, some of them of zeros."""
    data = signal(SHAPE)
    data[..., 20:30] = 0
    return save(tmp_path_factory.mktemp("seeking") / "run.nii", data).read_bytes()


def flushed(raw, level=6):
    """As pigz writes: a flush after each block."""
    made = zlib.compressobj(level, zlib.DEFLATED, 31)

    blocks = (raw[i : i + 2**17] for i in range(0, len(raw), 2**17))
    return b"".join(made.compress(b) + made.flush(zlib.Z_SYNC_FLUSH) for b in blocks) + made.flush()


def named(raw):
    """With a name in the header, as gzip writes it."""
    return b"\x1f\x8b\x08\x08\0\0\0\0\0\xffrun.nii\0" + gzip.compress(raw, 1)[10:]


WHOLE = {
    **{f"level {level}": (lambda raw, level=level: gzip.compress(raw, level)) for level in (0, 1, 6, 9)},
    "flushed": flushed,
    "named": named,
}


def points_in(source):
    return seeking.found(source.file, source.name, source.offset + source.nbytes)


def indexed(path):
    source = open_source(path)
    points = points_in(source)
    return replace(source, index=Fixed(points)), points


@pytest.mark.parametrize("how", WHOLE)
def test_same_bytes(how, raw, tmp_path):
    path = gz(tmp_path / "run.nii.gz", WHOLE[how](raw))
    plain = read(open_source(path))
    source, points = indexed(path)
    assert len(points) > 3
    for n_threads in (1, 2, 4):
        with settings.using(decoders=n_threads):
            np.testing.assert_array_equal(read(source, k=7), plain)
    for number in (0, 19, 20, 59, 31):
        np.testing.assert_array_equal(source.volume(number), plain[number])


@pytest.fixture
def run(raw, tmp_path):
    return gz(tmp_path / "run.nii.gz", gzip.compress(raw, 1))


def message(call):
    with pytest.raises(DamagedImageError) as caught:
        call()
    return re.sub(r"after \d+", "after N", str(caught.value))  # what was read by then depends on the step


DAMAGE = {
    "cut": lambda packed: packed[: len(packed) // 2],
    "cut before the checksum": lambda packed: packed[:-8],
    "wrong checksum": wrong_crc,
    "wrong size": lambda packed: wrong_crc(packed, -2),
    "wrong bytes": lambda packed: packed[: len(packed) // 2] + b"\xff" * 64 + packed[len(packed) // 2 + 64 :],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_refused_in_the_same_words(kind, run):
    _, points = indexed(run)
    run.write_bytes(DAMAGE[kind](run.read_bytes()))
    source = open_source(run)
    expected = message(lambda: read(source))
    fits = replace(source, index=Fixed(points))
    with source_file(run) as file:
        trusted = points.fit(file)
    assert trusted == (kind == "wrong bytes")
    if trusted:
        assert message(lambda: read(fits)) == expected
        assert message(lambda: [fits.volume(t) for t in range(60)]) == expected
    assert points_in(source) is None


def source_file(path):
    return open(path, "rb", buffering=0)


@pytest.mark.parametrize("more", [b"\0" * 512, b"hello", gzip.compress(b"more")])
def test_what_follows_the_image_makes_no_index(more, run):
    run.write_bytes(run.read_bytes() + more)
    assert points_in(open_source(run)) is None


def test_several_members_make_no_index(raw, tmp_path):
    path = gz(tmp_path / "run.nii.gz", gzip.compress(raw[:100000]) + gzip.compress(raw[100000:]))
    assert points_in(open_source(path)) is None


def test_points_of_another_file_give_no_wrong_bytes(raw, run, tmp_path):
    """Even if nobody asked whether they fit."""
    other = gz(tmp_path / "other.nii.gz", gzip.compress(raw, 6))
    _, points = indexed(other)
    source = replace(open_source(run), index=Fixed(points))
    expected = read(open_source(run))
    np.testing.assert_array_equal(read(source), expected)
    np.testing.assert_array_equal(source.volume(33), expected[33])


def test_how_many_cores(run, monkeypatch):
    source, points = indexed(run)
    assert seeking.n_decoders(points) == 4
    for asked, found in ((1, 1), (3, 3), (64, 4)):
        with settings.using(decoders=asked):
            assert seeking.n_decoders(points) == found
    for room, found in ((1, 1), (4, 2), (6, 4)):
        with settings.using(memory_limit=8 * room * points.largest):
            assert seeking.n_decoders(points) == found
            assert source.reading_bytes == (found > 1) * (found + 2) * points.largest
    monkeypatch.setattr(seeking, "parent_process", lambda: "somebody")
    assert seeking.n_decoders(points) == 1
    monkeypatch.setattr(seeking, "_SMALL_BYTES", 2**30)
    with settings.using(decoders=4):
        assert seeking.n_decoders(points) == 1


def test_a_search_that_does_not_fit_is_refused(run):
    with (
        settings.using(memory_limit="50M"),
        pytest.raises(MemoryLimitError, match=r"indexing .*run.nii.gz needs"),
    ):
        indexed(run)


def test_a_volume_of_a_changed_file_is_refused(run):
    source, _ = indexed(run)
    run.write_bytes(run.read_bytes())
    with pytest.raises(SourceChangedError):
        source.volume(3)


def test_scaled_images(raw, tmp_path):
    expected = signal(SHAPE)
    source, _ = indexed(gz(tmp_path / "run.nii.gz", gzip.compress(raw, 1)))
    expected[..., 20:30] = 0
    assert_same(source, expected, k=5)
