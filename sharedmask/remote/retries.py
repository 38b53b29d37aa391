"""Retries: what is tried again after a server or a line failed, and when no more.

Covers: how long nothing may come, pauses that grow, how often. Does not cover: which failures pass by
(``http``, ``filesystems``).
"""

import random
from threading import Event

TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""
TRIES = 8
"""Failures, one after the other, that are one too many where no byte came between them."""
TRIES_OF_OPTIONAL = 4
"""Of what need not be there, where the server says nothing: some do so of what they lack."""
MOST_FAILURES = 200
"""Of one pass over a file, whatever came between them."""
PAUSE = 0.1
"""Seconds before the second try; each is twice as long as the one before."""
LONGEST_PAUSE = 30.0


class Retries:
    """How often what failed is tried again in one pass over a file."""

    def __init__(self, stopped: Event) -> None:
        self._stopped = stopped
        self._in_a_row = self._in_all = 0

    def progress(self) -> None:
        """Something came."""
        self._in_a_row = 0

    def wait(self, error: Exception, asked: float = 0.0, most: int | None = None) -> None:
        """Sleep before the next try, as long as the server ``asked``; raise ``error`` if it was the last.

        After ``most`` without a byte between them there is none.
        """
        self._in_a_row += 1
        self._in_all += 1
        pause = PAUSE * 2 ** (self._in_a_row - 1) * random.uniform(0.75, 1.25)
        none_left = self._in_a_row >= (most or TRIES) or self._in_all >= MOST_FAILURES
        if none_left or self._stopped.wait(min(max(pause, asked), LONGEST_PAUSE)):
            raise error
