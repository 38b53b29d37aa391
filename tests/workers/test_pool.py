"""Worker processes: answers, errors, deaths, and every way a user starts Python."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

import pytest

from sharedmask.errors import ParameterError, WorkerError
from sharedmask.system.process import effective_n_jobs
from sharedmask.workers import pool, worker
from sharedmask.workers.pool import run_processes
from sharedmask.workers.threaded import run_threads

RUNNERS = [run_processes, run_threads]


def add(first, second):
    return first + second


@pytest.mark.parametrize("run", RUNNERS)
def test_answers_come_in_the_order_of_the_items(run):
    done = []
    answers = run(
        add, (10,), [(i,) for i in range(20)], 3, on_done=lambda number, value: done.append((number, value))
    )
    assert answers == list(range(10, 30))
    assert sorted(done) == list(enumerate(answers))


def test_large_items_with_large_answers_do_not_wait_for_each_other():
    items = [(bytes(1_000_000),) for _ in range(20)]
    assert run_processes(lambda given: bytes(len(given)), (), items, 2) == [item for (item,) in items]


def test_items_before_one_that_fails_are_told():
    told = []
    with pytest.raises(ZeroDivisionError):
        run_processes(
            lambda n: 1 // (300 - n), (), [(n,) for n in range(400)], 1, on_done=lambda n, _: told.append(n)
        )
    assert told == list(range(300))


def test_an_answer_that_fills_pipes_goes_between_quick_ones():
    sizes = [2_000_000 if n % 50 == 7 else 1 for n in range(200)]
    assert list(map(len, run_processes(bytes, (), [(n,) for n in sizes], 2))) == sizes


@pytest.mark.parametrize(("n_items", "first"), [(16, 1), (40, 1), (200, 3), (4000, 8)])
def test_messages_grow_only_while_items_are_known_to_be_quick(n_items, first):
    ours, theirs = multiprocessing.Pipe()
    other, its = multiprocessing.Pipe()
    with ours, theirs, other, its:
        workers = [mock.Mock(pipe=ours), mock.Mock(pipe=other)]
        dispatch = pool._Dispatch(workers, [(n,) for n in range(n_items)], pickle.dumps, None, None)

        def next_after(seconds):
            dispatch._seconds = None
            dispatch._learn([worker.Answer(seconds=seconds)] * 2)
            return len(dispatch._next_packed()[0])

        assert len(dispatch._next_packed()[0]) == first
        assert next_after(0.1) == 1
        assert next_after(0.0005) <= (10 if n_items > 16 else 1)
        assert (next_after(0.0005) > 1) == (n_items > 16)


def test_closures_and_lambdas_travel():
    factor = 3
    assert run_processes(lambda x: factor * x, (), [(i,) for i in range(5)], 2) == [0, 3, 6, 9, 12]


def test_workers_stay_for_the_next_call():
    first = set(run_processes(lambda _: os.getpid(), (), [(i,) for i in range(8)], 2))
    second = set(run_processes(lambda _: os.getpid(), (), [(i,) for i in range(8)], 2))
    assert second <= first
    assert os.getpid() not in first


def test_no_more_workers_than_items():
    run_processes(add, (1,), [(1,), (2,)], 20)
    assert len(pool._pools[()]._idle) == 2


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"killed by SIGKILL .*memory"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "killed by SIGSEGV"),
        (lambda: os._exit(7), "exit code 7"),
    ],
)
def test_a_dead_worker_is_a_named_error_and_the_next_call_works(end, message):
    with pytest.raises(WorkerError, match=message):
        run_processes(lambda number: end() if number == 3 else number, (), [(i,) for i in range(8)], 2)
    assert run_processes(add, (1,), [(i,) for i in range(4)], 2) == [1, 2, 3, 4]


def test_a_worker_that_died_while_idle_is_replaced():
    run_processes(add, (1,), [(1,)], 1)
    (worker,) = pool._pools[()]._idle
    os.kill(worker.process.pid, signal.SIGKILL)
    assert worker.process.wait(60) == -signal.SIGKILL
    assert run_processes(add, (1,), [(1,)], 1) == [2]


def test_an_error_stops_the_workers_that_are_still_at_it():
    def slow(number):
        if number == 0:
            raise KeyError("first")
        time.sleep(60)

    start = time.monotonic()
    with pytest.raises(KeyError, match="first"):
        run_processes(slow, (), [(0,), (1,), (2,)], 3)
    assert time.monotonic() - start < 30
    assert pool._pools[()]._idle == []


def test_callers_in_several_threads_have_workers_of_their_own():
    answers = {}

    def call(name):
        answers[name] = run_processes(lambda x: x * x, (), [(i,) for i in range(30)], 2)

    threads = [threading.Thread(target=call, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answers[name] == [i * i for i in range(30)] for name in range(4))


@pytest.mark.parametrize("n_jobs", [0, 1.5, "2"])
def test_n_jobs_without_meaning_is_refused(n_jobs):
    with pytest.raises(ParameterError, match="n_jobs="):
        effective_n_jobs(n_jobs)


def test_n_jobs_follows_joblib():
    n_cpus = len(os.sched_getaffinity(0))
    assert [effective_n_jobs(n) for n in (None, 1, 7)] == [1, 1, 7]
    assert effective_n_jobs(-1) == n_cpus
    assert effective_n_jobs(-2) == max(1, n_cpus - 1)


def test_workers_come_from_what_began_before():
    try:
        pool.begin(("json",))
        template = pool._pools[("json",)]._template._process
        parents = pool.run_processes(lambda _: os.getppid(), (), [(1,), (2,)], 2, preload=("json",))
        assert set(parents) == {template.pid}
    finally:
        pool._pools.pop(("json",)).end()


SCRIPT = """
class Users:
    def __init__(self, number):
        self.number = number

    def __call__(self):
        return self.number

def called(item):
    return item(), isinstance(item, Users)

from sharedmask import batch_process

def answers(n_jobs, kind):
    made = {number: Users(number) if kind is Users else (lambda: 1) for number in range(5)}
    return list(batch_process(made, called, n_jobs=n_jobs).results.values())

print([answers(2, kind) == answers(1, kind) for kind in (Users, None)])
"""


def test_items_may_be_of_classes_that_a_script_defines():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[True, True]\n", "")


class Unloved:
    """Cannot be received."""

    def __reduce__(self):
        return int, ("no number",)


@pytest.mark.parametrize(
    ("item", "message"), [(Unloved(), "no number"), (threading.Lock(), "cannot be sent")]
)
def test_an_item_that_does_not_travel_is_an_error(item, message):
    with pytest.raises((WorkerError, ValueError), match=message):
        run_processes(len, (), [(item,)], 1)


@pytest.mark.parametrize(
    "held",
    [threading.Lock(), threading.local(), multiprocessing.Lock(), (number for number in ())],
    ids=["lock", "local", "lock of processes", "generator"],
)
def test_a_function_that_cannot_travel_works_here(held, caplog):
    assert run_processes(lambda number: (held, number)[1], (), [(1,), (2,)], 2) == [1, 2]
    assert "the function cannot be sent to workers: " in caplog.text


def test_an_end_is_told_of_where_the_caller_blocks_signals():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    preload = ("colorsys",)  # a template of its own
    try:
        with pytest.raises(WorkerError, match="exit code 7"):
            run_processes(os._exit, (), [(7,)], 1, preload=preload)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        pool._pools.pop(preload).end()
