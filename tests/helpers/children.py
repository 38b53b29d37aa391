"""Run pieces of Python as a user's program would, and look at what they leave."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager

from nursery import Nursery

_NURSERY = Nursery(
    [
        *(
            "numpy",
            "nibabel",
            "click",
            "psutil",
            "cloudpickle",
            "isal.igzip",
            "multiprocessing.resource_tracker",
        ),
        *(f"sharedmask.{package}." for package in ("sources", "storage", "workers", "compute", "image")),
        *("sharedmask.frames.dataset", "sharedmask.study.cohort", "sharedmask.cli.serve"),
    ]
)
start, stop = _NURSERY.start, _NURSERY.stop


def python(script, *args, how="-c", helpers=False, fresh=False, timeout=120, **kwargs):
    """The finished child: its output, errors and return code; if it uses ``helpers``, it can import them.

    It finds sharedmask imported, unless it is to be ``fresh``: to measure memory, or what is imported.
    """
    if helpers:
        _with_helpers(kwargs)
    if not fresh and how == "-c":
        child = _NURSERY.piped(_script(script, args), **kwargs)
        try:
            out, err = child.communicate(timeout)
        finally:
            child.kill()
        return subprocess.CompletedProcess(args, child.returncode, out, err)
    return subprocess.run(
        [sys.executable, how, textwrap.dedent(script), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        **kwargs,
    )


def _script(script, args):
    return {"script": textwrap.dedent(script), "args": [*map(str, args)]}


def _with_helpers(kwargs):
    env = kwargs.setdefault("env", dict(os.environ))
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [env.get("PYTHONPATH"), os.path.dirname(__file__)]))


@contextmanager
def running(script, *args, ready="ready", helpers=False, **kwargs):
    """A child that has printed a line starting with ``ready``; killed at the end."""
    if helpers:
        _with_helpers(kwargs)
    child = _NURSERY.piped(_script(script, args), session=True, **kwargs)
    try:
        line = child.stdout.readline()
        assert line.startswith(ready), (line, child.stderr.read() if child.poll() is not None else "")
        child.said = line[len(ready) :].split()
        yield child
    finally:
        child.kill()
        child.communicate()


def program(*args, n_files=None, **kwargs):
    """The program ``sharedmask``, begun, in a session of its own, as after `ulimit -n` ``n_files``."""
    what = {"module": "sharedmask", "args": [*map(str, args)], "n_files": n_files}
    return _NURSERY.piped(what, session=True, **kwargs)


def in_fork(call):
    """What ``call`` gives in a forked child, or raises there, as text; one that hangs is killed."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        try:
            said = repr(call())
        except BaseException as error:
            said = repr(error)
        os.write(theirs, said.encode())
        os._exit(0)
    os.close(theirs)
    with open(ours) as pipe:
        said = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return said


def kill_group(child):
    """Owner, tracker, templates and workers at once, as a batch system does."""
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def gone(pids, seconds=60):
    """Whether all these processes end in time; zombies count as ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(_lives(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def _lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
