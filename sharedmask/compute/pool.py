"""Persistent worker processes, and threads with the same interface.

Covers: starting workers, sending them a kernel and its items, noticing their death. Does not
cover: what kernels do (``kernels``), whether processes are worth it (``image``).

Who talks to whom::

    caller ──start──> template process (numpy imported once) ──fork──> worker
    caller <──────────────── one pipe per worker ─────────────────────> worker

    job   kernel and the arguments that all items share; Shared ones are attached on arrival
    item  one call of the kernel; its answer is the value, or the exception and its traceback
    end   the arguments are dropped, so an idle worker holds no image

A worker exits when its pipe ends or its parent dies, whatever it is doing.
"""

import contextlib
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import connection, current_process, forkserver, get_context, parent_process
from types import ModuleType
from typing import Any

from sharedmask.errors import ParameterError, WorkerError
from sharedmask.storage.segment import Shared, attach
from sharedmask.system.process import n_cpus

Kernel = Callable[..., Any]
Item = tuple[Any, ...]
OnDone = Callable[[int, Any], None]

# One thread per worker: n_jobs says how many cores to use, and every BLAS thread has its buffers.
_ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB")}


# --- the worker's side ---------------------------------------------------------------------------


def _work(pipe: connection.Connection) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    kernel: Kernel | None = None
    arguments: Item = ()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            kind, *message = pipe.recv()
            if kind == "item":
                assert kernel is not None
                pipe.send_bytes(_answer(kernel, arguments, message[0]))
                continue
            kernel, arguments = None, ()
            if kind == "job":
                kernel, arguments = _receive_job(message[0])


def _leave_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _receive_job(payload: bytes) -> tuple[Kernel, Item]:
    try:
        kernel, arguments = pickle.loads(payload)
        return kernel, tuple(_resolved(argument) for argument in arguments)
    except Exception as error:
        # A job that cannot be received fails at its first item, where somebody waits for an answer.
        return _Failing(error), ()


def _resolved(argument: Any) -> Any:
    if isinstance(argument, Shared):
        return attach(argument.handle, writable=argument.writable).arrays[argument.name]
    return argument


@dataclass(frozen=True)
class _Failing:
    error: Exception

    def __call__(self, *_: object) -> None:
        raise self.error


def _answer(kernel: Kernel, arguments: Item, item: Item) -> bytes:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer: tuple[bool, Any, str] = (True, kernel(*arguments, *item), "")
        except Exception as error:
            answer = (False, error, traceback.format_exc())
    said = [(warning.category, str(warning.message)) for warning in caught]
    try:
        return _dumps((*answer, said))
    except Exception as error:
        trace = traceback.format_exc()
        return pickle.dumps((False, WorkerError(f"the answer cannot be sent back: {error}"), trace, []))


