"""Cohorts: the signals of many images, one task each, on any executor.

Covers: which images are next, what runs at the same time, failures, retries, callbacks. Does not
cover: one image (``extraction``), where it is worked on (``executors``), which runs are complete
(``journal``), BIDS (``bids``).

::

    sources ──shard──> prepare ──journal: complete?──> admitted by memory ──> executor ──> on_result, journal
                          │                                                      │
                          └────────────────────── failed: on_error <─────────────┘ (again if transient)

Everything but the work itself happens in the caller: callbacks are called here, one at a time.
"""

import contextlib
import errno
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from dataclasses import field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from sharedmask.compute.cleaning import is_cleaning
from sharedmask.compute.connectivity import Related, check_matrices
from sharedmask.compute.journal import Entry
from sharedmask.compute.progress import Progress, progress_to
from sharedmask.compute.request import Strategy, check_for_all, check_names, checked_strategy
from sharedmask.errors import (
    ParameterError,
    SharedMaskError,
    SharedMaskWarning,
    SourceChangedError,
    WorkerError,
)
from sharedmask.image.extraction import Extraction, regions_of
from sharedmask.image.image import Store
from sharedmask.records import dataclass
from sharedmask.regions.masks import ResamplingTarget
from sharedmask.regions.regions import Regions
from sharedmask.spaces.space import Space, per_space
from sharedmask.study.completion import Completion, Resumption, Seen
from sharedmask.study.denoising import Denoise, Denoisings
from sharedmask.study.executors import Engine, engine, preloaded
from sharedmask.study.tasks import TOGETHER, Apart, NotDoneHereError, Study, Task, Whole, work
from sharedmask.system.budget import MemoryBudget, within
from sharedmask.system.inputs import matches
from sharedmask.workers.sender import Sender

_log = logging.getLogger(__name__)

Key = Any
OnResult = Callable[[Key, Any], Any] | None
OnError = Callable[[Key, Exception], None] | None

# What may go well next time: a worker was killed, a file server did not answer, an image was being written.
_TRANSIENT = (WorkerError, SourceChangedError, BrokenExecutor, CancelledError, TimeoutError, ConnectionError)
_TRANSIENT_CODES = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ENETUNREACH}
_ROUNDS = 4  # of images that are done whole, which each worker has at least
_PER_IMAGE = ("confounds", "sample_mask")


