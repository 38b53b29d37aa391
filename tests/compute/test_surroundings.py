"""Workers see what their caller sees, at the moment of each call."""

import importlib
import locale
import os
import sys
import textwrap
import time
import types
import warnings

import numpy as np
import pytest

from sharedmask.compute import pool
from sharedmask.compute.pool import run_processes
from sharedmask.compute.surroundings import Surroundings


def in_worker(function, *arguments):
    (answer,) = run_processes(function, (), [arguments], 1)
    return answer


@pytest.fixture
def warm():
    """A worker that has been at work in other surroundings."""
    in_worker(os.getpid)


@pytest.fixture
def folder(tmp_path, monkeypatch, warm):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_folder_is_the_callers_at_each_call(folder):
    (folder / "a").mkdir()
    assert in_worker(os.getcwd) == str(folder)
    os.chdir("a")
    assert in_worker(os.getcwd) == str(folder / "a")


def test_a_folder_that_was_deleted_is_not_another_one(folder):
    (folder / "there").write_text("")
    gone = folder / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    assert in_worker(lambda: (os.listdir("."), os.path.exists("there"))) == ([], False)
    with pytest.raises(FileNotFoundError):
        in_worker(os.getcwd)


def test_a_job_that_changes_folder_and_environment_does_so_for_itself(folder):
    def leave():
        os.chdir("/")
        os.environ["SHAREDMASK_TEST_LEFT"] = "1"

    in_worker(leave)
    assert in_worker(lambda: (os.getcwd(), os.environ.get("SHAREDMASK_TEST_LEFT"))) == (str(folder), None)


def test_variables_come_change_and_go(warm, monkeypatch):
    def look():
        return os.environ.get("SHAREDMASK_TEST")

    for value in ("first", "second", "ü"):
        monkeypatch.setenv("SHAREDMASK_TEST", value)
        assert in_worker(look) == value
    monkeypatch.delenv("SHAREDMASK_TEST")
    assert in_worker(look) is None


def test_the_time_zone_is_the_callers(warm, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert in_worker(lambda: time.localtime(0).tm_hour) == 9
    monkeypatch.setenv("TZ", "UTC")
    assert in_worker(lambda: time.localtime(0).tm_hour) == 0


def test_the_locale_is_the_callers(warm):
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
        assert in_worker(locale.setlocale, locale.LC_NUMERIC) == "C.UTF-8"
        locale.setlocale(locale.LC_ALL, "C")
        assert in_worker(locale.setlocale, locale.LC_NUMERIC) == "C"
    finally:
        locale.setlocale(locale.LC_ALL, before)


@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_files_have_the_mode_that_the_caller_gives(folder, mask):
    before = os.umask(mask)
    try:
        in_worker(lambda: open("made", "w").close())
    finally:
        os.umask(before)
    assert (folder / "made").stat().st_mode & 0o777 == 0o666 & ~mask


def test_numpys_errors_are_the_callers(warm):
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        in_worker(lambda: np.ones(1) / 0)
    with np.errstate(divide="ignore"):
        assert in_worker(lambda: np.ones(1) / 0) == np.inf


def test_arguments_and_depth_are_the_callers(warm, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study.py", "--all"])
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(limit + 321)
        assert in_worker(lambda: (sys.argv, sys.getrecursionlimit())) == (["study.py", "--all"], limit + 321)
    finally:
        sys.setrecursionlimit(limit)


def fragile():
    """Another answer where the warning is an error."""
    try:
        warnings.warn("mind the gap", RuntimeWarning, stacklevel=1)
    except RuntimeWarning:
        return "raised"
    return "warned"


def test_filters_of_warnings_are_the_callers(warm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert in_worker(fragile) == "raised"
        warnings.simplefilter("ignore")
        assert in_worker(fragile) == "warned"
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="mind")
        assert in_worker(fragile) == "warned"
    with pytest.warns(RuntimeWarning, match="mind the gap") as caught:
        assert in_worker(fragile) == "warned"
    assert caught[0].filename == __file__


def test_blas_has_one_thread_whatever_the_caller_says(warm, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert in_worker(lambda: os.environ["OMP_NUM_THREADS"]) == "1"


def test_what_does_not_change_is_sent_once(warm):
    in_worker(os.getpid)  # the name of the test is a variable
    (worker,) = pool._pools[()]._idle
    sent = []
    send, worker.send = worker.send, lambda *message: (sent.append(message), send(*message))
    for _ in range(3):
        in_worker(os.getpid)
    assert [message[2] is None for message in sent if message[0] == "job"] == [True] * 3


def test_of_one_moment():
    assert Surroundings.here() == Surroundings.here()


# --- modules ---


@pytest.fixture
def module(tmp_path, monkeypatch, warm):
    """Write it, and import it by the name that it has for this test."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"users_{tmp_path.name}"

    class Written:
        path = tmp_path / f"{name}.py"

        def write(self, text):
            self.path.write_text(textwrap.dedent(text))
            importlib.invalidate_caches()
            return self

        def imported(self):
            return importlib.import_module(name)

    yield Written()
    sys.modules.pop(name, None)


def both(function):
    """The same here and there."""
    here, there = function(), in_worker(function)
    assert here == there
    return here


def test_a_folder_newly_on_the_path(module):
    module.write("def answer(): return 'found'")
    assert both(module.imported().answer) == "found"


def test_a_module_that_was_reloaded(module):
    users = module.write("def answer(): return 'old'").imported()
    assert both(users.answer) == "old"
    module.write("def answer(): return 'rather new'")
    importlib.reload(users)
    assert both(users.answer) == "rather new"
    assert both(lambda: users.answer()) == "rather new"


def test_a_module_that_was_imported_anew(module):
    users = module.write("def answer(): return 'old'").imported()
    assert both(users.answer) == "old"
    del sys.modules[users.__name__]
    assert both(module.write("def answer(): return 'rather new'").imported().answer) == "rather new"


def test_a_file_that_was_changed_and_not_reloaded(module):
    """Workers that start later would import what the caller does not run."""
    users = module.write("def answer(): return 'old'").imported()
    assert both(users.answer) == "old"
    module.write("def answer(): return 'rather new'")
    pool.shutdown()
    assert both(users.answer) == "old"
    assert both(lambda: users.answer()) == "old"
    importlib.reload(users)
    assert both(users.answer) == "rather new"


def test_a_module_that_the_path_no_longer_leads_to(module, monkeypatch, tmp_path):
    users = module.write("def answer(): return 'found'").imported()
    other = tmp_path / "other"
    other.mkdir()
    (other / module.path.name).write_text("def answer(): return 'another one'")
    monkeypatch.syspath_prepend(other)
    assert both(users.answer) == "found"


def test_a_module_that_no_file_has(warm):
    made = types.ModuleType("made_at_run_time")
    exec("def answer(): return 'made'", made.__dict__)
    sys.modules["made_at_run_time"] = made
    try:
        assert both(made.answer) == "made"
    finally:
        del sys.modules["made_at_run_time"]
