"""Callbacks and progress, by every path that results take."""

from functools import partial

import numpy as np
import pytest
from images import truth
from small_runs import every_worker

from sharedmask import SharedImage, extract
from sharedmask.compute import plan


@every_worker
@pytest.mark.parametrize("container", [list, dict])
def test_results_are_told_once_and_complete(workers, container, path, masks, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_BYTES", 12 * 4 * 7)
    given = masks if container is dict else list(masks.values())
    told = {}

    def on_result(key, signals):
        assert key not in told
        told[key] = signals.copy()

    with SharedImage(path) as opened:
        signals = opened.mask_parallel(given, on_result=on_result, **workers)
    assert sorted(told) == (["a", "b", "c"] if container is dict else ["mask_000", "mask_001", "mask_002"])
    for got, expected in zip(dict(sorted(told.items())).values(), masks, strict=True):
        np.testing.assert_array_equal(
            got, signals[expected] if container is dict else truth(path)[masks[expected]].T
        )


def told_by(call, masks, **parameters):
    told = []
    call(masks, on_result=lambda key, result: told.append((key, np.shape(result))), **parameters)
    return sorted(told)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"standardize": "psc"},
        {"standardize": "psc", "n_jobs": 2},
        {"n_jobs": -1},
        {"sample_mask": [1, 2]},
    ],
    ids=str,
)
@pytest.mark.parametrize("call", ["mask_parallel", "extract"])
def test_results_are_told_by_every_path(call, parameters, path, masks):
    rows = len(parameters.get("sample_mask", range(12)))
    expected = [(key, (rows, mask.sum())) for key, mask in masks.items()]
    with SharedImage(path) as opened:
        function = opened.mask_parallel if call == "mask_parallel" else partial(extract, path)
        assert told_by(function, masks, **parameters) == expected


@every_worker
def test_reductions_are_told(workers, shared, masks):
    assert told_by(shared.reduce, masks, **workers) == [(key, (12,)) for key in masks]


@every_worker
def test_answers_of_functions_are_told(workers, shared, masks):
    told = {}
    answers = shared.map(np.shape, masks, on_result=told.__setitem__, **workers)
    assert told == answers


@pytest.mark.parametrize("parameters", [{}, {"n_jobs": 2, "prefer": "processes"}], ids=str)
def test_an_error_of_a_callback_is_raised(parameters, shared, masks):
    def on_result(key, signals):
        raise LookupError(key)

    with pytest.raises(LookupError):
        shared.mask_parallel(masks, on_result=on_result, **parameters)
    assert shared.mask(masks["a"]).shape[0] == 12


@every_worker
@pytest.mark.parametrize("cleaning", [{}, {"standardize": "psc"}], ids=str)
@pytest.mark.parametrize("request_of", ["mask_parallel", "reduce", "extract", "map", "extract, reducing"])
def test_progress_reaches_the_total(request_of, cleaning, workers, shared, path, masks):
    told = []
    call = {
        "mask_parallel": shared.mask_parallel,
        "reduce": shared.reduce,
        "extract": partial(extract, path),
        "map": partial(shared.map, np.shape),
        "extract, reducing": partial(extract, path, strategy="mean"),
    }[request_of]
    call(masks, progress=lambda done, total: told.append((done, total)), **cleaning, **workers)
    totals = {total for _, total in told}
    assert len(totals) == 1
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1][0] == totals.pop()


def test_progress_may_be_a_bar(shared, masks, capsys):
    shared.mask_parallel(masks, progress=True)
    assert "mask" in capsys.readouterr().err


def test_no_progress_is_silent(shared, masks, capsys):
    shared.mask_parallel(masks)
    assert capsys.readouterr() == ("", "")
