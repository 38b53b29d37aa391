"""Threads that ask servers: where none can be started, who asks does it."""

import threading

import pytest
from children import python

from sharedmask.remote import threads


@pytest.mark.parametrize("most", [0, 1])
def test_the_work_is_done_with_as_many_as_there_are(most, monkeypatch):
    left, begin = [most], threading.Thread.start

    def limited(thread):
        if left[0] == 0:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with threads.Threads(3) as executor:
        assert list(executor.map(abs, range(-9, 0))) == list(range(9, 0, -1))


def test_the_work_is_done_when_the_program_ends():
    script = """
        import atexit
        from sharedmask.remote.threads import Threads

        executor = Threads(2)
        atexit.register(lambda: print(list(executor.map(abs, [-1, -2]))))
    """
    assert python(script).stdout == "[1, 2]\n"
