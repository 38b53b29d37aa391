"""How signals are made: each voxel cleaned once, here or by workers, within the memory asked for."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
from images import SHAPE, bold, same_bits, save
from small_runs import LARGE_MASKS, every_worker, refused

from sharedmask import MemoryBudget, SharedImage, extract
from sharedmask.compute import cleaning, plan, signals
from sharedmask.errors import (
    MemoryLimitError,
)
from sharedmask.workers import pool


def count_columns(monkeypatch):
    columns, apply = [], cleaning.Cleaning.apply

    def counting(self, signals):
        columns.append(signals.shape[1])
        return apply(self, signals)

    monkeypatch.setattr(cleaning.Cleaning, "apply", counting)
    return columns


@pytest.mark.parametrize("call", ["mask_parallel", "extract"])
def test_each_voxel_is_cleaned_once(call, path, masks, brain, monkeypatch):
    columns = count_columns(monkeypatch)
    with SharedImage(path) as opened:
        function = opened.mask_parallel if call == "mask_parallel" else partial(extract, path)
        function([*masks.values()] * 3, standardize="psc")
    assert sum(columns) == brain.sum()


def test_disjoint_masks_are_cleaned_once(path, labels, monkeypatch):
    columns = count_columns(monkeypatch)
    with SharedImage(path) as opened:
        opened.mask_parallel([labels == k for k in (20, 0, 10)], standardize="psc")
    assert sum(columns) == (labels != 30).sum()


def test_many_voxels_are_cleaned_in_parts(path, brain, monkeypatch):
    monkeypatch.setattr(plan, "COLUMNS", 10)
    columns = count_columns(monkeypatch)
    with SharedImage(path) as opened:
        in_parts = opened.mask(brain, standardize="zscore_sample")
        assert set(columns[:-1]) == {10}
        monkeypatch.setattr(plan, "COLUMNS", 10**6)
        same_bits(in_parts, opened.mask(brain, standardize="zscore_sample"))


def test_without_cleaning_nothing_is_cleaned(shared, masks, monkeypatch):
    columns = count_columns(monkeypatch)
    shared.mask_parallel(masks, t_r=2.0, standardize=False)
    assert columns == []


@pytest.mark.parametrize(
    ("parameters", "processes"),
    [
        ({}, False),
        ({"n_jobs": 2}, False),
        ({"n_jobs": 2, "prefer": "processes"}, True),
        ({"prefer": "processes"}, True),
        ({"n_jobs": 2, "standardize": "psc"}, False),
        ({"n_jobs": 2, "standardize": "psc", "prefer": "processes"}, True),
        ({"standardize": "psc"}, False),
        ({"n_jobs": 2, "standardize": "psc", "prefer": "threads"}, False),
    ],
    ids=str,
)
def test_where_the_work_is_done(parameters, processes, shared, masks, monkeypatch):
    used, run = [], pool.run_processes
    monkeypatch.setattr(pool, "run_processes", lambda *a, **k: used.append(1) or run(*a, **k))
    shared.mask_parallel(masks, **parameters)
    assert bool(used) is processes


@every_worker
def test_warnings_of_cleaning_reach_the_caller(workers, tmp_path, masks):
    path = save(tmp_path / "long.nii", bold((*SHAPE, 40)))
    with SharedImage(path) as opened, pytest.warns(UserWarning, match="too high") as caught:
        opened.mask_parallel(masks, low_pass=0.4, t_r=2.0, **workers)
    assert len({str(warning.message) for warning in caught}) == 1


@pytest.mark.parametrize("parameters", [{}, {"n_jobs": 2, "prefer": "processes"}, {"detrend": True}], ids=str)
def test_signals_over_the_limit_are_not_made(parameters, large, monkeypatch):
    with SharedImage(large, memory_limit="16M") as opened:
        opened.load()
        monkeypatch.setattr(signals, "_output", None)
        said = refused(MemoryLimitError, opened.mask_parallel, LARGE_MASKS, **parameters)
        assert said.startswith("masking large.nii.gz with 4 masks needs ")
        assert "(memory_limit='16M')" in said


@pytest.mark.some(2)
@pytest.mark.parametrize(
    "call",
    [
        lambda image: image.mask_parallel,
        lambda image: partial(extract, image._source),
        lambda image: partial(extract, image._source, strategy="mean"),
    ],
    ids=["mask_parallel", "extract", "extract, reducing"],
)
@pytest.mark.parametrize("cleaning", [{}, {"standardize": "psc"}], ids=str)
def test_no_more_memory_is_taken_than_asked_for(call, cleaning, tmp_path, monkeypatch):
    path = save(tmp_path / "run.nii", bold((32, 32, 16, 100)))
    asked, require = [], MemoryBudget.require
    monkeypatch.setattr(MemoryBudget, "require", lambda *args: asked.append(args[2]) or require(*args))
    with SharedImage(path) as opened:
        opened.load().mask(np.ones((32, 32, 16)), **cleaning)
        asked.clear()
        tracemalloc.start()
        call(opened)([np.ones((32, 32, 16), bool)] * 4, **cleaning)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak <= 1.1 * sum(asked) + 2 * 2**20


@pytest.mark.parametrize(("n_rows", "dtype"), [(200, "u1"), (256, "u2"), (70_000, "u4")])
def test_numbers_of_rows_travel_in_few_bytes(n_rows, dtype):
    positions = np.array([0, n_rows - 1])
    sent = signals._narrow(positions, n_rows)
    assert sent.dtype == dtype
    assert np.array_equal(sent, positions)