def extract_many(
    sources: Any,
    masks: Any,
    *,
    strategy: Strategy = None,
    denoise: str | Sequence[str] | Denoise | Denoisings | None = None,
    connectivity: str | Sequence[str] = (),
    fisher_z: bool = False,
    executor: Any = None,
    n_jobs: int | None = None,
    on_result: OnResult = None,
    on_error: OnError = None,
    resume: str | Path | Resumption | None = None,
    overwrite: bool = False,
    variant: str | Callable[[Key], str] = "",
    shard: str | None = None,
    retries: int = 1,
    progress: Progress = None,
    memory_limit: int | float | str | None = None,
    resampling_target: ResamplingTarget = None,
    store: Store | None = None,
    **parameters: Any,
) -> Study:
    """The signals of many images, as :func:`extract` gives them for one.

    Images are extracted one after the other, or several at a time, as far as memory allows; a
    failure ends its image, not the study.

    Parameters
    ----------
    sources : list of images, dict of key -> image, or glob pattern
        As for :func:`extract`. Keys are the dict's, the paths, or the numbers in the list.
    masks : masks, or callable
        As for :func:`extract`, for all images; or a function of the key that gives an image's own.
    strategy : str or sequence of str, optional
        As for :func:`extract`.
    denoise : str, sequence of str or Denoise, optional
        What of fMRIPrep's table of confounds beside each image is regressed out, and which volumes go.
    connectivity : str or sequence of str, optional
        Matrices of the regions' signals (their means, if no ``strategy`` is given), as those of
        :meth:`SharedImage.connectivity`: each image then gives a dict of ``"signals"`` and of each measure,
        of several strategies a dict of such dicts.
    fisher_z : bool
        As there.
    executor : concurrent.futures.Executor or dask.distributed.Client, optional
        Where images are worked on.
        Default: worker processes of this machine, or threads if ``n_jobs`` is 1.
    n_jobs : int, optional
        Images at a time, by joblib's convention. The default works on one, and on the next as far as
        that one leaves cores free.
    on_result : callable, optional
        Called here with (key, signals) in order of completion; nothing is kept then. What it
        returns, a path or several, is recorded as the image's outputs.
    on_error : callable, optional
        Called here with (key, exception); one that raises stops the study. By default a warning
        tells how many images failed.
    resume : path, optional
        A file that records complete images. Those it has, with the same inputs and parameters and
        with their outputs still there, are skipped. Images are the same if they hold the same, wherever
        they were moved. Needs ``on_result``.
    overwrite : bool
        Do again what ``resume`` has; other shards' images stay recorded.
    variant : str, or callable
        What else the outputs depend on, for all images or as a function of the key: an image is done again
        when this changes.
    shard : str, optional
        ``"3/16"``: the third of 16 parts of the images; for array jobs.
    retries : int
        How often an image is tried again after a failure that may pass: a worker that was killed,
        a file server that did not answer, an image that changed while it was read.
    progress : bool or callable, optional
        True draws a bar; a function is called with (done, total), in images.
    memory_limit : int, float or str, optional
        What the images at work on this machine may take together.
    resampling_target : {"data", "mask"}, optional
        As for :func:`extract`.
    store : {"auto", "shm", "memfd", "disk"}, optional
        Hold each whole image there while its signals are taken, as :class:`SharedImage` does: "disk"
        keeps its rows, and other masks then find them without decoding. Default: nothing is held.
    **parameters
        Those of :func:`extract`; ``confounds`` and ``sample_mask`` are lists with one entry per image, dicts
        by key, or, as ``t_r`` may be too, functions of the key; what such a function raises ends its image.

    Returns
    -------
    Study
        ``results``, ``errors``, ``complete``, ``skipped``.

    Examples
    --------
    >>> import nibabel as nib, numpy as np
    >>> runs = {f"sub-{i}": nib.Nifti1Image(np.full((2, 2, 2, 5), i, "int16"), np.eye(4)) for i in (1, 2)}
    >>> study = extract_many(runs, np.ones((2, 2, 2), bool))
    >>> study.results["sub-2"].shape
    (5, 8)
    """
    check_names(parameters, "smoothing_fwhm", "memory", "probes", "finish", "preload", "apart")
    check_for_all(parameters)
    if not isinstance(retries, int) or retries < 0:
        raise ParameterError(f"retries={retries!r} is no number of times")
    kinds = check_matrices(connectivity, fisher_z)
    strategy = strategy or "mean" if kinds else strategy
    if strategy is not None:
        checked_strategy(strategy)
    keyed = _keyed(sources)
    asked = {"strategy": strategy, "resampling_target": resampling_target, "store": store, **parameters}
    if denoise is not None:
        if both := [name for name in _PER_IMAGE if asked.get(name) is not None]:
            raise ParameterError(f"{both[0]} and denoise are two answers to one question: give one")
        asked |= Denoisings.of(denoise, keyed).parameters
    if kinds:
        related = Related(kinds, fisher_z)
        asked["finish"] = lambda _: related
        variant = partial(related.variant, variant)
    apart: Apart | None = asked.pop("apart", None)
    preload = asked.pop("preload", None) or preloaded(is_cleaning(asked), bool(kinds))
    each = _per_image(keyed, asked)
    chosen = shard_of(list(keyed), shard)
    completion = _completion(resume, on_result, overwrite)
    completion.check_places(chosen)
    budget = MemoryBudget.here(memory_limit)
    recorded = None if resume is None else variant
    reports = progress_to(progress, len(chosen), "image")
    with Sender() as sender, engine(executor, n_jobs, preload) as works, reports as tell:
        apart, sent_by = (apart, sender) if works.in_processes else (None, None)
        prepare = _Preparer(keyed, each, masks, asked, budget, memory_limit, recorded, sent_by)
        return _Run(prepare, works, budget, completion, apart, on_result, on_error, retries, tell).all(chosen)


