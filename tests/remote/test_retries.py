"""How often, and after which pauses."""

from threading import Event

import pytest

from sharedmask.remote import retries
from sharedmask.remote.retries import Retries


class _Watch(Event):
    def __init__(self):
        super().__init__()
        self.waits = []

    def wait(self, timeout=None):
        self.waits.append(timeout)
        return self.is_set()


def test_pauses_grow_up_to_a_bound():
    watch = _Watch()
    tries, error = Retries(watch), OSError("cut")
    with pytest.raises(OSError, match="cut"):
        for _ in range(100):
            tries.wait(error)
    assert len(watch.waits) == retries.TRIES - 1
    assert all(later > 1.1 * earlier for earlier, later in zip(watch.waits, watch.waits[1:], strict=False))


def test_what_comes_between_counts():
    watch = _Watch()
    tries, error = Retries(watch), OSError("cut")
    with pytest.raises(OSError, match="cut"):
        for _ in range(10 * retries.MOST_FAILURES):
            tries.wait(error)
            tries.progress()
    assert len(watch.waits) == retries.MOST_FAILURES - 1
    assert max(watch.waits) < 2 * retries.PAUSE


def test_what_the_server_asks_has_a_bound():
    watch = _Watch()
    Retries(watch).wait(OSError(), asked=1e6)
    assert watch.waits == [retries.LONGEST_PAUSE]


def test_one_who_goes_does_not_wait():
    watch = _Watch()
    watch.set()
    with pytest.raises(OSError, match="cut"):
        Retries(watch).wait(OSError("cut"))
