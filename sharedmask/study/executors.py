"""Executors: where the images of a study are worked on.

Covers: worker processes and threads of this machine, Dask clusters, how many images at a time. Does not
cover: which image is next (``cohort``), tasks that wait for a worker (``executor`` of ``workers``).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

from sharedmask.compute.cleaning import CLEANING_MODULES
from sharedmask.compute.connectivity import CONNECTIVITY_MODULES
from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.system import platform, process, settings
from sharedmask.system.threads import Threads
from sharedmask.workers import pool
from sharedmask.workers.executor import Processes

_AHEAD = 64
_SMALL_AHEAD = 32
_LARGE = 2**20
# What their template imports, once for all of them.
_EXTRACTING = ("sharedmask.study.cohort", "sharedmask.study.analysis", "isal.igzip", "psutil")
_T = TypeVar("_T")


def _nothing() -> None:
    """Nothing waits."""


@dataclass(frozen=True)
class Engine:
    """An executor, and what it may be given."""

    executor: Executor
    at_once: int
    local: bool
    """Whether what runs takes this machine's memory, which is then counted."""
    in_processes: bool = False
    """Whether work is done in workers of ours."""
    ahead: int = 1
    """Small images that are given for each of these at a time, so that no worker waits for the caller."""
    waiting: int = 0
    """Large ones that wait besides, for the same reason."""
    begin: Callable[[], None] = _nothing
    """Has all that was given worked on: called by who gave it, who waits then."""

    def most(self, are_small: bool) -> int:
        """Images that it is given at a time."""
        return self.at_once * self.ahead if are_small else self.at_once + self.waiting


def preloaded(cleans: bool, relates: bool = False) -> tuple[str, ...]:
    """What the workers of a study import: to clean signals, to relate them."""
    return (
        *_EXTRACTING,
        *(CLEANING_MODULES if cleans else ()),
        *(CONNECTIVITY_MODULES if relates else ()),
    )


def begin(n_jobs: int | None, preload: Sequence[str]) -> None:
    """Start what the workers of a later call come from, which takes a while, and wait for nothing.

    This is for programs of our own: a process that only keeps what workers give holds no more than that.
    """
    if _has_processes(process.effective_n_jobs(n_jobs)):
        platform.let_go_of_memory(_LARGE)
        pool.begin(preload)


def elsewhere(n_jobs: int | None, preload: Sequence[str], function: Callable[..., _T]) -> Callable[..., _T]:
    """The function as it is called in a worker, if there will be any: what it imports is not held here."""
    if not _has_processes(process.effective_n_jobs(n_jobs)):
        return function

    def call(*arguments: Any) -> _T:
        found: _T = pool.run_processes(function, (), [arguments], 1, preload=preload)[0]
        return found

    return call


def _has_processes(count: int) -> bool:
    return count > 1 and pool.can_start_processes() and settings.current().shared_memory


@contextlib.contextmanager
def engine(executor: Any, n_jobs: int | None, preload: Sequence[str]) -> Iterator[Engine]:
    """The caller's executor, or one of our own for ``n_jobs`` images at a time, until the context ends."""
    if executor is not None:
        executor = _given(executor)
        at_once = _ahead(executor) if n_jobs is None else process.effective_n_jobs(n_jobs)
        yield Engine(executor, at_once, local=False)
        return
    count = process.effective_n_jobs(n_jobs)
    own: Executor
    begun = _nothing
    if in_processes := _has_processes(count):
        own = processes = Processes(count, preload)
        begun = processes.begin
    else:
        # Where nobody said how many: the second decodes while the first is in Python code that cleans.
        count += n_jobs is None
        own = Threads(count, "sharedmask-cohort")
    try:
        yield Engine(
            own, count, in_processes=in_processes, local=True, ahead=_SMALL_AHEAD, waiting=1, begin=begun
        )
    finally:
        own.shutdown(cancel_futures=True)


def _given(executor: Any) -> Executor:
    """What the caller gave; of a Dask client its executor.

    Raises ParameterError: it is none.
    """
    if callable(get_executor := getattr(executor, "get_executor", None)):
        executor = get_executor()
    if not callable(getattr(executor, "submit", None)):
        raise ParameterError(
            f"executor={executor!r} is none: give a concurrent.futures.Executor, or a dask.distributed.Client"
        )
    return executor  # type: ignore[no-any-return]


def _ahead(executor: Executor) -> int:
    """How many images it has at a time: two for each thread that a Dask cluster has now, if that is more."""
    nthreads = getattr(getattr(executor, "_client", None), "nthreads", dict)
    return max(_AHEAD, 2 * sum(nthreads().values()))


@contextlib.contextmanager
def on_dask(address: str, n_workers: int) -> Iterator[Executor]:
    """An executor on the Dask cluster at ``address``, or on one of ``n_workers`` processes here.

    ``address``: of a scheduler, as ``tcp://10.0.0.1:8786``; ``"local"`` starts a cluster and ends it.

    Raises ParameterError: Dask is not installed, or nobody answers at that address.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ParameterError("--dask needs Dask: install sharedmask[cohort]") from error
    with contextlib.ExitStack() as stack:
        if address == "local":
            cluster = LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=None)
            address = stack.enter_context(cluster)
        try:
            client = stack.enter_context(Client(address))
        except OSError as error:
            raise ParameterError(f"no Dask scheduler answers at {address}: {error}") from error
        yield client.get_executor()
