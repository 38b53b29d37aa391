"""Worker processes as an executor: small tasks go together, and each has an answer of its own."""

import os
import threading
from dataclasses import dataclass

import pytest

from sharedmask.system import process
from sharedmask.workers.executor import Processes

pytestmark = pytest.mark.shares


@dataclass(frozen=True)
class Task:
    number: int
    is_small: bool = True
    operation = "test", "dividing", 0


def divide(task):
    return os.getpid(), 12 // task.number


@pytest.mark.parametrize("is_small", [True, False])
def test_each_task_has_its_own_answer(is_small):
    with Processes(2, ()) as executor:
        waiting = [executor.submit(divide, Task(number, is_small)) for number in (1, 0, 2, 3)]
        executor.begin()
        assert isinstance(waiting.pop(1).exception(), ZeroDivisionError)
        answers = [future.result() for future in waiting]
    assert [value for _, value in answers] == [12, 6, 4] and os.getpid() not in dict(answers)


def test_of_tasks_that_went_together_only_those_that_kill_their_worker_fail(tmp_path):
    def die_of_one(task):
        if task.number == 1:
            os._exit(3)
        return task.number

    with Processes(1, ()) as executor:
        waiting = [executor.submit(die_of_one, Task(number)) for number in range(4)]
        executor.begin()
        assert "ended with exit code 3" in str(waiting.pop(1).exception())
        assert [future.result() for future in waiting] == [0, 2, 3]


def cores(task):
    return process.n_cpus(), process.shares_cpus()


@pytest.mark.parametrize(("n_cpus", "share"), [(1, 1), (4, 2), (5, 2)])
def test_each_worker_has_its_share_of_the_cores(n_cpus, share, monkeypatch):
    monkeypatch.setattr(process, "n_cpus", lambda: n_cpus)
    with Processes(2, ()) as executor:
        assert executor.submit(cores, Task(1, is_small=False)).result() == (share, False)


def test_threads_that_do_the_work_instead_have_all_cores():
    met = threading.Barrier(2, timeout=30)  # which cannot travel to a worker

    def share(task):
        met.wait()
        return process._share

    with Processes(2, ()) as executor:
        tasks = [executor.submit(share, Task(number, is_small=False)) for number in range(2)]
        assert [task.result() for task in tasks] == [None, None]
    assert process._share is None
