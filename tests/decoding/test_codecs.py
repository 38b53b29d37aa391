"""Bytes of compressed files: members, checksums, what may follow, pieces of any size."""

from __future__ import annotations

import bz2
import gzip
import os
import random
import time
import tracemalloc
import zlib
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from isal import igzip_lib
from source_files import assert_same, gz, read, save, signal, wrong_crc

from sharedmask.decoding import codecs
from sharedmask.decoding.codecs import (
    CHUNK,
    GZIP,
    GzipStream,
    MemberStream,
    Stream,
    decode_into,
    open_file,
    open_stream,
)
from sharedmask.errors import (
    DamagedImageError,
)
from sharedmask.sources.opening import open_source
from sharedmask.system import identity

GARBAGE = [
    b"\0" * 999,
    b"\0" * (2 * CHUNK + 1),
    b"x",
    b"hello" * 100,
    b"\x1f\x8b",
    b"\x1f\x8b\x08\0hello there",
    b"\0\0\x1f",
    b"BZh",
    b"BZhello",
    gzip.compress(b"x" * 99, mtime=0)[:-1],
    gzip.compress(b"x", mtime=0),
    b"\x1f\x8b\0\0",
]


@pytest.mark.some(5)
@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda value: value[:12].hex())
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 4, 3, 7), (40, 40, 20, 9)])
def test_bytes_after_the_stream(tmp_path: Path, garbage: bytes, shape: tuple[int, ...]) -> None:
    """Checked against the plain file: with indexed_gzip installed nibabel refuses some of these."""
    expected = np.asanyarray(nib.load(save(tmp_path / "a.nii", signal(shape))).dataobj)
    raw = (tmp_path / "a.nii").read_bytes()
    assert_same(open_source(gz(tmp_path / "a.nii.gz", gzip.compress(raw) + garbage)), expected, k=4)
    assert_same(open_source(gz(tmp_path / "a.nii.bz2", bz2.compress(raw) + garbage)), expected, k=4)


def test_zeros_between_members_and_empty_members(plain: Path) -> None:
    raw = plain.read_bytes()
    parts = [b"", raw[:100], b"", b"", raw[100:500], raw[500:], b""]
    path = gz(plain.with_suffix(".nii.gz"), (b"\0" * 7).join(map(gzip.compress, parts)))
    assert_same(open_source(path), signal())


def test_members_with_names_and_comments(plain: Path) -> None:
    """A header with all optional fields: extra, name, comment and header checksum."""
    body = gzip.compress(plain.read_bytes())[10:]
    head = b"\x1f\x8b\x08\x1e\0\0\0\0\0\x03" + b"\x04\0extr" + b"name\0" + b"comment\0"
    head += (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little")
    assert_same(open_source(gz(plain.with_suffix(".nii.gz"), head + body)), signal())


def test_many_small_members(tmp_path: Path) -> None:
    """As bgzip writes them: 64 KiB of image each, and an empty one at the end."""
    data = signal((30, 30, 20, 30))
    raw = save(tmp_path / "a.nii", data).read_bytes()
    parts = [raw[first : first + 65280] for first in range(0, len(raw), 65280)] + [b""]
    path = gz(tmp_path / "a.nii.gz", b"".join(map(gzip.compress, parts)))
    assert_same(open_source(path), data, k=7)


@pytest.mark.parametrize("suffix", [".nii.GZ", ".NII.gz", ".NII"])
def test_upper_case_suffixes(plain: Path, suffix: str) -> None:
    raw = plain.read_bytes()
    content = gzip.compress(raw) if suffix.lower().endswith("gz") else raw
    assert_same(open_source(gz(plain.with_name("UP" + suffix), content)), signal())


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 3, 7), (40, 40, 20, 20)])
@pytest.mark.parametrize("at", [-6, -1], ids=["crc", "length"])
def test_wrong_checksum_is_raised_by_the_last_volume(tmp_path: Path, shape: tuple[int, ...], at: int) -> None:
    raw = save(tmp_path / "a.nii", signal(shape)).read_bytes()
    path = gz(tmp_path / "a.nii.gz", wrong_crc(gzip.compress(raw), at))
    source = open_source(path)
    out = np.empty(source.n_voxels, source.dtype)
    with source.volumes() as reader:
        for _ in range(source.n_timepoints - 1):
            reader.readinto(out)
        with pytest.raises(DamagedImageError, match="checksum") as caught:
            reader.readinto(out)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("shape", [(5, 4, 3), (40, 40, 20, 20)])
