"""Worker processes: answers, errors, deaths, and every way a user starts Python."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest
from children import gone, kill_group, python, running

from sharedmask.compute import pool
from sharedmask.compute.pool import run_processes, run_threads
from sharedmask.errors import ParameterError, WorkerError
from sharedmask.storage.registry import OwnedSegment
from sharedmask.storage.segment import Shared
from sharedmask.system.process import effective_n_jobs

RUNNERS = [run_processes, run_threads]


def add(first, second):
    return first + second


@pytest.mark.parametrize("run", RUNNERS)
def test_answers_come_in_the_order_of_the_items(run):
    done = []
    answers = run(
        add, (10,), [(i,) for i in range(20)], 3, lambda number, value: done.append((number, value))
    )
    assert answers == list(range(10, 30))
    assert sorted(done) == list(enumerate(answers))


@pytest.mark.parametrize("run", RUNNERS)
def test_the_exception_of_a_kernel_is_the_callers(run):
    with pytest.raises(TypeError, match="unsupported operand"):
        run(add, (1,), [(1,), ("x",)], 2)
    assert run(add, (1,), [(1,), (2,)], 2) == [2, 3]


def test_the_workers_traceback_is_the_cause():
    with pytest.raises(ZeroDivisionError) as caught:
        run_processes(lambda x: 1 // x, (), [(0,)], 1)
    assert "<lambda>" in str(caught.value.__cause__)


def test_closures_and_lambdas_travel():
    factor = 3
    assert run_processes(lambda x: factor * x, (), [(i,) for i in range(5)], 2) == [0, 3, 6, 9, 12]


def test_an_answer_that_cannot_be_sent_is_an_error():
    with pytest.raises(WorkerError, match="cannot be sent back"):
        run_processes(lambda: threading.Lock(), (), [()], 1)


def test_an_argument_that_cannot_be_received_is_an_error():
    class Poison:
        def __reduce__(self):
            return int, ("no number",)

    with pytest.raises(ValueError, match="no number"):
        run_processes(lambda poison: 0, (Poison(),), [()], 1)


def test_warnings_of_workers_are_given_once_here():
    def warn(_):
        warnings.warn("mind the gap", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="mind the gap") as caught:
        run_processes(warn, (), [(i,) for i in range(6)], 2)
    assert len(caught) == 1


def test_workers_stay_for_the_next_call():
    first = set(run_processes(lambda _: os.getpid(), (), [(i,) for i in range(8)], 2))
    second = set(run_processes(lambda _: os.getpid(), (), [(i,) for i in range(8)], 2))
    assert second <= first
    assert os.getpid() not in first


def test_no_more_workers_than_items():
    run_processes(add, (1,), [(1,), (2,)], 20)
    assert len(pool._pools[()]._idle) == 2


def test_shared_arguments_are_attached_read_only_and_let_go():
    owned = OwnedSegment("run", {"rows": ((4, 3), np.dtype("f8"))})
    owned.segment.array("rows")[:] = 2
    handle = owned.share({})

    def look(rows):
        return rows.sum(), rows.flags.writeable

    assert run_processes(look, (Shared(handle, "rows"),), [()], 1) == [(24.0, False)]
    (worker,) = pool._pools[()]._idle
    owned.release()
    deadline = time.monotonic() + 60
    while handle.name in Path(f"/proc/{worker.process.pid}/maps").read_text():
        assert time.monotonic() < deadline, "an idle worker holds the image"


def test_a_handle_that_leads_nowhere_is_the_callers_error():
    owned = OwnedSegment("run", {"rows": ((4, 3), np.dtype("f8"))})
    handle = owned.share({})
    owned.release()
    with pytest.raises(OSError, match="run is gone"):
        run_processes(np.sum, (Shared(handle, "rows"),), [()], 1)


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


def test_workers_use_one_blas_thread_and_the_caller_keeps_its_own():
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    assert run_processes(lambda: os.environ["OPENBLAS_NUM_THREADS"], (), [()], 1) == ["1"]
    assert os.environ.get("OPENBLAS_NUM_THREADS") == before


def test_workers_import_little():
    """What a worker costs: numpy and ours, not nibabel, nilearn, scipy or psutil."""
    loaded = run_processes(lambda: sorted(sys.modules), (), [()], 1)[0]
    heavy = {"nibabel", "nilearn", "scipy", "sklearn", "pandas", "psutil", "joblib", "isal", "click"}
    assert not heavy & set(loaded)


def test_cleaning_workers_share_one_import_of_nilearn():
    loaded = run_processes(lambda: sorted(sys.modules), (), [()], 1, preload=("nilearn.signal",))[0]
    assert "nilearn.signal" in loaded


def test_nothing_of_the_caller_changes_while_workers_start():
    """Neither its main module nor its environment nor its own fork server, at any moment."""
    from multiprocessing import forkserver

    def caller():
        main = sys.modules["__main__"]
        connect, handler = forkserver.connect_to_new_process, signal.getsignal(signal.SIGINT)
        return main, connect, handler, dict(os.environ), os.getcwd()

    before, seen, over = caller(), [], threading.Event()

    def look():
        while not over.is_set():
            seen.append(caller())
            time.sleep(0.001)

    watcher = threading.Thread(target=look)
    watcher.start()
    own = pool._Pool(())
    try:
        with own.lease(2):
            pass
    finally:
        over.set()
        watcher.join()
        own.end()
    assert len(seen) > 10
    assert all(now == before for now in seen)


@pytest.mark.parametrize("n_jobs", [0, 1.5, "2"])
def test_n_jobs_without_meaning_is_refused(n_jobs):
    with pytest.raises(ParameterError, match="n_jobs="):
        effective_n_jobs(n_jobs)


def test_n_jobs_follows_joblib():
    n_cpus = len(os.sched_getaffinity(0))
    assert [effective_n_jobs(n) for n in (None, 1, 7)] == [1, 1, 7]
    assert effective_n_jobs(-1) == n_cpus
    assert effective_n_jobs(-2) == max(1, n_cpus - 1)


# --- the parent's death ---

PARENT = """
    import os, sys, time
    from sharedmask.compute import pool

    def wait(seconds, spin):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not spin:
                time.sleep(0.01)

    pool.run_processes(wait, (), [(0, False)] * 2, 2)
    print("ready", *(w.process.pid for w in pool._pools[()]._idle), flush=True)
