"""gzip files as programs write them, their seek points, and indexes that hold them."""

import gzip
import zlib
from dataclasses import replace

from source_files import save, signal

from sharedmask.decoding import parallel, search
from sharedmask.sources.opening import open_source

SHAPE = (20, 21, 22, 60)


def small_pieces(monkeypatch):
    """Pieces of small files, decoded on four cores."""
    monkeypatch.setattr(search, "_SPACING", 32 * 1024)
    monkeypatch.setattr(parallel, "_SMALL_BYTES", 0)
    for module in (parallel, search):
        monkeypatch.setattr(module, "n_cpus", lambda: 4)


class Fixed:
    """An index that holds these points, whatever the file."""

    def __init__(self, points):
        self.points = points

    def find(self, file):
        return self.points


def raw_run(folder):
    """An image of which gzip makes many blocks, some of them of zeros."""
    data = signal(SHAPE)
    data[..., 20:30] = 0
    return save(folder / "run.nii", data).read_bytes()


def flushed(raw, level=6):
    """As pigz writes: a flush after each block."""
    made = zlib.compressobj(level, zlib.DEFLATED, 31)

    blocks = (raw[i : i + 2**17] for i in range(0, len(raw), 2**17))
    return b"".join(made.compress(b) + made.flush(zlib.Z_SYNC_FLUSH) for b in blocks) + made.flush()


def bgzf(raw, level=6, size=65280):
    """As bgzip writes: members that say how long they are, the last of which is empty."""
    return b"".join(_bgzf_member(raw[i : i + size], level) for i in [*range(0, len(raw), size), len(raw)])


def _bgzf_member(raw, level):
    rest = gzip.compress(raw, level)[10:]
    header = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0"
    return header + (len(header) + 2 + len(rest) - 1).to_bytes(2, "little") + rest


def named(raw):
    """With a name in the header, as gzip writes it."""
    return b"\x1f\x8b\x08\x08\0\0\0\0\0\xffrun.nii\0" + gzip.compress(raw, 1)[10:]


WHOLE = {
    **{f"level {level}": (lambda raw, level=level: gzip.compress(raw, level)) for level in (0, 1, 6, 9)},
    "flushed": flushed,
    "named": named,
}


def points_in(source):
    return search.found(source.file, source.name, source.offset + source.nbytes)


def indexed(path):
    source = open_source(path)
    points = points_in(source)
    return replace(source, index=Fixed(points)), points
