"""A worker: what it attaches to and lets go of, its threads and warnings, its end with its parent."""

import os
import signal
import threading
import time
import warnings
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import psutil
import pytest
from children import gone, kill_group, running

from sharedmask import SharedImage, batch_process
from sharedmask.errors import WorkerError
from sharedmask.storage import segment
from sharedmask.storage.registry import OwnedSegment
from sharedmask.storage.segment import Shared
from sharedmask.workers import packing, pool, worker
from sharedmask.workers.pool import run_processes
from sharedmask.workers.surroundings import Entered

PARENT = """
    import os, sys, time
    from sharedmask.workers import packing, pool, worker

    def wait(seconds, spin):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not spin:
                time.sleep(0.01)

    pool.run_processes(wait, (), [(0, False)] * 2, 2)
    print("ready", *(w.process.pid for w in pool._pools[()]._idle), flush=True)
"""


def test_warnings_of_workers_are_given_once_here():
    def warn(_):
        warnings.warn("mind the gap", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="mind the gap") as caught:
        run_processes(warn, (), [(i,) for i in range(6)], 2)
    assert len(caught) == 1


def test_shared_arguments_are_attached_read_only_and_let_go():
    owned = OwnedSegment("run", {"rows": ((4, 3), np.dtype("f8"))})
    owned.segment.array("rows")[:] = 2
    handle = owned.share({})

    def look(rows):
        return rows.sum(), rows.flags.writeable

    assert run_processes(look, (Shared(handle, "rows"),), [()], 1) == [(24.0, False)]
    (worker,) = pool._pools[()]._idle
    owned.release()
    pool.let_go()
    assert handle.name not in Path(f"/proc/{worker.process.pid}/maps").read_text()


@pytest.mark.shares
def test_an_image_that_nobody_closed_is_let_go_before_the_next_is_loaded():
    data = np.arange(64, dtype="i2").reshape(2, 2, 2, 8)
    masks = [np.ones((2, 2, 2))] * 2
    image = SharedImage(nib.Nifti1Image(data, np.eye(4)))
    image.map(np.sum, masks, n_jobs=2)
    name, pids = image.handle.name, [one.process.pid for one in pool._pools[()]._idle]
    with pytest.warns(ResourceWarning, match="not closed"):
        del image
    with SharedImage(nib.Nifti1Image(data, np.eye(4))) as image:
        image.load()
        assert all(name not in Path(f"/proc/{pid}/maps").read_text() for pid in pids)


def test_what_a_stopped_worker_says_late_is_no_answer(monkeypatch):
    monkeypatch.setattr(pool, "_LET_GO_SECONDS", 0.0)
    run_processes(abs, (), [(1,)], 1)
    (idle,) = pool._pools[()]._idle
    os.kill(idle.process.pid, signal.SIGSTOP)
    try:
        pool.let_go()
    finally:
        os.kill(idle.process.pid, signal.SIGCONT)
    assert run_processes(abs, (), [(-n,) for n in range(20)], 1) == list(range(20))
    assert pool._pools[()]._idle == [idle]


def test_who_lets_go_gives_back_what_was_freed_too():
    def take():
        return len([np.ones(30_000) for _ in range(200)])  # as malloc takes them from the heap

    run_processes(take, (), [()], 1)
    pool.let_go()
    (idle,) = pool._pools[()]._idle
    process, deadline = psutil.Process(idle.process.pid), time.monotonic() + 60
    while process.memory_full_info().uss > 30 * 2**20:
        assert time.monotonic() < deadline, "an idle worker holds what its function freed"
        time.sleep(0.01)


@pytest.mark.parametrize("told", [True, False], ids=["told", "after another job"])
def test_a_worker_finds_an_image_where_it_was_until_it_lets_go(told):
    owned = OwnedSegment("run", {"rows": ((4, 3), np.dtype("f8"))})
    handle = owned.share({})
    one = worker._Worker(Entered())
    for _ in range(2):
        one.begin(packing.dumps((np.sum, (Shared(handle, "rows"),)))[0], None, {})
        one.end()
        assert (handle.token, False) in segment._attached
    owned.release()
    if told:
        one.let_go()
    else:
        one.begin(packing.dumps((np.sum, ()))[0], None, {})
    assert (handle.token, False) not in segment._attached


def test_who_is_told_to_let_go_is_told_once(monkeypatch):
    run_processes(abs, (), [(1,)], 1)
    (idle,) = pool._pools[()]._idle
    told = []
    monkeypatch.setattr(pool, "_LET_GO_SECONDS", 0.0)
    monkeypatch.setattr(idle, "send", told.append)
    pool.let_go()
    pool.let_go()
    assert told == [pool._LET_GO]