"""


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


def test_killing_everything_at_once_leaves_no_process():
    with running(PARENT + "    time.sleep(60)") as child:
        family = [process.pid for process in psutil.Process(child.pid).children(recursive=True)]
        kill_group(child)
        assert gone(family)


# --- how users start Python ---

USER = """
import numpy as np, nibabel as nib
from sharedmask import SharedImage
print("once")
bold = nib.Nifti1Image(np.arange(240, dtype="int16").reshape(2, 3, 4, 10), np.eye(4))
masks = [np.ones((2, 3, 4), bool)] * 3
def total(signals): return float(signals.sum())

with SharedImage(bold) as image:
    signals = image.mask_parallel(masks, n_jobs=2, prefer="processes")
    print(image.map(total, masks, n_jobs=2), len(signals))

"""
EXPECTED = "once\n[28680.0, 28680.0, 28680.0] 3\n"


def test_scripts_without_a_main_guard(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(USER)
    done = subprocess.run([sys.executable, "-W", "error", path], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == (EXPECTED, "")


def test_python_dash_c():
    done = python(USER)
    assert (done.stdout, done.stderr) == (EXPECTED, "")


def test_python_from_standard_input():
    done = subprocess.run([sys.executable, "-"], input=USER, capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == (EXPECTED, "")


def test_the_interactive_prompt():
    done = subprocess.run(
        [sys.executable, "-i", "-q"], input=USER, capture_output=True, text=True, timeout=100
    )
    assert done.stdout == EXPECTED, done.stderr
    assert "Error" not in done.stderr


def test_python_dash_m(tmp_path):
    (tmp_path / "study.py").write_text(USER)
    done = subprocess.run(
        [sys.executable, "-m", "study"], capture_output=True, text=True, timeout=100, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == (EXPECTED, "")


def test_a_notebook(tmp_path):
    pytest.importorskip("nbclient", reason="notebooks need nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="notebooks need nbclient and ipykernel")
    script = f"""
    import nbformat, nbclient
    cell = nbformat.v4.new_code_cell({USER!r})
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbclient.NotebookClient(notebook, timeout=90, kernel_name="python3").execute()
    print("".join(output["text"] for output in cell["outputs"]), end="")
    """
    done = python(textwrap.dedent(script))
    assert done.stdout == EXPECTED, done.stderr


def test_within_a_daemonic_process():
    script = (
        USER.split("with SharedImage")[0]
        + """
import multiprocessing
def work(queue):
    with SharedImage(bold) as image:
        queue.put(image.mask_parallel(masks, n_jobs=2, detrend=True)[0].shape)
        queue.put(image.map(total, masks, n_jobs=2, prefer="processes"))
if __name__ == "__main__":
    queue = multiprocessing.Queue()
    process = multiprocessing.get_context("fork").Process(target=work, args=(queue,), daemon=True)
    process.start()
    print(queue.get(timeout=60), queue.get(timeout=60))
    process.join()
"""
    )
    done = python(script)
    assert (done.stdout, done.stderr) == ("once\n(10, 24) [28680.0, 28680.0, 28680.0]\n", "")
