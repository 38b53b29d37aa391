"""What is certain to draw no random numbers, and what is not."""

import random
from functools import partial

import numpy as np
import pytest
from numpy import random as other_name

from sharedmask import SharedImage
from sharedmask.workers.pure import draws_nothing

FACTOR = 3


def spread(signals):
    return np.std(signals, axis=0) * FACTOR


def calls_another(signals):
    return spread(signals).max() + np.linalg.norm(signals)


def calls_itself(signals):
    return signals if len(signals) < 2 else calls_itself(signals[1:])


def imports(_):
    import random

    return random.random()


@pytest.mark.parametrize(
    "function",
    [np.mean, np.add, np.float32, len, partial(np.mean, axis=1), spread, calls_another, calls_itself]
    + [lambda x: x.mean(), lambda x: np.corrcoef(x.T)[0, 1], lambda x: [abs(one) for one in x]],
)
def test_of_numpys_own_functions_it_is_certain(function):
    assert draws_nothing(function)


def holds(thing):
    return lambda signals: thing(signals)


def of_a_generator():
    """Functions that draw from a generator which no module holds."""
    rng = np.random.default_rng(0)

    def has_a_default(_, drawn_from=rng):
        return drawn_from.normal()

    return [rng.normal, partial(rng.normal, 3), has_a_default, lambda _: rng.random(), holds(rng.normal)]


@pytest.mark.parametrize(
    "function",
    [random.random, np.random.rand, np.load, eval, imports, holds(imports), *of_a_generator()]
    + [lambda _: np.random.rand(), lambda _: other_name.rand(), lambda _: (lambda: np.random.rand())()]
    + [lambda _: getattr(np, "ran" + "dom").rand(), lambda x: x.__class__, lambda _: pytest.approx(1)],
)
def test_of_all_others_it_is_not(function):
    assert not draws_nothing(function)


def test_of_what_is_put_into_numpy_it_is_not(monkeypatch):
    assert draws_nothing(spread)
    monkeypatch.setattr(np, "std", lambda *_, **__: np.random.rand())
    assert not draws_nothing(spread)


def test_nothing_is_seeded_for_what_draws_nothing(monkeypatch):
    import nibabel as nib

    from sharedmask.workers import generators

    seeded = []
    monkeypatch.setattr(generators.Stream, "seed", lambda *_: seeded.append(1))
    masks = [np.ones((2, 3, 4), bool)] * 2
    with SharedImage(nib.Nifti1Image(np.ones((2, 3, 4, 5), np.float32), np.eye(4))) as image:
        image.map(lambda x: x.mean(), masks, random_state=0)
        assert not seeded
        image.map(lambda x: (x.mean(), random.random()), masks)
        assert seeded
