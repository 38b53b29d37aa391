"""The same answer as in the caller: with workers as without, in whatever process, thread and moment."""

import contextlib
import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import same
from children import in_fork, python

from sharedmask.errors import ParameterError

# --- moments -------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two with files of the same names, and a module of the user's; the first is the working directory."""
    for number, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        same.write(tmp_path / name, number)
    (tmp_path / "users_own.py").write_text("def version(): return 'first'")
    monkeypatch.chdir(tmp_path / "a")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    importlib.import_module("users_own")
    yield tmp_path
    del sys.modules["users_own"]


def from_a_thread(call):
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.long
def test_workers_answer_as_the_caller_at_every_moment(folders, monkeypatch):
    """In the folder of before, in another, with another environment and module, in a thread, in a fork."""

    def differ(call=lambda function: function()):
        nonlocal alone
        before, alone = alone, same.answers(1)
        together = call(lambda: same.answers(2))
        assert [name for name in alone if together[name] != alone[name]] == []
        return [name for name in alone if before.get(name) != alone[name]]

    alone = {}
    differ()
    os.chdir(folders / "b")
    assert len(differ()) > len(same.CALLS) - 3
    os.chdir(folders / "a")
    monkeypatch.setenv("USERS_VARIABLE", "changed")
    assert {"map", "map, cleaned", "batch", "frames"} <= set(differ())
    (folders / "users_own.py").write_text("def version(): return 'another version'")
    importlib.reload(sys.modules["users_own"])
    assert differ() == ["map", "map, cleaned", "batch", "frames"]
    assert differ(from_a_thread) == []
    forked = in_fork(lambda: same.answers(2) == alone)
    assert forked == "True"


@pytest.mark.some(3)
@pytest.mark.parametrize("name", same.OPENED)
def test_what_is_opened_in_one_folder_is_used_in_another(name, folders):
    make, use = same.OPENED[name]
    with contextlib.ExitStack() as opened:

        def made():
            thing = make()
            opened.callback(getattr(thing, "close", list))
            return thing

        expected, thing = same.digest(use(made())), made()
        os.chdir(folders / "b")
        assert same.digest(use(thing)) == expected


# --- numbers of jobs -----------------------------------------------------------------------------

WITHOUT = {"many, executor", *(name for name in same.CALLS if name.startswith("masker"))}
WITH_JOBS = sorted(same.CALLS.keys() - WITHOUT | {name for name in same.CALLS if "masker of runs" in name})


@pytest.mark.some(1)
@pytest.mark.parametrize("n_jobs", [None, True, np.int64(2), np.array(2), -1], ids=repr)
def test_a_number_of_jobs_is_one_to_every_call(n_jobs, folders):
    alone = same.answers(1, WITH_JOBS)
    assert same.answers(n_jobs, WITH_JOBS) == alone


@pytest.mark.parametrize("n_jobs", [0, False, np.int64(0), np.array([2]), "2", 2.0, float("nan")], ids=repr)
def test_what_is_no_number_of_jobs_is_refused_by_every_call(n_jobs, folders):
    for name in WITH_JOBS:
        with pytest.raises(ParameterError, match="n_jobs="):
            same.answer(name, n_jobs)


# --- places --------------------------------------------------------------------------------------

