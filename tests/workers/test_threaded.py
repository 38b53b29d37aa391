"""Threads of the caller: who works, what is told when, which error is raised."""

import threading
import time

import pytest

from sharedmask.system import process
from sharedmask.workers.threaded import run_threads


@pytest.fixture(autouse=True)
def _several_cpus(monkeypatch):
    monkeypatch.setattr(process, "n_cpus", lambda: 4)


def test_the_caller_is_one_of_the_threads():
    together = threading.Barrier(3)

    def who(_):
        together.wait(60)
        return threading.current_thread()

    found = run_threads(who, (), [(number,) for number in range(3)], 3)
    assert len(set(found)) == 3
    assert threading.current_thread() in found


def test_the_first_of_several_errors_is_raised_when_all_have_ended():
    together, ended = threading.Barrier(2), []

    def fail(number):
        together.wait(60)
        if number == 0:
            together.wait(60)
            raise KeyError(number)
        try:
            raise IndexError(number)
        finally:
            ended.append(number)
            together.wait(60)

    with pytest.raises(KeyError, match="0"):
        run_threads(fail, (), [(number,) for number in range(9)], 2)
    assert ended == [1]


@pytest.mark.parametrize("error", [IndexError, KeyboardInterrupt])
def test_an_error_of_who_is_told_stops_the_work_and_is_the_callers(error):
    caller, told, worked = threading.current_thread(), threading.Event(), []

    def work(number):
        worked.append(number)
        if threading.current_thread() is not caller and number > 3:
            told.wait(60)
            time.sleep(0.001)

    def tell(number, _):
        if number == 3:
            told.set()
            raise error

    with pytest.raises(error):
        run_threads(work, (), [(number,) for number in range(10_000)], 2, on_done=tell)
    assert len(worked) < 10_000


def test_those_before_one_that_fails_are_told_in_order():
    told = []
    with pytest.raises(ZeroDivisionError):
        run_threads(
            lambda n: 1 // (30 - n), (), [(n,) for n in range(40)], 3, on_done=lambda n, _: told.append(n)
        )
    assert told == list(range(30))
