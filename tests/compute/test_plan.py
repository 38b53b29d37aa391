"""How operations are cut and staffed under a bound on each process, and what a refusal offers."""

import re

import numpy as np
import pytest
from images import niimg

from sharedmask import Grid, MemoryBudget, Regions, SharedImage
from sharedmask.compute import plan
from sharedmask.compute.request import Request
from sharedmask.errors import MemoryLimitError, ParameterError
from sharedmask.sources.opening import open_source
from sharedmask.system import process, settings

MIB = 2**20
FACTS = open_source(niimg(np.zeros((20, 20, 20, 500), "i2")))
GRID = Grid(FACTS.shape[:3], FACTS.affine)
REGIONS = Regions.from_any([np.ones((20, 20, 20), bool)] * 3, GRID)


def request(regions=REGIONS, **parameters):
    return Request.checked(FACTS, regions, operation="masking", **parameters)


def plenty():
    """With the settings as they are now."""
    return MemoryBudget(2**40, "free RAM")


def planned(budget=None, **parameters):
    return plan.of_rows(FACTS, request(**parameters), budget or plenty())


@pytest.fixture(autouse=True)
def _eight_cpus(monkeypatch):
    monkeypatch.setattr(process, "n_cpus", lambda: 8)


# ---- the bound on each process


def test_blocks_of_cleaning_shrink_before_workers_go():
    usual = planned(detrend=True, n_jobs=4, prefer="processes")
    each = usual.rows * 6 * 500 * 8
    with settings.using(max_memory_per_process=10 * MIB + each // 2):
        bounded = planned(detrend=True, n_jobs=4, prefer="processes")
    assert bounded.rows == usual.rows // 2
    assert bounded.request.n_jobs == 4
    assert bounded.needed < usual.needed


def test_threads_share_the_bound_of_their_one_process():
    usual = planned(detrend=True, n_jobs=4, prefer="threads")
    each = usual.rows * 6 * 500 * 8
    with settings.using(max_memory_per_process=2 * each):
        bounded = planned(detrend=True, n_jobs=4, prefer="threads")
    assert (bounded.rows, bounded.request.n_jobs) == (usual.rows, 2)


def test_workers_go_where_all_of_them_do_not_fit():
    alone = planned(detrend=True, n_jobs=1, prefer="processes").needed
    with settings.using(max_memory_per_process="64M"):
        budget = MemoryBudget(alone + 60 * MIB, "free RAM")
        assert 1 <= planned(budget, detrend=True, n_jobs=8, prefer="processes").request.n_jobs < 8


def test_a_block_that_cannot_fit_is_refused():
    said = r"masking: a worker needs \d+ MiB .* and max_memory_per_process is 5 MiB \(given\)"
    with settings.using(max_memory_per_process="5M"), pytest.raises(MemoryLimitError, match=said):
        planned(prefer="processes", detrend=True, n_jobs=2)


def test_a_region_is_a_block_that_cannot_be_cut():
    with (
        settings.using(max_memory_per_process="40M"),
        pytest.raises(MemoryLimitError, match="smallest block"),
    ):
        planned(n_jobs=2, function=len)
    with settings.using(max_memory_per_process="60M"):
        assert planned(n_jobs=2, function=len).request.n_jobs == 2


@pytest.mark.parametrize(("n_jobs", "mib"), [(1, 4096), (2, 4096), (4, 2048), (16, 512)])
def test_auto_gives_each_process_its_part(n_jobs, mib):
    with settings.using(profile="auto", memory_limit="8G"):
        assert plan.per_process(n_jobs, MemoryBudget(8 * 2**30, "free RAM")) == mib * MIB


def test_an_explicit_bound_is_not_divided():
    with settings.using(profile="auto", max_memory_per_process="7G"):
        assert plan.per_process(16, MemoryBudget(8 * 2**30, "free RAM")) == 7 * 2**30


def test_without_a_bound_there_is_none():
    assert plan.per_process(4, plenty()) is None


@pytest.mark.parametrize("cleaning", [{}, {"detrend": True, "standardize": "psc"}], ids=str)
def test_numbers_do_not_depend_on_the_bound(cleaning):
    image = niimg(np.random.default_rng(0).normal(1000, 50, (8, 8, 8, 40)).astype("f4"))
    masks = [np.ones((8, 8, 8), bool)]
    with SharedImage(image) as opened:
        (usual,) = opened.mask_parallel(masks, **cleaning)
        with settings.using(max_memory_per_process=200_000):
            (bounded,) = opened.mask_parallel(masks, **cleaning)
    np.testing.assert_allclose(bounded, usual, rtol=1e-5, atol=1e-5)


# ---- refusals


def test_too_many_workers_are_refused_with_a_number_that_fits():
    fitting = planned(detrend=True, n_jobs=3, prefer="threads").needed
    budget = MemoryBudget(fitting, "free RAM")
    with pytest.raises(MemoryLimitError) as caught:
        planned(budget, detrend=True, n_jobs=8, prefer="threads")
    said = re.search(r"n_jobs=(\d+) would fit", str(caught.value))
    assert int(said[1]) == 3
    assert planned(budget, detrend=True, n_jobs=3, prefer="threads")


def test_too_many_masks_are_refused_with_a_number_that_fits():
    budget = MemoryBudget(planned().needed // 2, "free RAM")
    with pytest.raises(MemoryLimitError) as caught:
        planned(budget)
    size = int(re.search(r"iter_masks\(\.\.\., batch_size=(\d+)\)", str(caught.value))[1])
    fewer = Regions.from_any([np.ones((20, 20, 20), bool)] * size, GRID)
    assert plan.of_rows(FACTS, request(fewer), budget).needed <= budget.limit


@pytest.mark.parametrize("store", ["shm", "memfd"])
def test_an_image_that_does_not_fit_is_refused_with_what_would(store):
    image = niimg(np.zeros((20, 20, 20, 500), "i2"))
    with pytest.raises(MemoryLimitError, match=r"^loading .* \(memory_limit='6M'\): .*'disk'.* extract\(\)"):
        SharedImage(image, store=store, memory_limit="6M").load()
    with SharedImage(image, store="disk", memory_limit="6M") as opened:
        assert opened.mask(np.eye(20)[:, :, None] * np.ones(20)).shape == (500, 400)


@pytest.mark.parametrize("call", ["mask_parallel", "reduce", "map"])
def test_every_operation_is_projected(call, monkeypatch):
    masks = [np.ones((20, 20, 20), bool)] * 3
    with SharedImage(niimg(np.zeros((20, 20, 20, 500), "i2"))) as image:
        image.load()
        monkeypatch.setattr(image, "_memory_limit", image.nbytes + 10)
        arguments = (len, masks) if call == "map" else (masks,)
        with pytest.raises(MemoryLimitError, match=r"needs .* MiB and 0 KiB may be used"):
            getattr(image, call)(*arguments)


# ---- where workers are


def test_without_shared_memory_workers_are_threads(monkeypatch):
    monkeypatch.setattr(process, "n_cpus", lambda: 16)
    with settings.using(shared_memory=False):
        assert not plan.runs_in_processes(request(n_jobs=4, detrend=True), plenty())
        with pytest.raises(ParameterError, match="shared_memory is off"):
            plan.runs_in_processes(request(n_jobs=4, prefer="processes"), plenty())
    assert plan.runs_in_processes(request(n_jobs=8, detrend=True), plenty())
    assert not plan.runs_in_processes(request(n_jobs=4, detrend=True), plenty())
    assert plan.runs_in_processes(request(n_jobs=2, function=len), plenty())
