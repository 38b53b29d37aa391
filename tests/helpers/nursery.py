"""Processes that begin where imports are done: forked from one that has imported what they will.

An interpreter takes a fifth of a second to import sharedmask, and a fork of one that has it a hundredth.
What is forked begins and ends as other programs do.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
import warnings

_lock = threading.Lock()


class Nursery:
    """The process that others are forked from; it ends with this one.

    ``modules`` are imported by it, and those in packages whose names end in a dot; ``flags`` are those
    of its interpreter, and so of all that is forked.
    """

    def __init__(self, modules, flags=()):
        self._modules, self._flags = modules, flags
        self._process = self._socket = None

    def start(self):
        if self._process is None:
            self._socket, theirs = socket.socketpair()
            with theirs:
                what = [__file__, str(theirs.fileno()), *self._modules]
                self._process = subprocess.Popen(
                    [sys.executable, *self._flags, *what], pass_fds=[theirs.fileno()]
                )

    def stop(self):
        if self._process is not None:
            self._socket.close()
            self._process.wait()
            self._process = self._socket = None

    def child(self, asked, stdin, stdout, stderr):
        """A child, as ``_become`` takes what is ``asked`` of it; streams are files or their numbers."""
        self.start()
        told, tell = socket.socketpair()
        with tell, tempfile.TemporaryFile() as request:
            request.write(json.dumps(asked).encode())
            request.flush()
            with _lock:
                socket.send_fds(self._socket, [b"r"], _numbers(stdin, stdout, stderr, request, tell))
        return Child(told)

    def piped(self, what, env=None, cwd=None, stdin=False, session=False):
        """The same with pipes to its output and errors, and, if wanted, to its input."""
        where = {"env": dict(os.environ if env is None else env), "cwd": os.fspath(cwd or os.getcwd())}
        with contextlib.ExitStack() as theirs:
            given, ours = _pipe() if stdin else (open(os.devnull), None)  # noqa: SIM115
            out, to_out = _pipe()
            err, to_err = _pipe()
            for file in (given, to_out, to_err):
                theirs.enter_context(file)
            child = self.child({**what, **where, "session": session}, given, to_out, to_err)
        child.stdin, child.stdout, child.stderr = ours, out, err
        return child


def _pipe():
    ours, theirs = os.pipe()
    return open(ours), open(theirs, "w")


def _numbers(*files):
    return [file if isinstance(file, int) else file.fileno() for file in files]


class Child:
    """What ``subprocess.Popen`` is of processes that it started: for as much as is used here."""

    def __init__(self, told):
        self._told = told
        self.pid = int.from_bytes(told.recv(4), "big")
        assert self.pid, "what it is forked from has died"
        self.returncode = self.stdin = self.stdout = self.stderr = None

    def poll(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            with self._told:
                status = self._told.recv(4)
            assert status, "what it is forked from has died"
            self.returncode = os.waitstatus_to_exitcode(int.from_bytes(status, "big"))
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def communicate(self, timeout=None):
        """What it writes until it ends, as far as it was not read."""
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.stdin.close()
        said = {}
        readers = [
            threading.Thread(target=lambda file=file: said.__setitem__(file, file.read()), daemon=True)
            for file in (self.stdout, self.stderr)
            if file is not None and not file.closed
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        for file in said:
            file.close()
        self.wait(timeout)
        return said.get(self.stdout, ""), said.get(self.stderr, "")


# --- the other side ---


def _serve(to):
    """Fork a child for each request, and tell of its end; its files, in the child; none at the end."""
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    told = {}
    while True:
        ready, _, _ = select.select([to, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            _reap(told)
        if to in ready:
            _letter, fds, _flags, _address = socket.recv_fds(to, 1, 5)
            tell = socket.socket(fileno=fds.pop()) if fds else None
            pid = os.fork() if fds else 0
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for one in filter(None, (woken, wake, tell, *told.values())):
                    one.close()
                return fds
            for fd in fds:
                os.close(fd)
            _tell(tell, pid)
            told[pid] = tell


def _reap(told):
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with told.pop(ended[0]) as tell:
                _tell(tell, ended[1])


def _tell(tell, number):
    with contextlib.suppress(OSError):  # who asked may be gone
        tell.send(number.to_bytes(4, "big"))


def _become(fds):
    """Have the streams, environment, folder and arguments of a program that was started by itself."""
    for number, stream in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(fds[number], number)
        os.close(fds[number])
        setattr(sys, stream, _stream(getattr(sys, stream), number))
    with open(fds[3], "rb") as request:
        request.seek(0)
        asked = json.load(request)
    if asked.get("session"):
        os.setsid()
    if n_files := asked.get("n_files"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (n_files, n_files))
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    path = asked["env"].get("PYTHONPATH", "").split(os.pathsep)
    first = "" if "script" in asked else asked["cwd"]
    sys.path[:] = [first, *(one for one in path if one and one not in sys.path[1:]), *sys.path[1:]]
    if asked.get("lenient"):
        sys.warnoptions.clear()
        warnings.resetwarnings()
    return asked


def _stream(before, number):
    """As an interpreter opens it: whether it is a terminal, a pipe or a file is seen then."""
    how = {"encoding": before.encoding, "errors": before.errors, "closefd": False}
    if number == 0:
        return open(0, **how)
    return open(number, "w", 1 if number == 2 or os.isatty(number) else -1, **how)


def _import(names):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            with contextlib.suppress(ImportError):
                module = importlib.import_module(name.rstrip("."))
                if name.endswith("."):
                    import pkgutil

                    _import(f"{name}{one.name}" for one in pkgutil.iter_modules(module.__path__))


if __name__ == "__main__":
    number, *modules = sys.argv[1:]
    _import(modules)
    gc.freeze()  # what all have in common is not looked through, and so not copied, at the end of each
    with socket.socket(fileno=int(number)) as to:
        fds = _serve(to)
    if fds:
        asked = _become(fds)
        if "script" in asked:
            sys.argv[:] = ["-c", *asked["args"]]
            program = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(asked["script"], "<string>", "exec"), vars(program))
        else:
            sys.argv[:] = [asked["module"], *asked["args"]]
            runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
