"""Generators of all kinds: read, set, seeded and drawn from, whatever they are made of."""

import random

import numpy as np
import pytest

from sharedmask.workers.generators import Stream, kept

MAKERS = {
    "random": lambda: random.Random(5),
    "legacy": lambda: np.random.RandomState(5),
    "legacy of PCG64": lambda: np.random.RandomState(np.random.PCG64(5)),
    "generator": lambda: np.random.default_rng(5),
    "bits": lambda: np.random.MT19937(5),
}


def normal(generator):
    """Of a pair, where they are drawn in pairs."""
    for name in ("gauss", "standard_normal"):
        if hasattr(generator, name):
            return getattr(generator, name)(*[0, 1] * (name == "gauss"))
    return generator.random_raw()


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("n_before", [0, 1, 2, 700])
def test_what_is_kept_stands_where_it_did(make, n_before):
    generator, other = make(), make()
    before = [normal(one) for one in (generator, other) for _ in range(n_before)]
    with kept([generator]):
        stream = Stream(generator)
        stream.root_in((1, "it"))
        stream.begin(3)
        normal(generator)
    assert [normal(generator) for _ in range(3)] == [normal(other) for _ in range(3)]
    assert before[:n_before] == before[n_before:]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_stream_hangs_on_its_root_and_item_and_knows_whether_it_was_drawn_from(make):
    def drawn(root, number, n_drawn):
        generator = make()
        normal(generator)
        stream = Stream(generator)
        stream.root_in((root, "it"))
        stream.begin(number)
        return [normal(generator) for _ in range(n_drawn)], stream.was_drawn_from()

    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    assert drawn(1, 2, 3)[1] and not drawn(1, 2, 0)[1]
    assert len({tuple(drawn(root, number, 1)[0]) for root in range(4) for number in range(4)}) == 16


def test_what_a_stream_hangs_on_is_looked_at_and_not_taken():
    for make in MAKERS.values():
        generator, other = make(), make()
        assert Stream(generator).next() == Stream(generator).next()
        assert normal(generator) == normal(other)