@pytest.mark.parametrize("damage", ["cut", "crc", "length"])
def test_damaged_files_are_decoded_once(
    tmp_path: Path, shape: tuple[int, ...], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = gzip.compress(save(tmp_path / "a.nii", signal(shape)).read_bytes())
    content = (
        content[: -len(content) // 4]
        if damage == "cut"
        else wrong_crc(content, -6 if damage == "crc" else -1)
    )
    source = open_source(gz(tmp_path / "a.nii.gz", content))
    monkeypatch.setattr(GzipStream, "_leave", None)  # which would be called
    with pytest.raises(
        DamagedImageError, match="truncated" if damage == "cut" else "checksum of its gzip data is wrong"
    ):
        read(source)


def test_wrong_checksum_with_bytes_after_the_data(plain: Path) -> None:
    """The checksum is that of the whole member, of which the image is only the beginning."""
    content = gzip.compress(plain.read_bytes() + bytes(3 * CHUNK))
    with pytest.raises(DamagedImageError, match="checksum"):
        read(open_source(gz(plain.with_suffix(".nii.gz"), wrong_crc(content))))


def test_wrong_checksum_in_the_first_of_several_members(tmp_path: Path) -> None:
    raw = save(tmp_path / "a.nii", signal((40, 40, 20, 20))).read_bytes()
    for cut in (100, 352, 400, 5000, len(raw) - 1, len(raw)):
        content = wrong_crc(gzip.compress(raw[:cut], 1)) + gzip.compress(raw[cut:], 1)
        with pytest.raises(DamagedImageError, match="checksum") as caught:
            read(open_source(gz(tmp_path / "a.nii.gz", content)))
        assert str(tmp_path / "a.nii.gz") in str(caught.value)


def test_wrong_checksum_of_bzip2(plain: Path) -> None:
    content = wrong_crc(bz2.compress(plain.read_bytes()), -3)
    with pytest.raises(DamagedImageError, match="bzip2"):
        read(open_source(gz(plain.with_suffix(".nii.bz2"), content)))


def test_garbage_in_the_place_of_data(plain: Path) -> None:
    raw = plain.read_bytes()
    for garbage in (b"hello", b"\x1f\x8bhello there"):
        path = gz(plain.with_suffix(".nii.gz"), gzip.compress(raw[:700]) + garbage)
        with pytest.raises(DamagedImageError, match=r"348 were found|fail after 700 bytes"):
            read(open_source(path))


def test_decoder_verifies_what_it_decodes() -> None:
    """The checksum and the length of a member are the decoder's business; this is what is relied on."""
    raw = os.urandom(5000)
    for at in (-6, -1):
        decoder = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        with pytest.raises(igzip_lib.IsalError):
            decoder.decompress(wrong_crc(gzip.compress(raw), at))


def test_chunks_of_any_size_give_the_same(tmp_path: Path) -> None:
    data = signal((6, 5, 4, 11))
    for name in ("a.nii", "a.nii.gz", "a.nii.bz2"):
        source = open_source(save(tmp_path / name, data))
        for k in (1, 2, 3, 7, 11):
            np.testing.assert_array_equal(read(source, k), data.reshape(-1, 11, order="F").T)


@pytest.mark.some(1)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nii.bz2"])
def test_no_copy_of_the_file(tmp_path: Path, name: str) -> None:
    """48 MB of image pass through less than 2 MB of the reader's own."""
    data = np.zeros((40, 40, 30, 500), np.int16)
    data[..., 3] = signal((40, 40, 30))
    path = save(tmp_path / name, data)
    out = np.empty((50, 48000), np.int16)
    tracemalloc.start()
    try:
        source = open_source(path)
        with source.volumes() as reader:
            while reader.remaining:
                reader.readinto(out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


def test_opening_does_not_decompress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.nii.gz", signal((40, 40, 20, 50)))
    done: list[int] = []
    some = GzipStream._some

    def counted(self: GzipStream, view: memoryview) -> int:
        done.append(some(self, view))
        return done[-1]

    monkeypatch.setattr(GzipStream, "_some", counted)
    open_source(path)
    assert 0 < sum(done) <= CHUNK


_RAW = random.Random(7).randbytes(3000) * 200
_WHOLE = gzip.compress(_RAW, 1, mtime=0)
_DAMAGED = _WHOLE[:2000] + b"\0" * 50 + _WHOLE[2050:]


@pytest.mark.parametrize("wanted", [1, 5000, len(_RAW)])
@pytest.mark.parametrize(
    "content",
    [
        *(_WHOLE + garbage for garbage in (b"", *GARBAGE)),
        *(_WHOLE[:size] for size in (0, 1, 9, 12, 2000, len(_WHOLE) - 9, len(_WHOLE) - 3)),
        wrong_crc(_WHOLE, -6),
        wrong_crc(_WHOLE, -1),
        wrong_crc(_WHOLE, -6) + _WHOLE,
        _WHOLE + wrong_crc(_WHOLE, -6),
        _DAMAGED,
        _WHOLE + _DAMAGED,
        gzip.compress(_RAW[:5000]) + gzip.compress(_RAW[5000:]),
    ],
)
def test_decompressing_into_place_gives_the_same(tmp_path: Path, content: bytes, wanted: int) -> None:
    """Bytes, and what is said of files that are not plain."""
    (tmp_path / "a.gz").write_bytes(content)
    found = []
    for stream in (partial(MemberStream, codec=GZIP), GzipStream):
        with open_file(tmp_path / "a.gz") as file:
            found.append(_all_of(stream(file, name="a.gz"), wanted))
    assert found[0] == found[1]


def _all_of(stream: Stream, wanted: int) -> tuple[bytes, str]:
    taken = b""
    try:
        while len(taken) < wanted and (piece := stream.take(min(70_000, wanted - len(taken)))):
            taken += piece
        stream.finish()
    except DamagedImageError as error:
        return taken, str(error)
    return taken, ""


@pytest.fixture
def settled(tmp_path):
    """A small file that was written some time ago, and a way to write others in its place."""
    path = tmp_path / "small.nii.gz"

    def write(packed, seconds=60):
        path.write_bytes(packed)
        os.utime(path, (time.time() - seconds,) * 2)
        return str(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "_TICK", -1.0)  # its inode was changed just now
        yield write


def test_a_small_file_is_decoded_once_for_header_and_values(settled, monkeypatch):
    content = bytes(range(256)) * 8
    path, decoded = settled(gzip.compress(content)), []
    monkeypatch.setattr(codecs, "decode_into", lambda *given: decoded.append(1) or decode_into(*given))
    for place in (0, 352):
        with open_stream(path, "small") as stream:
            assert stream.skip(place) == place and stream.take(4000) == content[place:]
            stream.finish()
            assert stream.skip(1) == 0
    assert decoded == [1]
    path = settled(gzip.compress(content[::-1]))
    with open_stream(path, "small") as stream:
        assert stream.take(4000) == content[::-1]


@pytest.mark.parametrize("end", [b"\0\0", b"no gzip", gzip.compress(b"more")])
def test_what_follows_a_small_image_is_told_as_of_a_large_one(settled, end):
    path = settled(gzip.compress(b"an image") + end)
    with open_stream(path, "small") as stream:
        assert not isinstance(stream, codecs.HeldStream) and stream.take(8) == b"an image"


def test_a_small_file_that_is_damaged_is_read_piece_by_piece(settled):
    packed = bytearray(gzip.compress(b"an image" * 90))
    packed[-6] ^= 1
    with pytest.raises(DamagedImageError, match="checksum"), open_stream(settled(packed), "small") as stream:
        stream.take(9000)
        stream.finish()
