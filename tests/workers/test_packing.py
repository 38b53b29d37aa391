"""A job arrives as it was sent, with its generators and variables."""

import threading

import numpy as np
import pytest

from sharedmask.workers import packing


def arrived(thing):
    payload, held = packing.dumps(thing)
    again, there, values = packing.loads(payload)
    return again, list(zip(held, there, strict=True)), values


def test_functions_travel_with_what_they_hold():
    factor = 3
    again, held, values = arrived((lambda x: factor * x, [1, 2]))
    assert (again[0](2), again[1], held, values) == (6, [1, 2], [], {})


def test_generators_are_numbered_as_they_are_met():
    one, other = np.random.RandomState(1), np.random.RandomState(2)
    (a, b, c), held, _ = arrived((one, other, one))
    assert a is c
    assert held == [(one, a), (other, b)]
    assert (one.rand(), other.rand()) == (a.rand(), b.rand())
    assert packing.held_by([one, other, one]) == [one, other]


def test_a_librarys_generator_is_that_of_the_process_that_receives_it():
    (again, draw), held, _ = arrived((np.random.mtrand._rand, np.random.rand))
    assert again is np.random.mtrand._rand
    assert (draw.__self__, held) == (again, [])


def test_what_cannot_travel_is_an_error():
    with pytest.raises(TypeError):
        packing.dumps(threading.Lock())
