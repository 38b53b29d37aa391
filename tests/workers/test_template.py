"""Where workers come from: however Python was started, with little imported, changing nothing here."""

import errno
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from multiprocessing import connection

import pytest
from children import gone, python

from sharedmask.workers import pool, template
from sharedmask.workers.pool import run_processes
from sharedmask.workers.surroundings import Surroundings


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
        with own.lease(2, 0, Surroundings.here()):
            pass
    finally:
        over.set()
        watcher.join()
        own.end()
    assert len(seen) > 10
    assert all(now == before for now in seen)


def test_an_interrupt_while_the_process_begins_is_the_callers_alone(monkeypatch):
    """It imports for a while before it can ignore Ctrl-C, and would end in a traceback of its own."""
    wait = "import signal, socket, sys; told = socket.socket(fileno=int(sys.argv[1])); told.send(b'1');"
    monkeypatch.setattr(template, "_COMMAND", wait + "told.recv(1); signal.signal(signal.SIGINT, 1)")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = template._started(theirs, ())
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
        assert ours.recv(1) == b"1"
        process.send_signal(signal.SIGINT)
        ours.send(b"2")
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("module", "name", "n_calls"),
    [(connection, "Pipe", 4), (socket, "socketpair", 1), (socket, "send_fds", 2), (subprocess, "Popen", 1)],
)
def test_without_descriptors_for_workers_those_that_there_are_do_the_work(
    monkeypatch, caplog, module, name, n_calls
):
    """Else threads do it; whichever call of those for two workers is refused."""
    usual = getattr(module, name)
    for refused in range(n_calls):
        calls = iter(range(n_calls))

        def refusing(*arguments, **named):
            if next(calls, n_calls) >= refused:  # noqa: B023
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return usual(*arguments, **named)

        monkeypatch.setattr(pool, "_pools", {})
        monkeypatch.setattr(module, name, refusing)
        caplog.clear()
        try:
            assert run_processes(abs, (), [(-number,) for number in range(5)], 2) == list(range(5))
        finally:
            pool._end_pools()
        assert "Too many open files (a process may have" in caplog.text


def test_workers_have_the_rights_that_the_caller_has_now(monkeypatch):
    """A process that gives up its rights has no workers that keep them."""

    def forked():
        ((pipe, child),) = own.fork(1, Surroundings.here())
        pipe.close()
        child.kill()
        return own._process.pid

    own = template.Template(())
    try:
        before = forked()
        assert forked() == before
        monkeypatch.setattr(template, "rights", lambda: "others")
        assert forked() != before
        assert gone([before])
    finally:
        own.stop()


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
    done = python(USER, fresh=True)
    assert (done.stdout, done.stderr) == (EXPECTED, "")


@pytest.mark.long
def test_python_from_standard_input():
    done = subprocess.run([sys.executable, "-"], input=USER, capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == (EXPECTED, "")


@pytest.mark.long
def test_the_interactive_prompt():
    done = subprocess.run(
        [sys.executable, "-i", "-q"], input=USER, capture_output=True, text=True, timeout=100
    )
    assert done.stdout == EXPECTED, done.stderr
    assert "Error" not in done.stderr


@pytest.mark.long
def test_python_dash_m(tmp_path):
    (tmp_path / "study.py").write_text(USER)
    done = subprocess.run(
        [sys.executable, "-m", "study"], capture_output=True, text=True, timeout=100, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == (EXPECTED, "")


@pytest.mark.long
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


@pytest.mark.long
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
