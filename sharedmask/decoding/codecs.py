"""The bytes of a file, plain or compressed, read once and forward.

Covers: gzip (ISA-L) and bzip2, files of several members, checksums, what may follow the data. Does
not cover: what the bytes mean (``source``). Nothing is held but a piece of input and of output.
"""

import bz2
import errno
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from io import BytesIO, FileIO, RawIOBase
from pathlib import Path
from typing import Any, NamedTuple

from isal import igzip_lib, isal_zlib

from sharedmask.errors import DamagedImageError, ImageError, SharedMaskError
from sharedmask.remote.addresses import own_name, url_of
from sharedmask.system import identity, inputs

_GZIP_RATIO = 1032  # no gzip data holds more bytes for each of its own
_READER = getattr(isal_zlib, "_GzipReader", None)  # of isal's own igzip.open
_FAILURES: tuple[type[Exception], ...] = (igzip_lib.IsalError, OSError, EOFError)  # type: ignore[assignment]
_WRONG = ("CRC check failed", "Incorrect length")  # what `_READER` says of a member and its checksum
_FEW_PACKED, _FEW = 2**17, 2**18  # bytes of a file that is decoded whole, and of what it holds
_REST = 16 * 1024  # of what follows an image, mostly nothing
CHUNK = 256 * 1024  # of compressed input, and of output: both stay in the processor's cache


class Codec(NamedTuple):
    name: str
    magic: bytes
    new: Callable[[], Any]


GZIP = Codec("gzip", b"\x1f\x8b", partial(igzip_lib.IgzipDecompressor, flag=igzip_lib.DECOMP_GZIP))
BZIP2 = Codec("bzip2", b"BZh", bz2.BZ2Decompressor)
ENDINGS = {".gz": GZIP, ".bz2": BZIP2}
"""What stands behind another ending, as in .nii.gz."""
CODECS = {**ENDINGS, ".mgz": GZIP}


def codec_of(path: str | Path) -> Codec | None:
    return CODECS.get(os.path.splitext(own_name(path))[1].lower())


def most_bytes(path: str, size: int) -> float:
    """How many bytes the data of a file of that size can be at most; of unknown size, any number."""
    codec = codec_of(path)
    if size < 0:
        return math.inf
    return size if codec is None else size * _GZIP_RATIO if codec is GZIP else math.inf


def without_codec(path: str) -> str:
    """``path`` less the ending of a codec.

    >>> without_codec("run.nii.gz"), without_codec("run.nii")
    ('run.nii', 'run.nii')
    """
    stem, ending = os.path.splitext(path)
    return stem if ending.lower() in ENDINGS else path


class Stream:
    """A plain file, read forward."""

    has_views = False
    """Whether :meth:`view` may find something."""

    def __init__(self, file: RawIOBase) -> None:
        self._file = file

    def readinto(self, view: memoryview) -> int:
        """Fill `view`; less only at the end of the file."""
        done = 0
        while done < len(view) and (got := self._some(view[done:])):
            done += got
        return done

    def view(self, n_bytes: int) -> memoryview | None:
        """The next `n_bytes` bytes where they already lie, until the next call; None if they do not."""
        return None

    def take(self, n_bytes: int) -> bytes:
        """The next `n_bytes` bytes, or what is left of them; none of fewer than none."""
        taken, piece = bytearray(), bytearray(max(min(n_bytes, CHUNK), 0))
        while got := self.readinto(memoryview(piece)[: max(n_bytes - len(taken), 0)]):
            taken += piece[:got]
        return bytes(taken)

    def skip(self, n_bytes: int) -> int:
        """Go past so many bytes; how many there were."""
        if not isinstance(self._file, FileIO):  # of a server nothing is passed over unread
            return self._read_past(n_bytes)
        place = self._file.tell()
        return self._file.seek(min(place + n_bytes, os.fstat(self._file.fileno()).st_size)) - place

    def _read_past(self, n_bytes: int) -> int:
        done, piece = 0, memoryview(bytearray(min(n_bytes, CHUNK)))
        while got := self.readinto(piece[: n_bytes - done]):
            done += got
        return done

    def finish(self) -> None:
        """Verify what is left to verify; a plain file has no checksum."""

    def _some(self, view: memoryview) -> int:
        return self._file.readinto(view) or 0


