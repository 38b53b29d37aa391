"""Seek points: a piece begins at any bit, is verified, and is of one file."""

import gzip
import zlib

import numpy as np
import pytest
from gzip_files import WHOLE, indexed
from isal import igzip_lib
from source_files import gz

from sharedmask.decoding import codecs
from sharedmask.decoding import seek_points as of_points


@pytest.mark.parametrize("n_bits", range(8))
def test_empty_blocks_of_any_number_of_bits(n_bits):
    """Before a block that begins within a byte they fill that byte."""
    bits = of_points._filler(n_bits)
    assert len(bits) % 8 == n_bits
    stored = "1" + "00" + "0" * (-(len(bits) + 3) % 8)  # the last block, stored, up to the next byte
    packed = of_points._packed(bits + stored) + b"\x03\0\xfc\xffabc"
    assert zlib.decompress(packed, -15) == b"abc"
    assert igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE).decompress(packed) == b"abc"


@pytest.mark.parametrize("reader", [codecs._READER, None])
@pytest.mark.parametrize("how", WHOLE)
def test_each_piece_alone(how, reader, raw, tmp_path, monkeypatch):
    pytest.importorskip("rapidgzip")
    monkeypatch.setattr(codecs, "_READER", reader)
    path = gz(tmp_path / "run.nii.gz", WHOLE[how](raw))
    _, points = indexed(path)
    assert len(points) > 3 and points.nbytes == len(raw)
    with open(path, "rb", buffering=0) as file:
        assert points.fit(file)
        for number in reversed(range(len(points))):
            piece = points.decode(file.fileno(), number, points.buffer())
            start = int(points.starts[number])
            assert points.at(start) == number
            assert bytes(piece) == raw[start : start + len(piece)]


def test_pieces_of_another_file_are_refused(raw, run, tmp_path):
    pytest.importorskip("rapidgzip")
    _, points = indexed(run)
    other = gz(tmp_path / "other.nii.gz", gzip.compress(raw, 6))
    with open(other, "rb", buffering=0) as file:
        assert not points.fit(file)
        for number in range(1, len(points)):
            with pytest.raises(of_points.WrongPieceError):
                points.decode(file.fileno(), number, points.buffer())


def test_what_is_kept(run):
    pytest.importorskip("rapidgzip")
    _, points = indexed(run)
    again = of_points.Points(*of_points.to_arrays(points))
    np.testing.assert_array_equal(again.bits, points.bits)
    assert again.largest == points.largest
