"""Pieces on several cores: the same bytes and the same refusals as without points, from any place."""

import gzip
import re
from dataclasses import replace

import numpy as np
import pytest
from gzip_files import SHAPE, WHOLE, Fixed, indexed, points_in
from source_files import assert_same, gz, read, signal, wrong_crc

from sharedmask.decoding import parallel
from sharedmask.errors import DamagedImageError, SourceChangedError
from sharedmask.sources.opening import open_source
from sharedmask.system import settings

pytest.importorskip("rapidgzip")


@pytest.mark.some(3)
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


def message(call):
    with pytest.raises(DamagedImageError) as caught:
        call()
    said = str(caught.value)
    # What was read before bytes failed depends on the step, and a checksum is of all of them.
    return said if "checksum" in said else re.sub(r"after \d+", "after N", said)


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
    assert parallel.n_decoders(points) == 4
    for asked, found in ((1, 1), (3, 3), (64, 4)):
        with settings.using(decoders=asked):
            assert parallel.n_decoders(points) == found
    for room, found in ((1, 1), (6, 2), (8, 4)):
        with settings.using(memory_limit=8 * room * points.largest):
            assert parallel.n_decoders(points) == found
            assert replace(source).reading_bytes == (found > 1) * (found + 4) * points.largest
    monkeypatch.setattr(parallel, "shares_cpus", lambda: True)
    assert parallel.n_decoders(points) == 1
    monkeypatch.setattr(parallel, "_SMALL_BYTES", 2**30)
    with settings.using(decoders=4):
        assert parallel.n_decoders(points) == 1


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
