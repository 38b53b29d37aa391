"""Lesions in batches: each batch is done, handed over and forgotten before the next.

Covers: cutting into batches, the caller's function for each, bad lesions, progress. Does not cover:
what is made of a lesion (``mapper``, or the caller's function), files (``output``).
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import field
from functools import partial
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np

from sharedmask.compute import kernels
from sharedmask.compute.progress import Progress, counted, progress_to
from sharedmask.errors import CallbackError, ParameterError
from sharedmask.records import dataclass
from sharedmask.regions.masks import named_masks
from sharedmask.system import process
from sharedmask.workers import pool, threaded
from sharedmask.workers.failure import Failure
from sharedmask.workers.generators import bits_of, is_generator
from sharedmask.workers.streams import Streams

Batch = Mapping[str, Any]
OnBatch = Callable[[dict[str, Any]], object]
Advance = Callable[[float], None]

_FUNCTION_BATCH = 20  # lesions per batch of a plain function, whose results nobody can foretell


class Runner(Protocol):
    """Does one batch after the other."""

    @property
    def batch_size(self) -> int:
        """Lesions of a batch that memory allows."""

    def __call__(self, batch: Batch, advance: Advance) -> dict[str, Any]:
        """A result or an exception for each lesion; ``advance`` is told the share that is done."""


class Analysis(Protocol):
    """What can be done with lesions, such as a fitted :class:`FunctionalNetworkMapper`."""

    def opened(self, n_jobs: int | None = None) -> AbstractContextManager[Runner]:
        """A runner, and what it holds until the end of the context."""


@dataclass(frozen=True)
class CallbackFailure:
    """A batch whose callback raised."""

    batch: int
    names: tuple[str, ...]
    error: Exception


@dataclass(frozen=True)
class BatchOutcome:
    """What became of all lesions.

    Attributes
    ----------
    results : dict
        Name -> result. With a callback only those whose callback raised: they are in nobody
        else's hands.
    summaries : dict
        Name -> the result's ``summary`` (None if it has none), for all lesions that were done.
    errors : dict
        Name -> what was wrong with a lesion.
    failed_callbacks : list of CallbackFailure
    """

    results: dict[str, Any] = field(default_factory=dict)
    summaries: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    failed_callbacks: list[CallbackFailure] = field(default_factory=list)


def batch_process(
    lesions: Any,
    analysis: Analysis | Callable[[Any], Any],
    *,
    batch_size: int | None = None,
    on_batch: OnBatch | None = None,
    errors: Literal["raise", "collect"] = "raise",
    n_jobs: int | None = None,
    random_state: Any = None,
    progress: Progress = None,
    **aliases: Any,
) -> BatchOutcome:
    """Do the same with any number of lesions, in the memory of one batch.

    Parameters
    ----------
    lesions : list, dict, iterator, glob pattern, or one lesion
        Paths or niimgs; named by their keys or files.
    analysis : FunctionalNetworkMapper, or callable
        A function is called with each lesion as it is given, in workers if ``n_jobs`` is above 1.
    batch_size : int, optional
        Default: chosen by the memory that may be used; 20 for a function.
    on_batch : callable, optional
        Called here with ``{name: result}`` after each batch; its lesions that failed are not in it.
        Then nothing but names and summaries is kept.
    errors : {"raise", "collect"}
        A lesion that fails: "raise" hands over the rest of its batch, then raises what was wrong;
        "collect" notes it in ``errors`` and goes on. An ``on_batch`` that raises: "raise" ends with
        a CallbackError that names the batch and holds the outcome so far, with that batch's
        results; "collect" notes it in ``failed_callbacks``, keeps that batch's results, and goes on.
    n_jobs : int, optional
        As in joblib; default: the analysis's own.
    random_state : int, SeedSequence, Generator or RandomState, optional
        As in :meth:`SharedImage.map`: a function has random numbers of its own for each lesion.
    progress : bool or callable, optional
        True draws a bar; a function is called with (done, total), both in lesions.
    **aliases
        ``lesion_batch_size`` and ``show_progress`` are ``batch_size`` and ``progress``;
        ``batch_result_callback`` is called with a list of results; ``strategy="sequential"`` is a batch
        size of 1, ``"parallel"`` all CPUs unless ``n_jobs`` is given, ``"vectorized"`` the default.

    Returns
    -------
    BatchOutcome
        ``results`` by name, ``summaries``, ``errors`` and ``failed_callbacks``.

    Raises
    ------
    CallbackError
        See ``errors``.
    ParameterError
        Two lesions hold one random generator.

    Examples
    --------
    >>> outcome = batch_process({"a": 1, "b": 2, "c": None}, lambda n: n + 1, errors="collect")
    >>> outcome.results, list(outcome.errors)
    ({'a': 2, 'b': 3}, ['c'])
    """
    strategy = aliases.pop("strategy", None)
    if strategy not in (None, "sequential", "parallel", "vectorized"):
        raise ParameterError(f"strategy={strategy!r} is none of 'sequential', 'parallel' and 'vectorized'")
    batch_size = 1 if strategy == "sequential" else batch_size
    n_jobs = -1 if strategy == "parallel" and n_jobs is None else n_jobs
    batch_size = aliases.pop("lesion_batch_size", batch_size)
    progress = aliases.pop("show_progress", progress)
    if (callback := aliases.pop("batch_result_callback", None)) is not None:
        on_batch = lambda found: callback(list(found.values()))  # noqa: E731
    if aliases:
        raise TypeError(f"batch_process() got an unexpected keyword argument {next(iter(aliases))!r}")
    if errors not in ("raise", "collect"):
        raise ParameterError(f"errors={errors!r} is none of 'raise' and 'collect'")
    check_size(batch_size)
    given, outcome = named_masks(lesions), BatchOutcome()
    take = partial(_take, on_batch, errors, outcome)
    _refuse_shared_generators(given)
    with _runner_for(analysis, n_jobs, random_state) as run:
        in_turn(run, given, batch_size or run.batch_size, take, progress)
    return outcome


def in_turn(
    run: Runner,
    given: Batch,
    size: int,
    take: Callable[[int, dict[str, Any]], None],
    progress: Progress = None,
) -> None:
    """Run one batch after the other; ``take(number, found)`` has each before the next is begun."""
    done = 0
    with progress_to(progress, len(given), "lesion") as tell:
        for number, batch in enumerate(split(given, size)):

            def advance(share: float, done: int = done, size: int = len(batch)) -> None:
                tell(done + int(share * size))

            take(number, run(batch, advance))
            done += len(batch)
            tell(done)


def _refuse_shared_generators(given: Batch) -> None:
    """Of one that several lesions hold each worker would have a copy, and all would draw the same."""
    holders: dict[int, str] = {}
    for name, lesion in given.items():
        inside = lesion.values() if isinstance(lesion, dict) else getattr(lesion, "__dict__", {}).values()
        inside = lesion if isinstance(lesion, list | tuple) else inside
        for bits in {id(bits_of(one)) for one in (lesion, *inside) if is_generator(one)}:
            if bits in holders:
                raise ParameterError(
                    f"lesions {holders[bits]!r} and {name!r} hold one random generator, of which each worker "
                    "would have a copy: let the function hold it, which gives each lesion numbers of its own"
                )
            holders[bits] = name


def check_size(batch_size: int | None) -> None:
    """Refuse what is no number of lesions."""
    if batch_size is not None and (not isinstance(batch_size, int | np.integer) or batch_size < 1):
        raise ParameterError(f"batch_size={batch_size!r} is no number of lesions")


def split(given: Batch, size: int) -> Iterator[dict[str, Any]]:
    """Dicts of at most ``size`` items."""
    items = iter(given.items())
    while batch := dict(islice(items, size)):
        yield batch


def _take(
    on_batch: OnBatch | None, errors: str, outcome: BatchOutcome, number: int, found: dict[str, Any]
) -> None:
    """Sort what a batch gave into the outcome, and hand it over."""
    bad = {name: _bare(error) for name, error in found.items() if isinstance(error, Exception)}
    good = {name: result for name, result in found.items() if name not in bad}
    outcome.errors.update(bad)
    outcome.summaries.update({name: getattr(result, "summary", None) for name, result in good.items()})
    if on_batch is None:
        outcome.results.update(good)
    elif good:
        _hand_over(good, number, on_batch, errors, outcome)
    if bad and errors == "raise":
        raise next(iter(bad.values()))


def _hand_over(
    good: dict[str, Any], number: int, on_batch: OnBatch, errors: str, outcome: BatchOutcome
) -> None:
    names = tuple(good)
    try:
        on_batch(dict(good))
    except Exception as error:
        outcome.results.update(good)
        outcome.failed_callbacks.append(CallbackFailure(number, names, error))
        if errors == "raise":
            raised = CallbackError(f"the callback raised for batch {number} ({', '.join(names)}): {error}")
            raised.outcome = outcome
            raise raised from error


def _bare(error: Exception) -> Exception:
    """The error without its tracebacks, whose frames would hold the lesion's data."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