class MemberStream(Stream):
    """Concatenated gzip or bzip2 members, decompressed piece by piece; the decoder compares checksums."""

    def __init__(self, file: RawIOBase, codec: Codec, name: str) -> None:
        super().__init__(file)
        self._codec, self._name = codec, name
        self._decoder, self._input = codec.new(), b""
        self._done = 0

    def skip(self, n_bytes: int) -> int:
        return self._read_past(n_bytes)

    def finish(self) -> None:
        """Read to the end of this member, where its checksum is. Members after it are not the image."""
        while not self._decoder.eof:
            if not self._piece(CHUNK) and not self._decoder.eof:
                said = f"after all {self._done} bytes the end of its {self._codec.name} data is missing"
                raise DamagedImageError(f"{self._name} is truncated: {said}, and with it the checksum")

    def _some(self, view: memoryview) -> int:
        piece = self._piece(min(CHUNK, len(view)))
        view[: len(piece)] = piece
        return len(piece)

    def _piece(self, limit: int) -> bytes:
        """Up to `limit` bytes; none where the file ends, complete or not."""
        while not self._decoder.eof or self._next_member():
            data = b""
            if self._decoder.needs_input:
                data, self._input = self._input or self._file.read(CHUNK), b""
                if not data:
                    break
            if piece := self._decode(data, limit):
                self._done += len(piece)
                return piece
        return b""

    def _decode(self, data: bytes, limit: int) -> bytes:
        try:
            return bytes(self._decoder.decompress(data, limit))
        except (igzip_lib.IsalError, OSError, EOFError) as error:  # type: ignore[misc]
            if "checksum" in str(error):
                raise _wrong_checksum(self._name, self._codec) from error
            said = f"its {self._codec.name} data fail after {self._done} bytes ({error})"
            raise DamagedImageError(f"{self._name} is damaged: {said}") from error

    def _next_member(self) -> bool:
        """Begin the next member. Padding with zeros is skipped; anything else ends the image."""
        rest = self._decoder.unused_data.lstrip(b"\0")
        while len(rest) < len(self._codec.magic) and (more := self._file.read(CHUNK)):
            rest = (rest + more).lstrip(b"\0")
        if not rest.startswith(self._codec.magic):
            return False
        self._decoder, self._input = self._codec.new(), rest
        return True


def _wrong_checksum(name: str, codec: Codec) -> DamagedImageError:
    """It is of all bytes: how many came at once tells nothing."""
    return DamagedImageError(f"{name} is damaged: the checksum of its {codec.name} data is wrong")


class GzipStream(Stream):
    """Gzip data decompressed into the place where they are wanted.

    Where anything is wrong that may be what follows the image, the file is read again by `MemberStream`: what
    is wrong is said there. A file that is cut, or whose checksum is wrong, is read once.
    """

    def __init__(self, file: RawIOBase, name: str) -> None:
        super().__init__(file)
        self._name, self._done, self._is_cut = name, 0, False
        assert _READER is not None
        self._reader = _READER(file, CHUNK)
        self._members: MemberStream | None = None

    def skip(self, n_bytes: int) -> int:
        return self._read_past(n_bytes)

    def finish(self) -> None:
        rest = bytearray(_REST)
        try:
            while self._members is None and self._reader.readinto(rest):
                pass
        except SharedMaskError:  # of a server
            raise
        except _FAILURES as error:
            if self._reader.tell() == self._done:  # else it may be of a member after the image
                self._check(error)
            self._leave()
        if self._members is None and not self._done:  # an empty file is none
            self._leave()
        if self._members is not None:
            self._members.finish()

    def _some(self, view: memoryview) -> int:
        """As much as there is at once; none where the data end."""
        got = 0
        if self._members is None and not self._is_cut:
            try:
                got = int(self._reader.readinto(view))
            except SharedMaskError:
                raise
            except _FAILURES as error:
                self._check(error)
                got = self._reader.tell() - self._done
                self._is_cut = isinstance(error, EOFError) and got < len(view)
                if not self._is_cut:
                    self._leave()
        if self._members is not None:
            return self._members.readinto(view)
        self._done += got
        return got

    def _check(self, error: Exception) -> None:
        if str(error).startswith(_WRONG):
            raise _wrong_checksum(self._name, GZIP) from error

    def _leave(self) -> None:
        self._file.seek(0)
        self._members = MemberStream(self._file, GZIP, self._name)
        self._members.skip(self._done)


