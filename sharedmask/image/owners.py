"""Whose a name of a shared image is.

Covers: finding an image by a name that several may have, whether one is free to be given. Does not cover:
the records that hold them (``registry``), names that the coordinator knows (``coordinator``).
"""

import contextlib
import warnings
from collections.abc import Iterator

from sharedmask.errors import ParameterError, SharedMaskWarning
from sharedmask.storage import registry
from sharedmask.storage.segment import Handle


def meant(name: Handle | str) -> Handle:
    """The handle of the newest image of that name, of which others are told; or what is one already."""
    if not isinstance(name, str):
        return name
    if name.lstrip().startswith("{"):
        return Handle.from_json(name)
    handle = registry.find(name)
    if len(several := _owners(name)) > 1:
        warnings.warn(
            f"{len(several)} images are shared under the name {name!r}, by processes "
            f"{', '.join(map(str, several.values()))}: the newest is taken; handles, or names of their own "
            "(publish), find the others",
            SharedMaskWarning,
            stacklevel=3,
        )
    return handle


@contextlib.contextmanager
def free(name: str, token: str) -> Iterator[None]:
    """No living image but the one of this token has the name, and nobody gives it to another meanwhile.

    Raises ParameterError: it would be found by the name of another, or that one by its own.
    """
    with registry.naming():
        others = _owners(name)
        others.pop(token, None)
        for pid in others.values():
            raise ParameterError(
                f"another image is shared under the name {name!r}, by process {pid}: publish this one under "
                "a name of its own, or close that one first"
            )
        yield


def _owners(name: str) -> dict[str, int]:
    """The processes of living images of that name, by the images' tokens, the oldest first."""
    return {entry.token: entry.pid for entry in registry.entries() if entry.label == name}
