"""The program, run as a user runs it: in a process of its own.

The process is forked from one that has imported what the program does, which takes a second; it
begins and ends as others do.
"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile

from nursery import Nursery

_NURSERY = Nursery(
    ["h5py", "nilearn.maskers", "nilearn.signal", "pandas", "sharedmask.study.cohort", "sharedmask.cli."],
    flags=["-W", "error"],
)
start, stop = _NURSERY.start, _NURSERY.stop


def sharedmask(*args, env=None, cwd=None, strict=True, timeout=200):
    """The finished program: its output, errors and exit code; ``env`` is added to ours.

    ``strict``: its warnings are errors.
    """
    asked = {
        "module": "sharedmask",
        "args": [os.fspath(arg) if isinstance(arg, os.PathLike) else str(arg) for arg in args],
        "env": {**os.environ, **(env or {})},
        "cwd": os.fspath(cwd or os.getcwd()),
        "lenient": not strict,
    }
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        code = _run(asked, out, err, timeout)
        return subprocess.CompletedProcess(asked["args"], code, _text(out), _text(err))


def called(*args, env=None):
    """The same in this process, by ``main``; ``env`` is added to ours."""
    from sharedmask.cli import main

    out, err, before = io.StringIO(), io.StringIO(), (sys.argv, dict(os.environ))
    sys.argv = ["sharedmask", *map(str, args)]
    os.environ.update(env or {})
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before[0]
        os.environ.clear()
        os.environ.update(before[1])
    return subprocess.CompletedProcess(args, code or 0, out.getvalue(), err.getvalue())


def _text(file):
    file.seek(0)
    return file.read().decode()


def _run(asked, out, err, timeout):
    with open(os.devnull) as nothing:
        child = _NURSERY.child(asked, nothing, out, err)
    try:
        return child.wait(timeout)
    finally:
        child.kill()
        child.wait()
