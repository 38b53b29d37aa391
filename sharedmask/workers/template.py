"""Templates: processes that have imported what workers need, and that workers are forked from.

Covers: starting one without a trace in the caller, forking children of it, how they end. Does not
cover: what a child does (``worker``), which children there are (``pool``).

A template is a fresh interpreter. It knows nothing of the caller's main module, threads or locks,
and no name: it hears its caller through an inherited socket, and ends with it::

    caller ──its surroundings, unless they are those of before──> template
    caller ──a byte, the worker's pipe, a descriptor to tell──> template ──fork──> worker
    caller <──its pid, and how it ended── told

    the end of the socket: the caller is gone; the template kills what it forked, and leaves
"""

import contextlib
import errno
import gc
import importlib
import os
import signal
import socket
import struct
import subprocess
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, spawn, util
from pathlib import Path
from typing import NoReturn

from sharedmask.errors import WorkerError
from sharedmask.system import settings
from sharedmask.system.limits import explained
from sharedmask.system.platform import is_readable, rights
from sharedmask.system.process import Lock
from sharedmask.workers.surroundings import ONE_THREAD, Entered, Surroundings

_HOME = str(Path(__file__).parents[2])
_COMMAND = (  # nothing that is imported is garbage
    "import gc, sys; gc.disable(); sys.path[:] = sys.argv[3:];"
    "from sharedmask.workers.template import serve; serve()"
)
_NUMBER = struct.Struct("=i")
_SIZE = struct.Struct("=Q")
_FORK, _ENTER = b"f", b"s"
_END_SECONDS = 5  # a process that was told to end
_Asked = tuple[connection.Connection, connection.Connection, "subprocess.Popen[bytes]"]


# --- the caller's side ---------------------------------------------------------------------------


class CannotStartError(WorkerError):
    """No process can be started here: of limits, or because Python is embedded in another program."""


class Template:
    """Forks children; its process starts with the first of them at the latest, and again when it has died.

    ``preload``: modules that it imports once for all children.
    """

    def __init__(self, preload: Sequence[str]) -> None:
        self._preload = preload
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._surroundings: Surroundings | None = None
        self._rights = rights()

    def begin(self) -> None:
        """Start the process, if it does not run; it imports while others work."""
        self._running()

    def fork(self, count: int, surroundings: Surroundings) -> Iterator[tuple[connection.Connection, "Child"]]:
        """New children in these surroundings, and the pipes to them.

        All are asked for before the first is waited for; if one cannot be, those before it come first.

        Raises WorkerError: one cannot be started; the next call begins anew.
        """
        asked, refused = deque[_Asked](), None
        try:
            with self._lock:
                while len(asked) < count and refused is None:
                    try:
                        asked.append(self._ask(surroundings))
                    except CannotStartError as error:
                        refused = error
            while asked:
                pipe, told, process = asked[0]
                child = _first_sign(told, process)
                asked.popleft()
                yield pipe, child
            if refused is not None:
                raise refused
        finally:
            for pipe, told, _ in asked:
                pipe.close()
                told.close()

    def _ask(self, surroundings: Surroundings) -> "_Asked":
        with contextlib.ExitStack() as undo, _startable():
            pipe, theirs = connection.Pipe()
            undo.callback(pipe.close)
            with theirs:
                told, tell = connection.Pipe(duplex=False)
                undo.callback(told.close)
                with tell:
                    process, to = self._running()
                    with contextlib.suppress(BrokenPipeError, ConnectionError):
                        self._tell(to, surroundings)
                        socket.send_fds(to, [_FORK], [theirs.fileno(), tell.fileno()])
            undo.pop_all()
        return pipe, told, process

    def _tell(self, to: socket.socket, surroundings: Surroundings) -> None:
        if surroundings is self._surroundings:
            return
        packed = surroundings.packed
        try:
            to.sendall(_ENTER + _SIZE.pack(len(packed)) + packed)
        except BaseException:  # it waits for the rest, which does not come
            self.stop()
            raise
        self._surroundings = surroundings

    def _running(self) -> tuple["subprocess.Popen[bytes]", socket.socket]:
        with self._lock, _startable():
            if self._rights != rights():
                self.stop()
            if self._process is None or self._socket is None or self._process.poll() is not None:
                self._forget()
                self._rights = rights()
                ours, theirs = socket.socketpair()
                try:
                    with theirs:
                        self._process = _started(theirs, self._preload)
                except BaseException:
                    ours.close()
                    raise
                self._socket = ours
            return self._process, self._socket

    def stop(self) -> None:
        """End the process and all its children; the next fork starts another."""
        with self._lock:
            process = self._process
            self._forget()
        if process is not None:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def abandon(self) -> None:
        """In a forked child: the process is the parent's, and its socket must end with the parent."""
        if self._process is not None:
            self._process.returncode = 0  # nothing to wait for, here
        self._forget()

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._process = self._socket = self._surroundings = None


def _started(theirs: socket.socket, preload: Sequence[str]) -> "subprocess.Popen[bytes]":
    """A fresh interpreter, with our path and flags, that serves ``theirs``."""
    path = [entry for entry in sys.path if isinstance(entry, str)]
    path += [] if _HOME in path else [_HOME]
    flags = util._args_from_interpreter_flags()  # type: ignore[attr-defined]
    with _without_interrupts():
        return subprocess.Popen(
            [_python(), *flags, "-c", _COMMAND, str(theirs.fileno()), ",".join(preload), *path],
            env={**os.environ, **ONE_THREAD},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )


@contextlib.contextmanager
def _startable() -> Iterator[None]:
    """What the system refuses is told as what it means.

    Raises CannotStartError.
    """
    try:
        yield
    except OSError as error:
        raise CannotStartError(
            f"no worker process can be started with Python at {_python()!r}: {explained(error)}"
        ) from error


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Who is started here holds Ctrl-C, which goes to all, back until it ignores it; so do we until then."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _python() -> str:
    return os.fsdecode(spawn.get_executable() or "")


class Child:
    """A process that a template forked: its pid, and how it ended."""

    def __init__(self, told: connection.Connection) -> None:
        """Wait until it runs; EOFError if the template has died."""
        self._told = told
        self.exitcode: int | None = None
        (self.pid,) = _NUMBER.unpack(told.recv_bytes())
        if self.pid < 0:
            told.close()
            refused = OSError(-self.pid, os.strerror(-self.pid))
            raise CannotStartError(f"no worker process can be started: {explained(refused)}")

    def is_alive(self) -> bool:
        """Whether nothing was told of its end, nor of its template's."""
        return self.exitcode is None and not self._told.closed and not is_readable(self._told)

    def wait(self, seconds: float = _END_SECONDS) -> int | None:
        """Its exit code, minus the signal that ended it; None if it runs on or nobody knows."""
        if self.exitcode is None and not self._told.closed and self._told.poll(seconds):
            with contextlib.suppress(EOFError):
                (self.exitcode,) = _NUMBER.unpack(self._told.recv_bytes())
        return self.exitcode

    def kill(self) -> None:
        """End it now, if it runs, and forget it."""
        if self.is_alive():
            with contextlib.suppress(
                ProcessLookupError, PermissionError
            ):  # that of another user ends by itself
                os.kill(self.pid, signal.SIGKILL)
            self.wait()
        self._told.close()

    def abandon(self) -> None:
        """In a forked child: it is the parent's."""
        self._told.close()


def _first_sign(told: connection.Connection, process: "subprocess.Popen[bytes]") -> Child:
    try:
        return Child(told)
    except EOFError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        code = process.returncode
        kind = WorkerError if code is None or code < 0 else CannotStartError
        raise kind(
            f"the process that starts workers, {_python()!r}, {ended(code)} while it started one; "
            "the next call starts it again"
        ) from None


def ended(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "ended"
    if code >= 0:
        return f"ended with exit code {code}"
    hint = " (the kernel does this when memory runs out)" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}"


# --- the template's side -------------------------------------------------------------------------


def serve() -> NoReturn:
    """The life of a template."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the thread that started this may have blocked some
    number, preload, *_ = sys.argv[1:]
    caller = socket.socket(fileno=int(number))
    from sharedmask.workers import worker

    settings.know_variables(os.environ)  # the caller tells of those that are no settings
    for name in preload.split(","):
        # Whoever needs what cannot be imported says so; what it warns of is said where it is used.
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)
    worker.rehearse()
    gc.freeze()  # what all share is not looked through, and so not copied, by each
    gc.enable()
    _Server(caller, worker.work).run()


class _Server:
    """Forks at each request, and tells of each end."""

    def __init__(self, caller: socket.socket, work: Callable[[connection.Connection, Entered], None]) -> None:
        self._caller = caller
        self._work = work
        self._entered = Entered()
        self._tell: dict[int, connection.Connection] = {}
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake.fileno())

    def run(self) -> NoReturn:
        while True:
            ready = connection.wait([self._caller, self._woken])
            if self._woken in ready:
                self._reap()
            if self._caller in ready:
                request, fds, *_ = socket.recv_fds(self._caller, 1, 2)
                if request == _FORK:
                    self._fork(*map(connection.Connection, fds))
                elif request == _ENTER:
                    (size,) = _SIZE.unpack(self._received(_SIZE.size))
                    with contextlib.suppress(Exception):  # who is forked tries again, and says what is wrong
                        self._entered.enter(self._received(size))
                else:
                    self._leave()

    def _received(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            part = self._caller.recv(size - len(found))
            if not part:
                self._leave()
            found += part
        return bytes(found)

    def _fork(self, pipe: connection.Connection, tell: connection.Connection) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            _send(tell, -(error.errno or errno.EAGAIN))
            tell.close()
        else:
            if pid == 0:
                tell.close()
                self._live(pipe)
            self._tell[pid] = tell
            _send(tell, pid)
        pipe.close()

    def _live(self, pipe: connection.Connection) -> NoReturn:
        """The life of a child, which holds nothing of the template's."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for ours in (self._caller, self._woken, self._wake):
                ours.close()
            for tell in self._tell.values():
                tell.close()
            self._work(pipe, self._entered)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            _flush()
            os._exit(code)

    def _reap(self) -> None:
        self._woken.recv(4096)
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                tell = self._tell.pop(pid)
                _send(tell, os.waitstatus_to_exitcode(status))
                tell.close()

    def _leave(self) -> NoReturn:
        for pid in self._tell:
            os.kill(pid, signal.SIGKILL)
        for pid in self._tell:
            os.waitpid(pid, 0)
        os._exit(0)


def _send(tell: connection.Connection, number: int) -> None:
    with contextlib.suppress(OSError):  # who asked is gone
        tell.send_bytes(_NUMBER.pack(number))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