MAIN = """
if __name__ == "__main__":
    import multiprocessing, sys
    from concurrent.futures import ProcessPoolExecutor

    def inside(tool, method):
        if tool == "pool":  # whose workers are daemonic
            with multiprocessing.get_context(method).Pool(1) as pool:
                return pool.map(compared, [0])[0]
        if tool == "executor":
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as executor:
                return executor.submit(compared).result()
        if tool == "joblib":
            import joblib
            calls = 1 if method == "threading" else 2  # threads have their random generators in common
            return joblib.Parallel(2, backend=method)(joblib.delayed(compared)() for _ in range(calls))[0]
        if tool == "dask":
            from distributed import Client, LocalCluster
            options = dict(n_workers=1, threads_per_worker=1, dashboard_address="localhost:0")
            def left_alone():  # by Dask's own thread, which draws when it measures what it has
                import dask.sizeof, random
                dask.sizeof.random = random.Random()
            with LocalCluster(processes=method == "nanny", **options) as cluster, Client(cluster) as client:
                client.run(left_alone)
                return client.submit(compared).result()
        if tool == "prefork":  # of a process that has workers of its own; without standard streams
            answers(2)
            context = multiprocessing.get_context("fork")
            queue = context.SimpleQueue()
            def work():
                os.close(0)
                sys.stdin = sys.stdout = None
                queue.put(compared())
            process = context.Process(target=work, daemon=True)
            process.start()
            found = queue.get()
            process.join()
            return found
        return compared()

    here = None
    for place in PLACES:
        alone, differ = inside(*place.split("-"))
        here = here or answers(1)
        others = [name for name in here if here[name] != alone[name]]
        print(place, differ, others, os.listdir(os.environ["SHAREDMASK_DIR"]))
"""
PLACES = [
    ["pool-fork", "pool-forkserver", "pool-spawn"],
    ["executor-fork", "executor-forkserver", "executor-spawn"],
    ["joblib-multiprocessing", "joblib-threading", "joblib-loky"],
    ["dask-worker", "dask-nanny"],
    ["notebook-"],
    ["prefork-"],
    ["command-"],
]


@pytest.mark.long
@pytest.mark.parametrize("places", PLACES, ids=lambda places: places[0].partition("-")[0])
def test_workers_answer_as_the_caller_in_every_place(places, folders, segments_of_this_test):
    """In workers of other tools, with functions of the main script; in a notebook, which has no file.

    The ways of one tool come after each other in one program: those that fork first, of what is still small.
    """
    script = folders / "script.py"
    script.write_text(f"{Path(same.__file__).read_text()}\nPLACES = {places!r}\n{MAIN}")
    cell = f"exec(compile(open({str(script)!r}).read(), '<cell 1>', 'exec'))"
    command = {"notebook-": ["-c", cell], "command-": ["-c", script.read_text()]}.get(places[0], [script])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folders), os.environ.get("PYTHONPATH", "")])
    }
    right = "".join(f"{place} [] [] []\n" for place in places)
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=280, env=environment
    )
    assert (done.returncode, done.stdout) == (0, right), done.stderr
    assert segments_of_this_test() == set()


LAST = """
import atexit, threading, time, weakref
from multiprocessing.util import Finalize
class Kept: pass
kept = Kept()
alone = answers(1)
def last():
    del CALLS["many, executor"]  # whose executor refuses
    print([name for name, one in answers(2).items() if one != alone[name]], flush=True)
def late():
    threading.main_thread().join()
    last()
if MOMENT == "atexit": atexit.register(last)
if MOMENT == "finalizer": weakref.finalize(kept, last)
if MOMENT == "thread": threading.Thread(target=late).start()
if MOMENT == "multiprocessing": Finalize(None, last, exitpriority=1)
"""


@pytest.mark.long
@pytest.mark.parametrize("moment", ["atexit", "finalizer", "thread", "multiprocessing"])
def test_workers_answer_as_the_caller_while_the_program_ends(moment, folders, segments_of_this_test):
    done = python(f"{Path(same.__file__).read_text()}\nMOMENT = {moment!r}\n{LAST}", fresh=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert segments_of_this_test() == set()


@pytest.mark.long
def test_workers_answer_as_the_caller_in_workers_of_pytest(folders):
    path = folders / "a" / "test_it.py"
    path.write_text("import same\ndef test_it():\n    assert same.compared()[1] == []\n")
    paths = [str(folders), os.path.dirname(same.__file__), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "1", "-c", os.devnull, "--rootdir", folders / "a", path],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        cwd=folders / "a",
    )
    assert done.returncode == 0, done.stdout + done.stderr