# --- what is asked for ---------------------------------------------------------------------------


def _keyed(sources: Any) -> dict[Key, Any]:
    if isinstance(sources, Mapping):
        return dict(sources)
    if isinstance(sources, str | Path):
        return {path: path for path in matches(str(sources)) or [str(sources)]}
    items = list(sources) if isinstance(sources, Iterable) else [sources]
    paths = [str(item) if isinstance(item, str | Path) else None for item in items]
    if None not in paths and len(set(paths)) == len(paths):
        return dict(zip(paths, items, strict=True))
    return dict(enumerate(items))


def _per_image(keyed: Mapping[Key, Any], asked: dict[str, Any]) -> Callable[[Key], dict[str, Any]]:
    """The parameters of each image alone, by its key; taken out of ``asked``."""
    names = [name for name in (*_PER_IMAGE, "t_r", "probes", "finish") if callable(asked.get(name))]
    own = {name: asked.pop(name) for name in names}
    for name in _PER_IMAGE:
        given = asked.pop(name, None)
        if given is None:
            continue
        if not isinstance(given, Mapping):
            if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != len(keyed):
                counted = hasattr(given, "__len__") and not isinstance(given, str)
                found = f"{len(given)} of them" if counted else repr(given)
                raise ParameterError(f"{name}: one per image is needed, {len(keyed)} in all, not {found}")
            given = dict(zip(keyed, given, strict=True))
        if lacking := [key for key in keyed if key not in given]:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise ParameterError(f"{name}: none for {lacking[0]}{more}")
        own[name] = partial(_entry, given)
    return lambda key: {name: get(key) for name, get in own.items()}


def _entry(given: Mapping[Key, Any], key: Key) -> Any:
    return given[key](key) if callable(given[key]) else given[key]


def shard_of(keys: list[Key], shard: str | None) -> list[Key]:
    """Every n-th key, so that long runs, which often have neighbouring names, are spread."""
    if shard is None:
        return keys
    found = re.fullmatch(r"(\d+)/(\d+)", str(shard))
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= count:
        raise ParameterError(f"shard={shard!r}: write 3/16 for the third of 16 parts")
    return keys[number - 1 :: count]


def _completion(resume: str | Path | Resumption | None, on_result: OnResult, overwrite: bool) -> Completion:
    if resume is None and overwrite:
        raise ParameterError("overwrite does again what resume has recorded: give resume")
    if resume is not None and on_result is None:
        raise ParameterError("resume skips what is complete, so on_result must have kept it: give on_result")
    return Completion.of(resume, overwrite)


class _Preparer:
    """Makes the tasks, each once: regions are made once per grid, here, and travel to the workers."""

    def __init__(
        self,
        keyed: Mapping[Key, Any],
        each: Callable[[Key], dict[str, Any]],
        masks: Any,
        asked: Mapping[str, Any],
        budget: MemoryBudget,
        memory_limit: Any,
        variant: str | Callable[[Key], str] | None,
        sender: Sender | None,
    ) -> None:
        self._keyed, self._each, self._asked = keyed, each, dict(asked)
        self._memory = self._asked.pop("memory", None)
        self._target = self._asked.pop("resampling_target")
        self._masks = masks
        self._shared = per_space(lambda grid: self._regions_of(masks, grid))
        self._budget, self._memory_limit, self._variant = budget, memory_limit, variant
        self._sender = sender

    def __call__(self, key: Key) -> Task:
        def regions_on(grid: Space) -> Regions:
            return self._regions_of(self._masks(key), grid) if callable(self._masks) else self._shared(grid)

        own, image = self._each(key), self._keyed[key]
        finish = own.pop("finish", None)
        with within(self._memory_limit):
            opened = image(key) if callable(image) else image
            asked = Extraction.prepared(opened, regions_on, **{**self._asked, **own})
        variant = self._variant(key) if callable(self._variant) else self._variant
        regions = asked.request.regions
        sent = None if self._sender is None else self._sender.sent(regions, regions.indices.nbytes)
        told = {"variant": variant, "needed": asked.needed(self._budget), "finish": finish, "sent": sent}
        return Task(key, asked, self._memory, self._memory_limit, **told)

    def _regions_of(self, masks: Any, grid: Space) -> Regions:
        return regions_of(masks, grid, self._asked["strategy"], self._target)