# --- plain functions -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _FunctionRunner:
    """Runs a function on each lesion."""

    function: Callable[[Any], Any]
    n_jobs: int
    streams: Streams
    batch_size: int = _FUNCTION_BATCH

    def __call__(self, batch: Batch, advance: Advance) -> dict[str, Any]:
        run = pool.run_processes if self.n_jobs > 1 else threaded.run_threads
        items = [(lesion,) for lesion in batch.values()]
        with counted(lambda done, total: advance(done / total), len(batch), "lesion") as tell:
            found = run(
                kernels.attempt, (self.function,), items, self.n_jobs, on_done=tell, streams=self.streams
            )
        results = (one.error if isinstance(one, Failure) else one for one in found)
        return dict(zip(batch, results, strict=True))


@contextlib.contextmanager
def _runner_for(analysis: Any, n_jobs: int | None, random_state: Any) -> Iterator[Runner]:
    if hasattr(analysis, "opened"):
        if random_state is not None:
            raise ParameterError(f"random_state={random_state!r} is for a function: a mapper draws nothing")
        with analysis.opened(n_jobs) as runner:
            yield runner
        return
    if not callable(analysis):
        raise ParameterError(f"analysis: a {type(analysis).__name__} is neither a mapper nor a function")
    with Streams(analysis, random_state) as streams:
        yield _FunctionRunner(analysis, process.effective_n_jobs(n_jobs), streams)
