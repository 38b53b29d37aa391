"""This process: locks and calls that a fork cuts in two."""

import functools
import gc
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from children import in_fork, python

from sharedmask import Coordinator, FrameDataset, MemoryMonitor, SharedImage
from sharedmask.system.process import Event, Lock, Semaphore, cached_property
from sharedmask.workers.pool import run_processes

LOCKS = (
    *(type(threading.Lock()), type(threading.RLock())),
    *(threading.Condition, threading.Semaphore, threading.Event),
    functools.cached_property,  # has one up to Python 3.11
)
OURS = (Lock, Event, Semaphore, cached_property)


def holders():
    """Modules and classes of the package and instances of those: the name of each, and what it holds."""
    gc.unfreeze()  # what earlier tests put out of sight
    for thing in [*sys.modules.values(), *gc.get_objects()]:
        kind = thing if isinstance(thing, type) else type(thing)
        room = thing.__name__ if isinstance(thing, types.ModuleType) else kind.__module__
        # Executors go with the call that made them, of which a child knows nothing.
        if str(room).partition(".")[0] == "sharedmask" and not isinstance(thing, (*OURS, ThreadPoolExecutor)):
            for held in list(getattr(thing, "__dict__", {}).values()):
                yield kind.__name__, held


def test_all_locks_of_the_package_are_made_anew_in_a_child(shared, masks, path):
    shared.load()
    run_processes(len, (), [([],)], 1)
    with MemoryMonitor(), Coordinator(memory_limit="1G") as coordinator, FrameDataset(path, store="shm"):
        coordinator.open(str(path))
        found = [(name, held) for name, held in holders() if isinstance(held, (*OURS, *LOCKS))]
    assert [name for name, held in found if not isinstance(held, OURS)] == []
    living = {"SharedImage", "MemoryMonitor", "Coordinator", "FrameStore", "_Pool", "Template"}
    assert living | {"module", "Sets"} <= {name for name, _ in found}


@pytest.mark.parametrize("make", [Lock, lambda: Semaphore(1)], ids=["Lock", "Semaphore"])
def test_what_another_thread_holds_is_free_in_a_child(make):
    lock, held, done = make(), threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)

    def take():
        with lock:
            pass

    try:
        assert in_fork(take) == "None"
        assert thread.is_alive()
    finally:
        done.set()
        thread.join()


def test_what_the_forking_thread_holds_it_holds_in_the_child():
    lock = Lock()

    def used():
        other = threading.Thread(target=lambda: taken.append(lock.acquire(timeout=0.1)))
        taken = []
        other.start()
        other.join()
        lock.release()
        lock.release()
        return taken

    with lock, lock:
        assert in_fork(used) == "[False]"
    assert lock.acquire(timeout=0)
    lock.release()


def test_an_event_that_others_wait_for_can_be_set_in_a_child():
    event = Event()
    waiting = threading.Thread(target=event.wait)
    waiting.start()
    try:
        assert in_fork(lambda: (event.is_set(), event.set(), event.is_set())) == "(False, None, True)"
        assert not event.is_set()
    finally:
        event.set()
        waiting.join()
    assert in_fork(event.is_set) == "True"


def test_a_child_can_import_what_a_thread_of_ours_is_importing(tmp_path):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(0.5)\nready = True\n")
    script = """
    import os, signal, sys, threading, time
    from sharedmask.workers import pool
    sys.path.insert(0, sys.argv[1])
    def look():
        import slow
        return slow.ready
    look.__globals__["__name__"] = "sharedmask.look"  # as if it were ours
    thread = threading.Thread(target=look)
    thread.start()
    while "slow" not in sys.modules:
        time.sleep(0.01)
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        os._exit(0 if look() else 1)
    print(os.waitpid(pid, 0)[1])
    thread.join()
    """
    done = python(script, tmp_path)
    assert done.stdout == "0\n", done.stderr


def test_a_thread_that_asks_while_another_imports_multiprocessing_waits_for_it():
    """What tells whether this is a worker is in ``sys.modules`` before it can tell."""
    script = """
    import importlib.abc, importlib.machinery, sys, threading, time
    from sharedmask.system import process

    class Slow(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name != "multiprocessing.process":
                return None
            found = importlib.machinery.PathFinder.find_spec(name, path)
            run = found.loader.exec_module
            found.loader.exec_module = lambda module: (begun.set(), time.sleep(0.3), run(module))
            return found

    for name in [name for name in sys.modules if name.startswith("multiprocessing")]:
        del sys.modules[name]
    begun = threading.Event()
    sys.meta_path.insert(0, Slow())
    thread = threading.Thread(target=__import__, args=("multiprocessing",))
    thread.start()
    assert begun.wait(30)
    print(process.is_worker())
    thread.join()
    """
    done = python(script)
    assert done.stdout == "False\n", done.stderr


# --- calls that a fork cuts in two ---

CUT = """
import faulthandler, os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import numpy as np
from sharedmask import extract
from sharedmask.workers.pool import run_processes
from sharedmask.workers.threaded import run_threads
from sharedmask.errors import WorkerError

path, masks = sys.argv[1], list(np.load(sys.argv[2]))
parent, children = os.getpid(), []

def fork(*_):
    if not children:
        children.append(os.fork())
        if children == [0]:
            faulthandler.dump_traceback_later(60, exit=True)
        else:
            children.append(os.waitpid(children[0], 0)[1])

try:
    CALL
    assert os.getpid() == parent
    print(children[1], flush=True)
except WorkerError as error:
    assert str(parent) in str(error)
    os._exit(7)
"""
CALLS = [
    "assert run_processes(abs, (), [(-i,) for i in range(9)], 2, on_done=fork) == list(range(9))",
    "assert run_threads(abs, (), [(-i,) for i in range(9)], 2, on_done=fork) == list(range(9))",
    "assert len(extract(path, masks, progress=fork)) == len(masks)",
]


@pytest.mark.some(1)
@pytest.mark.parametrize("call", CALLS, ids=["processes", "threads", "pass"])
def test_a_call_goes_on_in_the_parent_alone(call, path, tmp_path, masks):
    np.save(tmp_path / "masks.npy", np.array(list(masks.values())))
    done = python(CUT.replace("CALL", call), path, tmp_path / "masks.npy")
    assert done.stdout == f"{7 << 8}\n", done.stderr


@pytest.mark.parametrize("store", ["shm", "memfd"])
def test_a_child_does_not_name_what_is_its_parents(store, path):
    with SharedImage(path, store=store, name="mine") as image:
        image.load()
        assert "only the process that made a segment" in in_fork(lambda: image.publish("other"))
        assert "Handle" in in_fork(lambda: image.handle)
        with SharedImage.attach("mine") as again:
            assert again.shape == image.shape


def test_a_child_of_a_coordinator_serves_nobody(path):
    with Coordinator(memory_limit="1G") as coordinator, SharedImage.connect(path) as image:
        assert in_fork(lambda: coordinator.__exit__(None)) == "None"
        assert in_fork(coordinator.images) == "[]"
        assert [held["clients"] for held in coordinator.images()] == [1]
        assert image.frame(0).shape == image.shape[:3]
