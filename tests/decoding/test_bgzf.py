"""BGZF files are decoded in pieces without an index: the same bytes and refusals as one after the other."""

from dataclasses import replace

import numpy as np
import pytest
from gzip_files import bgzf as bgzf_file
from source_files import gz, read, save, signal, wrong_crc

from sharedmask import errors, extract
from sharedmask.decoding import bgzf, codecs, parallel
from sharedmask.decoding.codecs import open_file
from sharedmask.sources.opening import open_source
from sharedmask.storage import indexes
from sharedmask.system import settings


@pytest.fixture
def packed(raw, monkeypatch):
    monkeypatch.setattr(bgzf, "_PIECE_BYTES", 2**17)
    return bgzf_file(raw)


def found(path):
    with open_file(path) as file:
        return bgzf.found(file)


def outcome(source):
    """The values, or what is said."""
    try:
        return read(source, k=7)
    except errors.ImageError as error:
        return type(error), str(error)


def forward(path):
    """The same without pieces."""
    with settings.using(decoders=1):
        return outcome(open_source(path))


def test_the_same_bytes_on_all_cores_and_from_any_volume(packed, tmp_path):
    path = gz(tmp_path / "run.nii.gz", packed)
    plain, source = forward(path), open_source(path)
    assert len(source.points) > 3 and source.n_decoders == 4
    np.testing.assert_array_equal(outcome(source), plain)
    for number in (0, 19, 20, 59, 31):
        np.testing.assert_array_equal(source.volume(number), plain[number])


@pytest.mark.parametrize("size", [1, 100, 65280])
def test_members_of_any_size(tmp_path, size):
    data = signal((5, 4, 3, 7))
    path = gz(tmp_path / "a.nii.gz", bgzf_file(save(tmp_path / "a.nii", data).read_bytes(), size=size))
    assert found(path).nbytes == (tmp_path / "a.nii").stat().st_size
    np.testing.assert_array_equal(outcome(open_source(path)), forward(path))


DAMAGE = {
    "cut": lambda packed: packed[: len(packed) // 2],
    "cut in the last member": lambda packed: packed[:-30],
    "without the empty member": lambda packed: packed[:-28],
    "wrong bytes": lambda packed: packed[: len(packed) // 2] + b"\xff" * 64 + packed[len(packed) // 2 + 64 :],
    "wrong checksum": lambda packed: wrong_crc(packed[:-28]) + packed[-28:],
    "wrong size": lambda packed: wrong_crc(packed[:-28], -2) + packed[-28:],
    "padding": lambda packed: packed + bytes(1000),
    "other bytes behind": lambda packed: packed + b"what else there is",
    "another member behind": lambda packed: packed + bgzf_file(b"more"),
    "a member's length is wrong": lambda packed: packed[:16] + b"\x80\x20" + packed[18:],
}


@pytest.mark.some(8)
@pytest.mark.parametrize("reader", [codecs._READER, None])
@pytest.mark.parametrize("kind", DAMAGE)
def test_the_same_refusals(kind, reader, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(codecs, "_READER", reader)
    path = gz(tmp_path / "run.nii.gz", DAMAGE[kind](packed))
    np.testing.assert_equal(outcome(open_source(path)), forward(path))


def test_any_byte_that_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(bgzf, "_PIECE_BYTES", 200)
    packed = bgzf_file(save(tmp_path / "a.nii", signal((5, 4, 3, 7))).read_bytes(), size=150)
    rng, path = np.random.default_rng(0), tmp_path / "a.nii.gz"
    for place in rng.integers(400, len(packed), 60):
        path.write_bytes(
            packed[:place] + bytes([packed[place] ^ int(rng.integers(1, 256))]) + packed[place + 1 :]
        )
        np.testing.assert_equal(outcome(open_source(path)), forward(path))


def test_what_is_no_chain_of_members(packed, tmp_path):
    for number, other in enumerate([b"", b"\x1f\x8b", packed[:100], packed[:-1], packed + b"\0"]):
        assert found(gz(tmp_path / f"{number}.nii.gz", other)) is None


def test_no_index_is_made_where_none_is_needed(packed, tmp_path):
    source = open_source(gz(tmp_path / "run.nii.gz", packed))
    with pytest.raises(errors.ImageError, match="needs no index"):
        indexes.make(source)
    assert indexes.indexed(source, make_one=True).points is not None


def test_some_volumes_read_the_members_that_hold_them(packed, tmp_path, monkeypatch):
    path = gz(tmp_path / "run.nii.gz", packed)
    decoded, decode = [], bgzf.Members.decode
    monkeypatch.setattr(bgzf.Members, "decode", lambda *given: decoded.append(given[2]) or decode(*given))
    source = open_source(path)
    monkeypatch.setattr(parallel, "n_cpus", lambda: 1)
    source.volume(40)
    assert 0 < len(decoded) < len(source.points) // 2
    atlas = np.arange(20 * 21 * 22).reshape(20, 21, 22) % 3
    monkeypatch.setattr(parallel, "n_cpus", lambda: 4)
    whole = extract(path, atlas, strategy="mean")
    monkeypatch.setattr(bgzf, "found", lambda file: None)
    np.testing.assert_array_equal(extract(replace(source), atlas, strategy="mean"), whole)
