"""Rows of an image under several threads, under a limit, and of files that cannot be loaded."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from images import SHAPE, same_bits, truth
from small_runs import LARGE_MASKS, owned, refused

from sharedmask import SharedImage, extract
from sharedmask.errors import (
    ClosedImageError,
    DamagedImageError,
    MemoryLimitError,
    MissingFileError,
    ParameterError,
)
from sharedmask.sources import loader
from sharedmask.workers import pool


@pytest.mark.parametrize("parameters", [{}, {"n_jobs": 2}, {"n_jobs": 2, "prefer": "processes"}], ids=str)
def test_several_threads_use_one_image(parameters, path, masks, monkeypatch):
    calls, load = [], loader.load
    monkeypatch.setattr(loader, "load", lambda *a, **k: calls.append(1) or load(*a, **k))
    barrier = threading.Barrier(4)

    def work(mask, opened):
        barrier.wait()
        return [opened.mask(mask, dtype=None, **parameters) for _ in range(5)]

    given = [*masks.values(), np.ones(SHAPE, bool)]
    with SharedImage(path) as opened, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(partial(work, opened=opened), given))
    for mask, signals in zip(given, answers, strict=True):
        for one in signals:
            same_bits(one, truth(path)[mask].T)
    assert len(calls) == 1


def test_closing_under_the_work_of_other_threads(path, masks):
    started = threading.Event()

    def work(opened):
        for _ in range(10_000):
            try:
                signals = opened.mask(masks["a"], dtype=None)
            except ClosedImageError:
                return True
            same_bits(signals, truth_of_a)
            started.set()
        return False

    truth_of_a = truth(path)[masks["a"]].T
    with ThreadPoolExecutor(3) as threads:
        opened = SharedImage(path)
        running = [threads.submit(work, opened) for _ in range(3)]
        started.wait(10)
        opened.close()
        assert all(future.result() for future in running)


def test_closing_before_workers_attach(path, masks, monkeypatch):
    opened, run = SharedImage(path), pool.run_processes

    def close_first(*args, **kwargs):
        opened.close()
        return run(*args, **kwargs)

    monkeypatch.setattr(pool, "run_processes", close_first)
    with pytest.raises(ClosedImageError):
        opened.mask_parallel(masks, n_jobs=2, prefer="processes")


@pytest.mark.parametrize("limit", ["1M", 2**20, 1e-9])
def test_an_image_over_the_limit_is_not_loaded(limit, large, no_segment):
    said = refused(MemoryLimitError, SharedImage(large, store="shm", memory_limit=limit).load)
    assert said.startswith("loading large.nii.gz needs 8 MiB and ")
    assert f"(memory_limit={limit!r})" in said


@pytest.mark.parametrize(
    "use",
    [
        lambda image: image.mask_parallel(LARGE_MASKS),
        lambda image: image.reduce(LARGE_MASKS),
        lambda image: image.map(len, LARGE_MASKS),
        lambda image: image.frame(0),
        lambda image: image.array,
    ],
)
def test_an_image_over_the_limit_is_not_used(use, large, no_segment):
    with pytest.raises(MemoryLimitError, match=r"^loading large\.nii\.gz"):
        use(SharedImage(large, store="shm", memory_limit="1M"))


def test_an_image_can_be_used_after_a_refusal(large):
    with SharedImage(large, memory_limit="16M") as opened:
        refused(MemoryLimitError, opened.mask_parallel, LARGE_MASKS)
        assert opened.mask(np.eye(64)[:, :, None] * np.ones(16)).shape == (20, 1024)


def test_a_part_fits_where_the_whole_does_not(large):
    few = np.zeros((64, 64, 16), bool)
    few[:4] = True
    refused(MemoryLimitError, SharedImage(large, memory_limit="4M").load)
    with SharedImage(large, memory_limit="4M", mask_img=few) as opened:
        assert opened.mask(few).shape == (20, 4096)


@pytest.mark.parametrize("limit", ["much", 0, -5])
def test_a_limit_that_is_none_is_refused(limit, path, masks):
    assert repr(limit) in refused(ParameterError, SharedImage(path, memory_limit=limit).load)
    assert repr(limit) in refused(ParameterError, extract, path, masks, memory_limit=limit)


def test_a_truncated_image_leaves_nothing(truncated, masks):
    opened = SharedImage(truncated)
    assert str(truncated) in refused(DamagedImageError, opened.load)
    assert owned() == []
    assert "not loaded" in repr(opened)
    assert str(truncated) in refused(DamagedImageError, opened.mask_parallel, masks)
    opened.close()


def test_an_image_that_is_not_there(tmp_path, masks):
    missing = tmp_path / "none.nii.gz"
    assert str(missing) in refused(MissingFileError, SharedImage, missing)
    assert str(missing) in refused(FileNotFoundError, extract, missing, masks)


def test_an_image_that_went_away_before_loading(path):
    opened = SharedImage(path)
    path.unlink()
    assert str(path) in refused(MissingFileError, opened.load)
