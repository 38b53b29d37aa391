"""What many items have in common: when it is put into shared memory, what arrives."""

from unittest import mock

import numpy as np
import pytest

from sharedmask.errors import SegmentError
from sharedmask.storage.registry import publish
from sharedmask.storage.segment import attach
from sharedmask.workers.sender import Sender, received

THING, OTHER = np.arange(3), np.arange(4)


@pytest.mark.shares
def test_what_the_item_before_had_is_sent_and_arrives_as_one_object():
    with Sender() as sender:
        first, second, third = (sender.sent(THING, 2**20) for _ in range(3))
        assert first is None and second is third is not None
        assert received(second) is received(third)
        assert np.array_equal(received(second), THING)
        assert sender.sent(OTHER, 2**20) is None


@pytest.mark.shares
def test_what_no_item_has_any_more_is_gone():
    """Subjects with a grid each, and several runs on it, are many."""
    made = []

    def publishing(*arguments):
        made.append(publish(*arguments))
        return made[-1]

    with Sender() as sender, mock.patch("sharedmask.workers.sender.publish", publishing):
        places = [sender.sent(THING, 2**20) for _ in range(3)][1:]
        for _ in range(2):
            sender.sent(OTHER, 2**20)
        assert attach(places[0]).handle == places[0]
        places.clear()
        (first, _), (second, _) = made
        assert [one._abandoned.alive for one in (first, second)] == [False, True]
    assert not second._abandoned.alive


def test_few_bytes_travel_with_each_item():
    with Sender() as sender:
        assert [sender.sent(THING, 9) for _ in range(3)] == [None] * 3


def test_what_finds_no_room_is_tried_once():
    full = mock.Mock(side_effect=SegmentError("full"))
    with Sender() as sender, mock.patch("sharedmask.workers.sender.publish", full):
        assert [sender.sent(THING, 2**20) for _ in range(4)] == [None] * 4
    assert full.call_count == 1
