"""What many items have in common: it lies in shared memory, where each worker reads it once.

Covers: putting it there, the same object for each item that arrives. Does not cover: items (``pool``).
"""

import contextlib
import functools
import pickle
import weakref
from dataclasses import replace
from typing import Any

import numpy as np

from sharedmask.errors import SharedMaskError
from sharedmask.storage.registry import publish
from sharedmask.storage.segment import Handle, attach
from sharedmask.typing import Array
from sharedmask.workers import idle

_FEW_BYTES = 64 * 1024  # which travel with each item


class Sender(contextlib.ExitStack):
    """Puts there what items that follow each other have in common, as long as any of them has its place.

    When it is closed all of it goes.
    """

    _thing: Any = None
    _handle: Handle | None = None
    _is_tried = False

    def sent(self, thing: Any, nbytes: int) -> Handle | None:
        """Where it is; None of what the item before did not have, and of hardly any bytes."""
        if thing is not self._thing:
            self._thing, self._handle, self._is_tried = thing, None, False
        elif not self._is_tried and nbytes > _FEW_BYTES:
            self._is_tried = True
            with contextlib.suppress(SharedMaskError):  # it travels with each
                self._handle = self._published(pickle.dumps(thing))
        return self._handle

    def _published(self, packed: bytes) -> Handle:
        def fill(arrays: dict[str, Array]) -> None:
            arrays["packed"][:] = np.frombuffer(packed, np.uint8)

        geometry = {"packed": ((len(packed),), np.dtype(np.uint8))}
        owned, _ = publish("what workers have in common", geometry, fill)
        # A thing of its own, that only items have: with the last of these what they had in common goes.
        handle = replace(owned.handle)
        self.callback(weakref.finalize(handle, owned.release))
        return handle


@functools.lru_cache(maxsize=1)
def received(handle: Handle) -> Any:
    """What was sent; for the next item it is the same object, with all that it has found out."""
    return pickle.loads(attach(handle).arrays["packed"].data)


idle.let_go_by(received.cache_clear)