# --- the study -----------------------------------------------------------------------------------


@dataclass
class _Run:
    prepare: _Preparer
    engine: Engine
    budget: MemoryBudget
    completion: Completion
    apart: Apart | None
    on_result: OnResult
    on_error: OnError
    retries: int
    tell: Callable[[int], None]
    study: Study = field(default_factory=Study)
    _running: dict[Future[Any], tuple[Task, Seen, int, float]] = field(default_factory=dict)
    _whole: dict[Future[Any], Whole] = field(default_factory=dict)
    _gathered: list[Key] = field(default_factory=list)
    """Images that will be done whole, together with the next ones."""
    _worked: list[tuple[Task, Callable[[], None]]] = field(default_factory=list)
    """What the work on an image gave is kept while the next ones are worked on."""
    _ended: int = 0

    def all(self, keys: Sequence[Key]) -> Study:
        try:
            for number, key in enumerate(keys):
                with self._failing(key):
                    self._start(key, len(keys) - number)
                self._keep_worked()
            self._submit_whole()
            while self._running or self._whole:
                self._collect()
                self._keep_worked()
        finally:
            for future in [*self._running, *self._whole]:
                future.cancel()
            self._record(is_last=True)
        _order(self.study.results, keys)
        _order(self.study.errors, keys)
        self._warn()
        return self.study

    def _start(self, key: Key, n_left: int) -> None:
        """Begin with it, or gather it with others: with fewer, the fewer are left for all workers."""
        if self.apart is not None and self.completion.is_new(key) and self.apart.takes(key):
            self._gathered.append(key)
            few, many = TOGETHER
            if len(self._gathered) >= max(few, min(many, n_left // (_ROUNDS * self.engine.at_once))):
                self._submit_whole()
        else:
            self._begin(key)

    def _submit_whole(self) -> None:
        """Have a worker do what was gathered; one more waits for each that is at work."""
        if self.apart is None or not self._gathered:
            return
        while len(self._whole) >= 2 * self.engine.at_once:
            self._collect()
        one, self._gathered = self.apart.whole(self._gathered), []
        try:
            future = self.engine.executor.submit(Whole.run, one)
        except Exception as error:  # as where no thread can be started: none of them is lost
            future = Future()
            future.set_exception(error)
        self._whole[future] = one

    def _collect_whole(self, future: Future[Any]) -> None:
        one = self._whole.pop(future)
        failed = dict[Key, Any]()
        try:
            failed = future.result()
        except Exception as error:  # what killed a worker may have been done by then
            _log.info("%d images are each done again: %s", len(one.images), error)
            failed = dict.fromkeys(one.images, NotDoneHereError())
        for key in one.images:
            with self._failing(key):
                if isinstance(why := failed.get(key), NotDoneHereError):
                    self._begin(key)
                elif why is not None:
                    raise why
                else:
                    self.study.complete.append(key)
                    self._end()

    def _begin(self, key: Key) -> None:
        """Prepare an image here, and have it worked on as soon as memory allows."""
        seen, is_complete = self.completion.look(key)
        if is_complete:
            self._skip(key)
            return
        task = self.prepare(key)
        if self.completion.has(task):
            self._skip(key)
            return
        if not self.engine.local:
            _ = task.digest  # files may go by other names where it is worked on
        while (self._running or self._worked) and not self._admits(task):
            if self._worked:
                self._keep_worked()
            else:
                self._collect()
        self._submit(task, seen, 0)

    def _skip(self, key: Key) -> None:
        self.study.skipped.append(key)
        self.completion.skip(key)
        _log.info("%s is complete already", key)
        self._end()

    def _admits(self, task: Task) -> bool:
        """Whether it may run beside those that do; alone it always may, and is refused by itself."""
        if len(self._running) >= self.engine.most(task.is_small):
            return False
        running, worked = (task for task, *_ in self._running.values()), (task for task, _ in self._worked)
        held = sum(one.needed for one in chain(running, worked))
        return not self.engine.local or held + task.needed <= self.budget.limit

    def _submit(self, task: Task, seen: Seen, tries: int) -> None:
        self._running[self.engine.executor.submit(work, task)] = task, seen, tries, time.monotonic()

    def _collect(self) -> None:
        patience = self.completion.patience
        self.engine.begin()
        done = wait([*self._running, *self._whole], patience, return_when=FIRST_COMPLETED).done
        while (future := next((one for one in self._whole if one in done), None)) is not None:
            self._collect_whole(future)  # who may wait for room, and collect others meanwhile
        for future in [one for one in self._running if one in done]:  # in the order in which they began
            task, seen, tries, start = self._running.pop(future)
            with self._failing(task.key):
                try:
                    digest, content, result = future.result()
                except Exception as error:
                    if tries >= self.retries or not _may_pass(error):
                        raise
                    if isinstance(error, SourceChangedError):  # then its header counts for nothing either
                        seen, task = self.completion.look(task.key)[0], self.prepare(task.key)
                    self._submit(task, seen, tries + 1)
                else:
                    seconds = time.monotonic() - start
                    entry = Entry(task.name, digest, (), seconds, content, task.is_file, **seen._asdict())
                    self._worked.append((task, partial(self._keep, task, result, entry)))
        self._record()

    def _keep_worked(self) -> None:
        while self._worked:
            task, keep = self._worked.pop(0)
            with self._failing(task.key):
                keep()

    def _keep(self, task: Task, result: Any, entry: Entry) -> None:
        outputs: Any = ()
        if self.on_result is None:
            self.study.results[task.key] = result
        else:
            outputs = self.on_result(task.key, result) or ()
        self.completion.add(task.key, entry, outputs)

    def _record(self, is_last: bool = False) -> None:
        for key, seconds, error in self.completion.record(is_last):
            with self._failing(key):
                if error is not None:
                    raise error
                self.study.complete.append(key)
                _log.info("%s is complete, after %.1f s", key, seconds)
                self._end()

    @contextlib.contextmanager
    def _failing(self, key: Key) -> Iterator[None]:
        """What goes wrong ends this image; a callback's own failure does too."""
        try:
            yield
        except Exception as error:
            self.study.errors[key] = error
            self._end()
            if self.on_error is not None:
                self.on_error(key, error)

    def _end(self) -> None:
        self._ended += 1
        self.tell(self._ended)

    def _warn(self) -> None:
        if self.study.errors and self.on_error is None:
            key, error = next(iter(self.study.errors.items()))
            warnings.warn(
                f"{len(self.study.errors)} of {self._ended} images failed, the first {key}: {error}",
                SharedMaskWarning,
                stacklevel=3,
            )


def _order(found: dict[Key, Any], keys: Sequence[Key]) -> None:
    """Put what came as it was ready in the order of the images: it is taken for that of the subjects."""
    ordered = {key: found[key] for key in keys if key in found}
    found.clear()
    found.update(ordered)


def _may_pass(error: BaseException) -> bool:
    code = getattr(error, "errno", None)
    return isinstance(error, _TRANSIENT) or (
        not isinstance(error, SharedMaskError) and code in _TRANSIENT_CODES
    )
