"""Versions: what a server says of an object, by which another one in its place is known.

Covers: comparing two of them. Does not cover: asking for one (``http``, ``filesystems``).
"""

from sharedmask.errors import SourceChangedError
from sharedmask.records import dataclass


@dataclass(frozen=True)
class Version:
    """Length, tag and time of an object; what a server does not tell is None, or empty."""

    nbytes: int | None
    etag: str = ""
    modified: str = ""

    @property
    def identity(self) -> str:
        """What is another one when the object is; empty where the server tells nothing but a length."""
        told = (self.nbytes, self.etag, self.modified)
        return repr(told) if self.etag or self.modified else ""

    def is_of(self, other: "Version") -> bool:
        """Whether nothing that both tell is different."""
        pairs = ((self.nbytes, other.nbytes), (self.etag, other.etag), (self.modified, other.modified))
        return all(a == b for a, b in pairs if a not in (None, "") and b not in (None, ""))

    def check(self, other: "Version", name: str) -> None:
        """Refuse bytes of another version.

        Raises SourceChangedError.
        """
        if not self.is_of(other):
            said = f"{self._words()}, now {other._words()}"
            raise SourceChangedError(f"{name} changed while it was read: it was {said}")

    def _words(self) -> str:
        length = "of unknown length" if self.nbytes is None else f"{self.nbytes} bytes"
        return " ".join(filter(None, (length, self.etag, self.modified)))
