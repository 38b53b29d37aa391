"""Threads where only so many can be started: the work is done all the same, or the error says why."""

import threading

import numpy as np
import pytest
from images import random_masks

from sharedmask import MemoryMonitor, SharedImage, extract
from sharedmask.system.threads import CannotStartThreadError, Threads, start


def refuse(thread):
    raise RuntimeError("can't start new thread")


@pytest.fixture(params=[0, 1])
def few(request, monkeypatch):
    """No more than so many can be started."""
    left, begin = [request.param], threading.Thread.start

    def limited(thread):
        if left[0] == 0:
            refuse(thread)
        left[0] -= 1
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    return request.param


def test_an_executor_does_its_work_with_as_many_as_there_are(few, caplog):
    with Threads(4) as threads:
        assert list(threads.map(lambda number: number**2, range(20))) == [number**2 for number in range(20)]
        failing = threads.submit(lambda: 1 / 0)
        assert isinstance(failing.exception(), ZeroDivisionError)
    assert caplog.text.count("no thread can be started: ") == (few == 0)


def test_what_waits_is_done_once_when_threads_can_be_started_again(monkeypatch):
    done = []
    with Threads(2) as threads:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            threads.submit(done.append, 1)
        threads.submit(done.append, 2).result()
    assert done == [1, 2]


def test_the_error_names_the_limit(few):
    if few:
        start(threading.Thread(target=len, args=("",)))
    with pytest.raises(CannotStartThreadError, match=r"limited: `ulimit -u`, or pids\.max"):
        start(threading.Thread(target=len))
    with pytest.raises(RuntimeError, match="no thread can be started"), MemoryMonitor():
        pass


def test_numbers_are_the_same_with_and_without_threads(path, monkeypatch):
    masks = random_masks(3)

    def answers():
        with SharedImage(path) as image:
            found = image.mask_parallel(masks, n_jobs=2)
        return [*found, *extract(path, masks, smoothing_fwhm=2.0), *extract(path, masks)]

    expected = answers()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    for one, other in zip(answers(), expected, strict=True):
        np.testing.assert_array_equal(one, other)