def _dumps(thing: object) -> bytes:
    try:
        return pickle.dumps(thing, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:
        return _dumps_by_value(thing)


def _dumps_by_value(thing: object) -> bytes:
    """Lambdas, closures and what a script or notebook defined travel whole, the rest by name."""
    import cloudpickle

    return bytes(cloudpickle.dumps(thing))


# --- the parent's side ---------------------------------------------------------------------------


class _RemoteTraceback(Exception):
    """Carries a worker's traceback as the cause of its exception."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, template: forkserver.ForkServer) -> None:
        context = get_context("forkserver")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True, name="sharedmask-worker")
        with theirs, _as_template(template):
            self.process.start()

    def send(self, *message: Any) -> None:
        # A worker that died is noticed where its answer is awaited.
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            self.pipe.send(message)

    def receive(self) -> tuple[bool, Any, str, list[tuple[type[Warning], str]]]:
        try:
            answer = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionError):
            raise self._death() from None
        return answer  # type: ignore[no-any-return]

    def _death(self) -> WorkerError:
        self.process.join(5)
        code, pid = self.process.exitcode, self.process.pid
        how = f"ended with exit code {code}"
        hint = ""
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                hint = " (the kernel does this when memory runs out)"
        return WorkerError(f"worker process {pid} {how}{hint}; the next call starts new workers")

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


_starting = threading.RLock()


@contextlib.contextmanager
def _as_template(template: forkserver.ForkServer) -> Iterator[None]:
    """Start processes from ``template``, and without the user's ``__main__``.

    multiprocessing makes children import the main script again, which fails or runs it twice
    without a main guard; what workers run comes from this package or travels by value. It also
    knows one fork server per process, with one list of preloaded modules: that one is the user's.
    """
    with _starting:
        main, connect = sys.modules["__main__"], forkserver.connect_to_new_process
        environment = {name: os.environ.get(name) for name in _ONE_THREAD}
        sys.modules["__main__"] = ModuleType("__main__")
        forkserver.connect_to_new_process = template.connect_to_new_process
        os.environ.update(_ONE_THREAD)
        try:
            yield
        finally:
            sys.modules["__main__"], forkserver.connect_to_new_process = main, connect
            for name, value in environment.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


class _Pool:
    """Workers forked from one template; leased to one job at a time."""

    def __init__(self, preload: Sequence[str]) -> None:
        self._template = forkserver.ForkServer()
        self._template.set_forkserver_preload(
            ["numpy", __name__, "sharedmask.compute.kernels", "sharedmask.compute.reduction", *preload]
        )
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def lease(self, count: int) -> Iterator[list[_Worker]]:
        """``count`` workers; those not idle again at the end, for whatever reason, are stopped."""
        with self._lock:
            workers, self._idle = self._idle[:count], self._idle[count:]
        workers = self._alive(workers)
        try:
            while len(workers) < count:
                workers.append(_Worker(self._template))
            yield workers
        except BaseException:
            # Some are still at work on an output that nobody will read.
            for worker in workers:
                worker.stop()
            raise
        with self._lock:
            self._idle += workers

    @staticmethod
    def _alive(workers: list[_Worker]) -> list[_Worker]:
        dead = [worker for worker in workers if not worker.process.is_alive()]
        for worker in dead:
            worker.stop()
        return [worker for worker in workers if worker not in dead]

    def stop(self) -> None:
        with self._lock:
            workers, self._idle = self._idle, []
        for worker in workers:
            worker.stop()


_pools: dict[tuple[str, ...], _Pool] = {}


def _forget_pools() -> None:
    _pools.clear()  # a forked child neither owns nor uses its parent's workers


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)


def shutdown() -> None:
    """Stop all idle workers; the next call starts new ones."""
    for pool in list(_pools.values()):
        pool.stop()


def can_start_processes() -> bool:
    """False within a daemonic process, which may have no children."""
    return not current_process().daemon


def run_processes(
    kernel: Kernel,
    arguments: Item,
    items: Sequence[Item],
    n_jobs: int,
    on_done: OnDone | None = None,
    preload: Sequence[str] = (),
) -> list[Any]:
    """Call ``kernel(*arguments, *item)`` for each item in worker processes; answers in order.

    ``Shared`` arguments arrive as arrays. ``preload`` names modules that the workers' template
    imports once for all. ``on_done(i, answer)`` is called here as answers come.

    Raises
    ------
    WorkerError
        A worker died. What a kernel raises is raised here, with the worker's traceback as cause.
    """
    if not can_start_processes():
        raise ParameterError("a daemonic process may not start workers: use prefer='threads' in it")
    pool = _pools.setdefault(tuple(preload), _Pool(preload))
    payload = _dumps_by_value((kernel, arguments))
    with pool.lease(min(n_jobs, len(items))) as workers:
        for worker in workers:
            worker.send("job", payload)
        answers = _Dispatch(workers, items, on_done).run()
        for worker in workers:
            worker.send("end")
    return answers


class _Dispatch:
    """Gives items to workers one by one and collects the answers."""

    def __init__(self, workers: list[_Worker], items: Sequence[Item], on_done: OnDone | None) -> None:
        self._workers = workers
        self._items = items
        self._on_done = on_done
        self._waiting = iter(range(len(items)))
        self._busy: dict[Any, tuple[_Worker, int]] = {}
        self._answers: list[Any] = [None] * len(items)
        self._said: set[tuple[type[Warning], str]] = set()

    def run(self) -> list[Any]:
        for worker in self._workers:
            self._give(worker)
        while self._busy:
            for pipe in connection.wait(list(self._busy)):
                worker, number = self._busy.pop(pipe)
                self._take(number, *worker.receive())
                self._give(worker)
        return self._answers

    def _give(self, worker: _Worker) -> None:
        number = next(self._waiting, None)
        if number is not None:
            self._busy[worker.pipe] = worker, number
            worker.send("item", self._items[number])

    def _take(
        self, number: int, ok: bool, value: Any, trace: str, said: list[tuple[type[Warning], str]]
    ) -> None:
        for category, text in said:
            if (category, text) not in self._said:
                self._said.add((category, text))
                warnings.warn(text, category, stacklevel=2)
        if not ok:
            raise value from _RemoteTraceback(trace)
        self._answers[number] = value
        if self._on_done is not None:
            self._on_done(number, value)


def run_threads(
    kernel: Kernel,
    arguments: Item,
    items: Sequence[Item],
    n_jobs: int,
    on_done: OnDone | None = None,
) -> list[Any]:
    """The same as :func:`run_processes` on threads of the caller; arrays are passed as they are."""
    n_threads = min(n_jobs, len(items), n_cpus())
    if n_threads <= 1:
        return [_done(on_done, number, kernel(*arguments, *item)) for number, item in enumerate(items)]
    with ThreadPoolExecutor(n_threads, thread_name_prefix="sharedmask") as threads:
        running = [threads.submit(kernel, *arguments, *item) for item in items]
        try:
            return [_done(on_done, number, future.result()) for number, future in enumerate(running)]
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def _done(on_done: OnDone | None, number: int, value: Any) -> Any:
    if on_done is not None:
        on_done(number, value)
    return value
