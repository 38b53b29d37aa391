"""Workers see what their caller sees, at the moment of each call."""

import decimal
import locale
import os
import pickle
import socket
import sys
import tempfile
import time
import warnings

import numpy as np
import pytest
from jobs import in_worker

from sharedmask.system import settings
from sharedmask.workers import pool
from sharedmask.workers.packing import dumps
from sharedmask.workers.surroundings import Surroundings


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


def test_numpys_printing_is_the_callers(warm):
    with np.printoptions(precision=2):
        assert in_worker(lambda: str(np.ones(1) / 3)) == "[0.33]"
    assert in_worker(lambda: str(np.ones(1) / 3)) == "[0.33333333]"


def digits():
    try:
        return len(str(10**5000))
    except ValueError:
        return "too many"


def limit():
    return settings.current().memory_limit


def test_settings_of_libraries_are_the_callers(folder, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert in_worker(tempfile.gettempdir) == str(folder)
    before = socket.getdefaulttimeout(), np.getbufsize(), sys.get_int_max_str_digits()
    assert in_worker(digits) == "too many"
    try:
        socket.setdefaulttimeout(7.5)
        np.setbufsize(16384)
        sys.set_int_max_str_digits(9999)
        assert (in_worker(socket.getdefaulttimeout), in_worker(np.getbufsize)) == (7.5, 16384)
        assert in_worker(digits) == 5001
    finally:
        socket.setdefaulttimeout(before[0])
        np.setbufsize(before[1])
        sys.set_int_max_str_digits(before[2])
    assert in_worker(socket.getdefaulttimeout) == before[0]


def test_our_settings_are_the_callers(warm):
    with settings.using(memory_limit="1G"):
        assert in_worker(limit) == "1G"
    assert in_worker(limit) is None


def test_the_context_of_decimal_is_the_callers(warm):
    def third():
        import decimal

        return str(decimal.Decimal(1) / 3), bool(decimal.getcontext().flags[decimal.Inexact])

    with decimal.localcontext(prec=5):
        assert in_worker(third) == ("0.33333", True)
    assert in_worker(third)[0] == f"0.{28 * '3'}"


def test_workers_run_where_the_caller_may(warm):
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert in_worker(lambda: os.sched_getaffinity(0)) == {min(before)}
    finally:
        os.sched_setaffinity(0, before)
    assert in_worker(lambda: os.sched_getaffinity(0)) == before


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


def test_a_filter_of_what_is_not_imported_imports_nothing_and_holds(folder, monkeypatch):
    (folder / "users_categories.py").write_text("class Mine(UserWarning):\n    class Own(UserWarning): pass")
    monkeypatch.syspath_prepend(folder)
    import users_categories

    def look():
        import sys
        import warnings

        before = "users_categories" in sys.modules
        from users_categories import Mine

        said = []
        for category in (Mine, Mine.Own, UserWarning):
            try:
                warnings.warn("mind", category, stacklevel=1)
            except UserWarning as error:
                said.append(type(error).__name__)
        return before, said

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", users_categories.Mine.Own)
        assert in_worker(look) == (False, ["Own"])
    del sys.modules["users_categories"]


def test_blas_has_one_thread_whatever_the_caller_says(warm, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert in_worker(lambda: os.environ["OMP_NUM_THREADS"]) == "1"


def test_what_does_not_change_is_sent_once(warm):
    in_worker(os.getpid)  # the name of the test is a variable
    (worker,) = pool._pools[()]._idle
    sent = []
    send, worker.send = worker.send, lambda message: (sent.append(pickle.loads(message)), send(message))
    for _ in range(3):
        in_worker(os.getpid)
    assert [(message[0], message[2]) for message in sent] == [("job", None)] * 3


def test_new_workers_begin_where_the_caller_is_then(folder):
    (folder / "a").mkdir()
    for place in (folder / "a", folder):
        os.chdir(place)
        pool.shutdown()
        assert in_worker(os.getcwd) == str(place)


def test_what_could_not_be_entered_is_tried_again_by_each_job(folder):
    own, there = pool._Pool(()), folder / "there"
    surroundings = Surroundings.here()._replace(folder=str(there))

    def look():
        worker.begin(dumps((os.getcwd, ()))[0], surroundings, {})
        worker.give(pickle.dumps(("items", [((), 0)], False)), are_last=False)
        (answer,) = worker.receive()
        return answer

    try:
        with own.lease(1, 0, surroundings) as (worker,):
            assert isinstance(look().failure.error, FileNotFoundError)
            there.mkdir()
            assert look().value == str(there)
    finally:
        own.end()


def test_of_one_moment():
    assert Surroundings.here() == Surroundings.here()