def decode_into(packed: memoryview, out: memoryview) -> bool:
    """Decode gzip data straight into their place; whether they are whole, and as many bytes.

    >>> packed, out = isal_zlib.compress(b"four", wbits=31), bytearray(4)
    >>> decode_into(memoryview(packed), memoryview(out)), bytes(out)
    (True, b'four')
    """
    try:
        if _READER is None:
            from isal import igzip

            return _is_filled(out, igzip.decompress(packed))
        reader = _READER(packed)
        return bool(reader.readinto(out) == len(out) and not reader.readinto(bytearray(1)))
    except _FAILURES:
        return False


def begin_into(packed: memoryview, out: memoryview) -> bool:
    """Decode gzip data whose end is missing; whether there are so many bytes."""
    try:
        if _READER is None:
            return _is_filled(out, GZIP.new().decompress(packed, len(out)))
        reader = _READER(packed)
        with suppress(EOFError):  # it looks for the checksum
            reader.readinto(out)
        return bool(reader.tell() == len(out))
    except _FAILURES:
        return False


def _is_filled(out: memoryview, piece: bytes) -> bool:
    out[: len(piece)] = piece[: len(out)]
    return len(piece) == len(out)


def open_raw(path: str | Path) -> RawIOBase:
    """The file, here or on its server."""
    return open_file(path) if url_of(path) is None else inputs.opened(path)


def open_file(path: str | Path) -> FileIO:
    """A file of this machine, which a pipe or a device is not: nobody may ever write to a pipe."""
    try:
        return inputs.opened_regular(path)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ImageError(f"{path} is {error.strerror}") from error


@contextmanager
def open_stream(path: str, name: str) -> Iterator[Stream]:
    codec, is_here = codec_of(path), url_of(path) is None
    if codec is GZIP and is_here and (held := _held(path)) is not None:
        yield HeldStream(held)
        return
    with open_raw(path) as file:
        if codec is GZIP and _READER is not None:
            yield GzipStream(file, name)
        else:
            yield MemberStream(file, codec, name) if codec else Stream(file)


class HeldStream(Stream):
    """What a small file holds, decoded and verified."""

    def __init__(self, held: bytes) -> None:
        self._bytes = BytesIO(held)
        super().__init__(self._bytes)  # type: ignore[arg-type]

    def skip(self, n_bytes: int) -> int:
        place = self._bytes.tell()
        return min(self._bytes.seek(place + n_bytes), len(self._bytes.getbuffer())) - place


def _held(path: str) -> bytes | None:
    """What a small file of gzip data holds, of which header and voxels are asked for in turn.

    ISA-L decodes as much for a header as for all of it. None if anything is wrong, for who reads it piece by
    piece to say what.
    """
    with suppress(OSError):
        mark = identity.settled_mark(path)
        return _decoded(path, mark) if mark and mark[0] <= _FEW_PACKED else None
    return None


@lru_cache(maxsize=4)
def _decoded(path: str, mark: tuple[int, ...]) -> bytes | None:
    with suppress(OSError, ImageError), open_file(path) as file:
        packed = file.readall()
        size = int.from_bytes(packed[-4:], "little") if packed.startswith(GZIP.magic) else 0
        out = bytearray(size if size <= _FEW else 0)
        whole = len(out) > 0 and decode_into(memoryview(packed), memoryview(out))
        return bytes(out) if whole and identity.settled_mark(file.fileno()) == mark else None
    return None
