"""What idle workers let go of, by whoever they are kept."""

import numpy as np
import pytest

from sharedmask.workers import idle, pool
from sharedmask.workers.sender import Sender, received

THING = np.arange(3)


def test_all_who_keep_some_are_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(idle, "_hows", [])
    idle.let_go()  # of nobody
    idle.let_go_by(lambda: asked.append(1))
    idle.let_go_by(lambda: asked.append(2))
    idle.let_go()
    assert asked == [1, 2]


def _kept(handle):
    before = received.cache_info().currsize
    received(handle)
    return before


@pytest.mark.shares
def test_a_worker_keeps_what_its_items_had_in_common_until_it_is_told():
    with Sender() as sender:
        _, handle = (sender.sent(THING, 2**20) for _ in range(2))
        assert pool.run_processes(_kept, (handle,), [(), ()], 1) == [0, 1]
        idle.let_go()
        assert pool.run_processes(_kept, (handle,), [()], 1) == [0]
