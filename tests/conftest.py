"""Fixtures of all tests: a private registry, and nothing left behind by any test."""

import collections
import contextlib
import gc
import logging
import os
import signal
import sys
import time
import warnings
from io import BytesIO
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import children
import command
import hypothesis
import numpy as np
import psutil
import pytest
from matplotlib.figure import Figure
from segments import Segments, Watch

from sharedmask.reports import figures
from sharedmask.storage.registry import OwnedSegment
from sharedmask.study import executors
from sharedmask.system import platform, process
from sharedmask.workers import pool

# Hundreds of children import what is imported here: they find it compiled, whatever the caller's shell says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

pytest.register_assert_rewrite("contracts")
pytest_plugins = ["small_runs", "study_runs"]

# No property depends on the time that the machine gives it, and all of them may use a test's folder.
hypothesis.settings.register_profile(
    "ours",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ours")

# A shell that starts us in the background, or nohup, has signals ignored, and children inherit that.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


def pytest_configure(config):
    logging.getLogger().setLevel(
        logging.INFO
    )  # once: pytest's ``log_level`` sets it for each phase of each test
    if hasattr(config, "workerinput"):
        config.option.markexpr = config.workerinput["markexpr"]
    elif _all_are_asked_for(config) and not config.option.markexpr:
        config.option.markexpr = "not long"
    for mark in ("ai_generated", "flaky", "single_process", "thread_unsafe"):
        config.addinivalue_line("markers", f"{mark}: of nilearn's tests, which its estimator checks import")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["markexpr"] = node.config.option.markexpr


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """All tests run on all cores; a few run here, where the start of workers would take longer than they.

    There is one worker more than cores: some tests wait.
    """
    return process.n_cpus() + 1 if _all_are_asked_for(config) else 0


def _all_are_asked_for(config):
    return config.args == config.getini("testpaths") and not config.option.keyword


def pytest_make_parametrize_id(val):
    """Cases of bytes go by their sizes: what compresses writes the time, and workers compare names."""
    return f"{len(val)}B" if isinstance(val, bytes) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    _spread(items)
    items.sort(key=_longest_first)
    no_data = not os.environ.get("SHAREDMASK_TEST_DATA")
    not_slow = not os.environ.get("SHAREDMASK_SLOW_TESTS")
    for item in items:
        if no_data and item.get_closest_marker("realdata"):
            item.add_marker(pytest.mark.skip(reason="SHAREDMASK_TEST_DATA names no folder with the real run"))
        if not_slow and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: set SHAREDMASK_SLOW_TESTS=1"))
        if not platform.can_share() and item.get_closest_marker("shares"):
            item.add_marker(pytest.mark.skip(reason=platform.NOT_SHARED))


def _longest_first(item):
    """What may take many minutes is not left for the end, where one worker has it and the others nothing."""
    limit = item.get_closest_marker("timeout")
    return -(limit.args[0] // 600) if limit else 0


def _spread(items):
    """Of a test's cases, those beyond ``some`` are long, evenly taken: each run meets all kinds of them."""
    cases = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("some"):
            cases[item.nodeid.split("[")[0]].append(item)
    for of_one in cases.values():
        step = len(of_one) / of_one[0].get_closest_marker("some").args[0]
        for number, item in enumerate(of_one):
            if step > 1 and number % step >= 1:
                item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def real_data():
    return Path(os.environ["SHAREDMASK_TEST_DATA"])


@pytest.fixture(scope="session", autouse=True)
def _helpers_that_stay(tmp_path_factory):
    """Start what lives as long as the process (resource tracker, templates), outside of any test."""
    command.start()
    children.start()
    resource_tracker.ensure_running()  # of processes that the standard library starts
    os.environ["SHAREDMASK_DIR"] = str(tmp_path_factory.mktemp("session") / "registry")
    if platform.can_share():
        owned = OwnedSegment("warm-up", {"rows": ((1, 1), np.dtype("u1"))})
        owned.release()
    if pool.can_start_processes():
        for preload in ((), ("nilearn.signal",), executors.preloaded(False), executors.preloaded(True)):
            pool.run_processes(len, (), [((),)], 1, preload=preload)
        pool.shutdown()
    _keep_fonts()
    import nilearn.maskers  # noqa: F401

    gc.freeze()  # what these imports made is not looked through after each test
    yield
    command.stop()
    children.stop()


def _keep_fonts():
    """matplotlib keeps those open that our pages and nilearn's reports are drawn with."""
    figures.coverage([1.0])
    figure = Figure()
    figure.text(0, 0, "\N{HAMMER AND PICK}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure.savefig(BytesIO())


@pytest.fixture(autouse=True)
def registry_dir(tmp_path, monkeypatch):
    """A registry and a disk store of the test's own, so that tests see nobody else's images."""
    folder = tmp_path / "registry"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("SHAREDMASK_DIR", str(folder))
    monkeypatch.setenv("SHAREDMASK_TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home-cache"))
    return folder


@pytest.fixture(scope="session")
def _watch():
    watch = Watch()
    yield watch
    watch.close()


@pytest.fixture(autouse=True)
def segments_of_this_test(registry_dir, _watch):
    """Call it: the names of the segments that this test and its children made, as far as they exist."""
    with _watch.of(registry_dir) as appeared:
        yield Segments(appeared)


@pytest.fixture(autouse=True)
def nothing_left(registry_dir, segments_of_this_test):
    """No segment, record, descriptor or child process survives a test."""
    before = _descriptors(), _children()
    yield
    pool.shutdown()
    forkserver._forkserver._stop()  # which executors start from Python 3.14 on
    gc.collect()
    gc.freeze()  # what this test leaves alive, libraries mostly, need not be looked at after each of the next
    deadline = time.monotonic() + 30
    while (left := _left(registry_dir, segments_of_this_test(), *before)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, left


def _left(registry_dir, segments, descriptors, children):
    left = {
        "segments": sorted(segments),
        "records": sorted(os.listdir(registry_dir)) if registry_dir.exists() else [],
        "children": sorted(_children() - children),
        "descriptors": sorted(set(_descriptors().items()) - set(descriptors.items())),
    }
    return {what: which for what, which in left.items() if which}


def _children():
    """Descendants, as the kernel lists them; to look through all processes of the machine takes longer."""
    found, of = set(), {os.getpid()}
    while of := {child for parent in of for child in _children_of(parent)} - found:
        found |= of
    return found


def _children_of(pid):
    if not os.path.exists("/proc/thread-self/children"):
        return {process.pid for process in psutil.Process(pid).children()}
    found = set()
    with contextlib.suppress(FileNotFoundError):  # it has ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                found.update(map(int, file.read().split()))
    return found


def _descriptors():
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the one that lists
    return found
