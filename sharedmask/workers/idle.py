"""Idle workers, which may hold an image: what their caller asks of them, whether there are any or not.

Covers: having them let go. Does not cover: keeping them (``pool``, which says how when it is imported: who
has no workers does not wait for that).
"""

from collections.abc import Callable

_hows: list[Callable[[], None]] = []


def let_go_by(how: Callable[[], None]) -> None:
    """Have whoever closes an image call this, too."""
    _hows.append(how)


def let_go() -> None:
    """Have those that are idle hold no image any more, as the caller does not: then its memory is free."""
    for how in _hows:
        how()