def test_a_handle_that_leads_nowhere_is_the_callers_error():
    owned = OwnedSegment("run", {"rows": ((4, 3), np.dtype("f8"))})
    handle = owned.share({})
    owned.release()
    with pytest.raises(OSError, match="run is gone"):
        run_processes(np.sum, (Shared(handle, "rows"),), [()], 1)


def test_workers_use_one_blas_thread_and_the_caller_keeps_its_own():
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    assert run_processes(lambda: os.environ["OPENBLAS_NUM_THREADS"], (), [()], 1) == ["1"]
    assert os.environ.get("OPENBLAS_NUM_THREADS") == before


@pytest.mark.parametrize(
    "meanwhile",
    [
        "time.sleep(60)",
        "pool.run_processes(wait, (60, False), [()] * 2, 2)",
        "pool.run_processes(wait, (60, True), [()] * 2, 2)",
    ],
    ids=["idle", "busy", "spinning"],
)
def test_workers_leave_when_their_parent_is_killed(meanwhile):
    with running(PARENT + f"    {meanwhile}") as child:
        workers = [int(pid) for pid in child.said]
        family = psutil.Process(child.pid).children(recursive=True)
        assert set(workers) <= {process.pid for process in family}
        time.sleep(0.3)
        child.kill()
        child.wait()
        assert gone(workers)
        assert gone([process.pid for process in family])


def test_ctrl_c_ends_the_call_and_leaves_no_worker():
    script = (
        PARENT
        + """
    try:
        print("go", flush=True)
        pool.run_processes(wait, (60, False), [()] * 2, 2)
    except KeyboardInterrupt:
        print("interrupted", pool._pools[()]._idle, flush=True)
    """
    )
    with running(script) as child:
        workers = [int(pid) for pid in child.said]
        assert child.stdout.readline() == "go\n"
        time.sleep(0.3)
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does: the whole group
        assert child.stdout.readline() == "interrupted []\n"
        assert gone(workers)
        assert child.wait(20) == 0


@pytest.mark.long
def test_killing_everything_at_once_leaves_no_process():
    with running(PARENT + "    time.sleep(60)") as child:
        family = [process.pid for process in psutil.Process(child.pid).children(recursive=True)]
        kill_group(child)
        assert gone(family)


@pytest.mark.parametrize(
    ("kernel", "with_users", "looks"),
    [(np.sum, False, 0), (np.sum, True, 1), (lambda given: given, False, 1)],
)
def test_only_after_what_is_the_users_surroundings_are_looked_at(kernel, with_users, looks):
    entered = mock.Mock()
    one = worker._Worker(entered)
    one.begin(packing.dumps((kernel, (np.ones(2),)), with_users)[0], None, {})
    one.end()
    assert entered.restore.call_count == looks


def test_what_a_librarys_function_changes_is_undone_too(warm, tmp_path):
    before = os.getcwd()
    batch_process({"a": str(tmp_path), "b": str(tmp_path)}, os.chdir, n_jobs=2)
    assert run_processes(os.getcwd, (), [()] * 2, 2) == [before] * 2


VALUES = {
    "number": 2.5,
    "nothing": None,
    "NumPy's number": np.float32(3),
    "array": np.arange(6, dtype="f4").reshape(2, 3),
    "of no dimension": np.array(4.5),
    "empty": np.zeros((0, 3)),
    "in Fortran's order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "every other": np.arange(6)[::2],
    "of other bytes": np.arange(3, dtype=">i4"),
    "of records": np.zeros(2, [("a", "i4"), ("b", "f8")]),
    "of objects": np.array([None, "a"]),
    "masked": np.ma.masked_equal([1, 2], 2),
    "large": np.ones(100_000),
}


@pytest.mark.parametrize("together", [1, 40])
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_values_arrive_as_they_are(value, together):
    for found in run_processes(lambda _: value, (), [(n,) for n in range(together)], 1):
        assert type(found) is type(value)
        np.testing.assert_array_equal(found, value, strict=True)
        if isinstance(value, np.ndarray):
            assert found.flags.writeable


def test_an_array_that_a_function_uses_again_arrives_as_it_was():
    buffer = np.zeros(3)

    def fill(number):
        buffer[:] = number
        return buffer

    answers = run_processes(fill, (), [(n,) for n in range(100)], 1)
    assert [answer.tolist() for answer in answers] == [[n] * 3 for n in range(100)]


def test_answers_that_travel_together_fail_and_warn_one_by_one():
    def kernel(number):
        if number % 10 == 3:
            warnings.warn(f"mind {number}", UserWarning, stacklevel=1)
        return threading.Lock() if number == 95 else float(number)

    told = []
    with pytest.warns(UserWarning) as caught, pytest.raises(WorkerError, match="cannot be sent back"):
        run_processes(kernel, (), [(n,) for n in range(100)], 1, on_done=lambda n, _: told.append(n))
    assert [str(one.message) for one in caught] == [f"mind {n}" for n in range(3, 100, 10)]
    assert told == list(range(95))
