"""The program, run as a user runs it: in a process of its own.

The process is forked from one that has imported what the program does, which takes a second; it
begins and ends as others do.
"""

import contextlib
import gc
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings

_PRELOAD = ("h5py", "nilearn.maskers", "nilearn.signal", "pandas", "sharedmask.study.cohort")
_lock = threading.Lock()
_started = None


def sharedmask(*args, env=None, cwd=None, strict=True, timeout=200):
    """The finished program: its output, errors and exit code; ``env`` is added to ours.

    ``strict``: its warnings are errors.
    """
    asked = {
        "args": [os.fspath(arg) if isinstance(arg, os.PathLike) else str(arg) for arg in args],
        "env": {**os.environ, **(env or {})},
        "cwd": os.fspath(cwd or os.getcwd()),
        "strict": strict,
    }
    with _lock, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        status = _run(json.dumps(asked).encode(), out, err, timeout)
        code = os.waitstatus_to_exitcode(status)
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
    _process, to = start()
    with open(os.devnull) as nothing, tempfile.TemporaryFile() as request:
        request.write(asked)
        request.flush()
        socket.send_fds(to, [b"r"], [nothing.fileno(), out.fileno(), err.fileno(), request.fileno()])
        pid = int.from_bytes(to.recv(4), "big")
        to.settimeout(timeout)
        try:
            return int.from_bytes(to.recv(4), "big")
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            to.settimeout(None)
            to.recv(4)
            raise subprocess.TimeoutExpired(asked, timeout) from None
        finally:
            to.settimeout(None)


def start():
    """The process that programs are forked from; it ends with this one."""
    global _started
    if _started is None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        _started = process, ours
    return _started


def stop():
    global _started
    if _started is not None:
        process, ours = _started
        ours.close()
        process.wait()
        _started = None


def _serve(to):
    """Fork a child for each request; None when the requests have ended, in the child what is asked."""
    while True:
        _letter, fds, _flags, _address = socket.recv_fds(to, 1, 4)
        if not fds:
            return None
        pid = os.fork()
        if pid == 0:
            to.close()
            return fds
        for fd in fds:
            os.close(fd)
        to.send(pid.to_bytes(4, "big"))
        to.send(os.waitpid(pid, 0)[1].to_bytes(4, "big"))


def _become(fds):
    """Have the streams, environment, folder and arguments of a program that was started by itself."""
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
        os.close(fd)
    with open(fds[3], "rb") as request:
        request.seek(0)
        asked = json.load(request)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.path[0] = asked["cwd"]
    if not asked["strict"]:
        sys.warnoptions.clear()
        warnings.resetwarnings()
    sys.argv[:] = ["sharedmask", *asked["args"]]


if __name__ == "__main__":
    import importlib
    import pkgutil
    import runpy

    if profile := os.environ.get("BARE_PROFILE"):
        from bare import take_away

        take_away(profile)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _PRELOAD:
            importlib.import_module(name)
        cli = importlib.import_module("sharedmask.cli")
        for verb in pkgutil.iter_modules(cli.__path__):
            importlib.import_module(f"{cli.__name__}.{verb.name}")
    gc.freeze()  # what all have in common is not looked through, and so not copied, at the end of each
    with socket.socket(fileno=int(sys.argv[1])) as to:
        fds = _serve(to)
    if fds is not None:
        _become(fds)
        runpy.run_module("sharedmask", run_name="__main__", alter_sys=True)
