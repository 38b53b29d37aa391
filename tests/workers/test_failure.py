"""Exceptions on their way: as themselves, with the traceback they had, or what they said."""

import pickle
import threading

import pytest

from sharedmask import errors
from sharedmask.errors import WorkerError
from sharedmask.workers.pool import run_processes
from sharedmask.workers.streams import Streams
from sharedmask.workers.threaded import run_threads

RUNNERS = [run_processes, run_threads]


def add(first, second):
    return first + second


@pytest.mark.parametrize("run", RUNNERS)
def test_the_exception_of_a_kernel_is_the_callers(run):
    with pytest.raises(TypeError, match="unsupported operand"):
        run(add, (1,), [(1,), ("x",)], 2)
    assert run(add, (1,), [(1,), (2,)], 2) == [2, 3]


class Unequal(ValueError):
    """Which cannot be compared."""

    def __eq__(self, other):
        raise TypeError("no equality")

    __hash__ = None


def unequal():
    try:
        raise KeyError("first")
    except KeyError as error:
        raise Unequal("it") from error


def stop():
    raise StopIteration("it")


class Coded(Exception):
    """Whose constructor is its own, and which holds what cannot be pickled."""

    def __init__(self, *, code):
        super().__init__(f"it is {code}")
        self.code, self.lock = code, threading.Lock()


def coded():
    raise Coded(code=3)


class Made(Exception):
    """Made by a method that takes two."""

    def __new__(cls, *_both):
        return super().__new__(cls, "it")

    def __init__(self, first, second):
        super().__init__("it")


class OfAFile(OSError):
    """Whose constructor is its own, and which names a file."""

    def __init__(self, name, more):
        super().__init__(2, "it is gone", name)
        self.more = more


def made():
    raise Made(1, 2)


def of_a_file():
    raise OfAFile("a.nii", 3)


def of_a_lock():
    raise ValueError(threading.Lock())  # it is a lock


def together():
    raise ExceptionGroup("it", [ValueError("first"), Coded(code=3)])


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (unequal, Unequal),
        (stop, StopIteration),
        (coded, Coded),
        (made, Made),
        (of_a_file, OfAFile),
        (of_a_lock, ValueError),
    ],
)
def test_odd_exceptions_are_the_same_with_and_without_workers(function, kind, n_jobs):
    run = run_processes if n_jobs > 1 else run_threads
    with pytest.raises(kind, match=r"it|lock") as caught:
        run(function, (), [()], n_jobs)
    assert getattr(caught.value, "filename", "a.nii") == "a.nii"
    with Streams(function) as streams, pytest.raises(kind, match=r"it|lock"):
        run(function, (), [()], n_jobs, streams=streams)


def test_a_group_has_its_members():
    with pytest.raises(ExceptionGroup, match="it") as caught:
        run_processes(together, (), [()], 1)
    value, ours = caught.value.exceptions
    assert (repr(value), type(ours), ours.code) == ("ValueError('first')", Coded, 3)


def test_the_workers_traceback_is_the_cause():
    with pytest.raises(ZeroDivisionError) as caught:
        run_processes(lambda x: 1 // x, (), [(0,)], 1)
    assert "<lambda>" in str(caught.value.__cause__)


def test_an_answer_that_cannot_be_sent_is_an_error():
    with pytest.raises(WorkerError, match="cannot be sent back"):
        run_processes(lambda: threading.Lock(), (), [()], 1)


def test_an_argument_that_cannot_be_received_is_an_error():
    class Poison:
        def __reduce__(self):
            return int, ("no number",)

    with pytest.raises(ValueError, match="no number"):
        run_processes(lambda poison: 0, (Poison(),), [()], 1)


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if isinstance(kind, type)])
def test_errors_of_ours_can_be_made_without_their_constructor(kind):
    """As who sends exceptions with their attributes makes them (tblib, hence Dask)."""
    made = kind.__new__(kind, "what was said")
    assert type(made) is kind and made.args == ("what was said",)
    again = pickle.loads(pickle.dumps(kind("what was said")))
    assert type(again) is kind and str(again) == "what was said"
