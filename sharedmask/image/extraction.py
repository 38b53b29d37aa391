"""Extraction: what is asked of an image in one pass, prepared once; nothing of the image is held.

Covers: an image and a request made ready together, what that takes, what identifies it; batches of
masks, handed over one after the other. Does not cover: images that several calls share (``image``), the
work itself (``signals``).
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Unpack, overload

import numpy as np

from sharedmask.compute import signals
from sharedmask.compute.plan import Plan, of_rows, of_volumes, signals_bytes
from sharedmask.compute.request import Parameters, Request, Strategy, checked_strategy, is_weighted
from sharedmask.errors import MemoryLimitError, ParameterError
from sharedmask.image.image import SharedImage, Store
from sharedmask.image.results import Cache, Lookup, get_or_compute
from sharedmask.records import dataclass
from sharedmask.regions.alignment import align_to_masks
from sharedmask.regions.masks import ResamplingTarget
from sharedmask.regions.regions import Regions
from sharedmask.sources.excerpt import is_cuttable, with_volumes
from sharedmask.sources.opening import check_signals, open_source, warn_of_time
from sharedmask.sources.source import FileSource, Source
from sharedmask.sources.transform import smoothed
from sharedmask.spaces.space import Space
from sharedmask.storage import rows
from sharedmask.storage.indexes import indexed
from sharedmask.storage.rows import Series
from sharedmask.system import settings
from sharedmask.system.budget import MemoryBudget, within
from sharedmask.system.process import cached_property
from sharedmask.typing import Array

OnBatch = Callable[[dict[Any, Array]], object]


class Asked(Parameters, total=False):
    """What :func:`extract` takes by keyword, whatever it gives."""

    smoothing_fwhm: float | None
    resampling_target: ResamplingTarget
    memory: Any
    memory_limit: int | float | str | None
    batch_size: int | None


_HELD_SHARE = 0.5  # of the limit: the union of all masks, for which the image is read once
_FORMAT = 2  # of what identifies an extraction to those who ask whether it is done


@dataclass(frozen=True)
class Extraction:
    """An image and what is asked of it: headers and masks are read, values are not. It travels."""

    source: Source
    request: Request
    store: Store | None = None
    """Where all of the image is held while its signals are taken; None: nothing of it is."""

    def __getstate__(self) -> dict[str, Any]:
        # Where nothing but signals is made nobody asks for the header, which takes longest to pack.
        bare = {"source": replace(_looked_up(self.source), header=None)} if self.store is None else {}
        return {name: one for name, one in self.__dict__.items() if name != "_identity"} | bare

    @classmethod
    def prepared(
        cls,
        source: Any,
        regions_on: Callable[[Space], Regions],
        smoothing_fwhm: float | None = None,
        store: Store | None = None,
        index: bool = False,
        **asked: Any,
    ) -> "Extraction":
        """Refuse what can be refused; ``asked`` goes to :meth:`Request.checked`."""
        opened = smoothed(indexed(open_source(source), index), smoothing_fwhm)
        check_signals(opened)
        read, regions = align_to_masks(opened, regions_on(opened.grid))
        request = Request.checked(read, regions, **asked)
        if asked.get("t_r") is None:
            warn_of_time(opened)
        return cls(read, request, store)

    def needed(self, budget: MemoryBudget) -> int:
        """Bytes that it takes at its peak.

        Raises MemoryLimitError: they are more than may be used.
        """
        if self.store is None:
            return of_volumes(*self._in_passing(), budget).needed
        loading = rows.loading_bytes(self.store, self.source, budget)
        return loading + of_rows(self.source, self.request, budget.less(loading)).needed

    def digest(self, variant: str, *, of_content: bool = False) -> str:
        """Of all that its signals depend on, and of ``variant``.

        The image goes by its file as it is now, which is quick; or by what the file holds, which is the same
        after it was moved or copied, and reads it.
        """
        image = self.source.content if of_content else self.source.fingerprint
        (_, *facts), asked = self._identity
        parts = _FORMAT, variant, ((image, *facts), asked)
        return blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    @cached_property
    def _identity(self) -> tuple[Any, ...]:
        """Of all but what tells this image from others, which comes first."""
        return Lookup(self.source, "", self.request).identity

    def run(self, memory_limit: int | float | str | None = None, memory: Any = None) -> Any:
        """The signals, in the container of the masks; of a strategy one array, of several a dict of them."""
        knobs = settings.current()
        cache = Cache.of(memory, knobs)

        def compute() -> list[Array]:
            if self.store is not None:
                told = replace(self.source, t_r_doubt="")  # when it was prepared
                with SharedImage(told, store=self.store, memory_limit=memory_limit) as image:
                    return image.carry_out(self.request, knobs)
            budget = MemoryBudget.here(memory_limit, knobs=knobs)
            source, request = self._in_passing()
            return signals.run(source, of_volumes(source, request, budget), budget).values

        if cache is None:
            results = compute()
        else:
            lookup = Lookup(self.source, self.source.fingerprint, self.request)
            results = get_or_compute(cache, lookup, compute)
        return self.request.pack(results)

    def _in_passing(self) -> tuple[Source, Request]:
        """What is read, and asked of that: little else than the volumes that are kept."""
        wanted = self.request.volumes
        if wanted is None or not is_cuttable(self.source):
            return self.source, self.request
        source, volumes = with_volumes(self.source, wanted)
        return source, self.request.within(volumes)


def _looked_up(source: Source) -> Source:
    """The same; if it was found to have no seek points, nobody looks for them again."""
    if isinstance(source, FileSource) and source.has_no_points:
        return replace(source, index=None)
    return source


@overload
def extract(
    source: Any, masks: Any, *, strategy: str, on_batch: None = None, **parameters: Unpack[Asked]
) -> Array: ...


@overload
def extract(
    source: Any,
    masks: Any,
    *,
    strategy: list[str] | tuple[str, ...],
    on_batch: None = None,
    **parameters: Unpack[Asked],
) -> dict[str, Array]: ...


@overload
def extract(
    source: Any, masks: Any, *, strategy: None = None, on_batch: OnBatch, **parameters: Unpack[Asked]
) -> dict[Any, tuple[int, ...]]: ...


@overload
def extract(
    source: Any, masks: Any, *, strategy: Strategy = None, on_batch: None = None, **parameters: Unpack[Asked]
) -> Any: ...


def extract(
    source: Any,
    masks: Any,
    *,
    strategy: Strategy = None,
    smoothing_fwhm: float | None = None,
    resampling_target: ResamplingTarget = None,
    memory: Any = None,
    memory_limit: int | float | str | None = None,
    batch_size: int | None = None,
    on_batch: OnBatch | None = None,
    index: bool = False,
    **parameters: Unpack[Parameters],
) -> Any:
    """The signals of masks, in one pass over the image, which is never held.

    The same numbers as ``SharedImage(source).mask_parallel(masks)``, or ``.reduce(masks,
    strategy)``, for a single call: memory holds the masks' voxels and nothing else of the image;
    with a ``strategy`` a few volumes of them at a time ("pc1" needs their whole series).

    Parameters
    ----------
    source : str, path, niimg, or list of those
        As for :class:`SharedImage`.
    masks : list, dict, glob pattern, 4D image, :class:`Regions`, or one mask
        As for :meth:`SharedImage.mask_parallel`; with a ``strategy`` one image is an atlas, and for
        ``"weighted_mean"`` a 4D image is maps of weights.
    strategy : str or sequence of str, optional
        None: the signals of all voxels. Else one value per region, as in
        :meth:`SharedImage.reduce`; several strategies are made in the one pass.
    smoothing_fwhm : float, optional
        As for :class:`SharedImage`.
    resampling_target : {"data", "mask"}, optional
        As in :meth:`SharedImage.mask_parallel`; the image is smoothed before it is resampled.
    memory : str, path, joblib.Memory or False, optional
        Where results are kept, as in :meth:`SharedImage.mask_parallel`; with ``on_batch`` nowhere.
    memory_limit : int, float or str, optional
        Bytes, ``"8G"``, or a fraction of the RAM.
    batch_size : int, optional
        Masks per call of ``on_batch``; default: as many as fit.
    on_batch : callable, optional
        Called with ``{key: signals}``, batch after batch; then no signals are kept. The image is
        read once if the union of the masks fits in memory, else once per batch. What it raises
        ends the call.
    index : bool
        Make the index of a .nii.gz that has none, as ``sharedmask index`` does; it is used in any case.
    **parameters
        Those of :meth:`SharedImage.mask_parallel`.

    Returns
    -------
    list, dict or ndarray
        (n_timepoints, n_voxels) per mask, in the container given; with a ``strategy`` one
        (n_timepoints, n_regions) array, with several a dict of those. With ``on_batch`` a dict of
        the signals' shapes.

    Examples
    --------
    >>> import nibabel as nib, numpy as np
    >>> bold = nib.Nifti1Image(np.arange(240, dtype="int16").reshape(2, 3, 4, 10), np.eye(4))
    >>> atlas = nib.Nifti1Image(np.arange(24, dtype="int16").reshape(2, 3, 4) % 3, np.eye(4))
    >>> extract(bold, atlas, strategy="mean").shape
    (10, 2)
    """
    _check_batches(strategy, memory, batch_size, on_batch)
    with within(memory_limit):
        asked = Extraction.prepared(
            source,
            lambda grid: regions_of(masks, grid, strategy, resampling_target),
            smoothing_fwhm,
            index=index,
            strategy=strategy,
            **parameters,
        )
    if on_batch is not None:
        return _in_batches(asked, MemoryBudget.here(memory_limit), batch_size, on_batch)
    return asked.run(memory_limit, memory)


def regions_of(masks: Any, grid: Space, strategy: Strategy, target: ResamplingTarget) -> Regions:
    """What :func:`extract` makes of ``masks``: with a ``strategy`` one image is an atlas."""
    if strategy is None:
        return Regions.from_any(masks, grid, resampling_target=target)
    checked_strategy(strategy)
    weighted = is_weighted(strategy)
    return Regions.from_atlas_or_masks(masks, grid, weighted=weighted, resampling_target=target)


# --- batches -------------------------------------------------------------------------------------


def _check_batches(strategy: Strategy, memory: Any, batch_size: int | None, on_batch: OnBatch | None) -> None:
    number = isinstance(batch_size, int | np.integer) and batch_size > 0
    if batch_size is not None and (on_batch is None or not number):
        raise ParameterError(f"batch_size={batch_size!r}: give a number of masks, and on_batch to take them")
    if on_batch is None:
        return
    if not callable(on_batch):
        raise ParameterError(f"on_batch={on_batch!r} is no function")
    if strategy is not None:
        raise ParameterError("on_batch takes signals of voxels: a strategy gives one small table")
    if memory not in (None, False):
        raise ParameterError(f"memory={memory!r} is to keep results, and with on_batch none are kept")


def _in_batches(
    asked: Extraction, budget: MemoryBudget, batch_size: int | None, on_batch: OnBatch
) -> dict[Any, tuple[int, ...]]:
    """Hand over the signals of some masks at a time; their shapes."""
    batches = _Batches.of(asked, budget)
    work = batches.planned(batch_size or batches.fitting())
    shapes: dict[Any, tuple[int, ...]] = {}
    with batches.series(work) as series:
        for plan in work:
            results = signals.run(series, plan, budget).values
            made = dict(zip(plan.request.regions.keys, results, strict=True))
            shapes |= {key: one.shape for key, one in made.items()}
            on_batch(made)
            del made, results  # before the next are made
    return shapes


@dataclass(frozen=True)
class _Batches:
    """Masks that go together, planned before the first is read."""

    source: Source
    request: Request
    budget: MemoryBudget
    once: bool
    """Whether the image is read once, for the rows of all masks; else once per batch."""

    @classmethod
    def of(cls, asked: Extraction, budget: MemoryBudget) -> "_Batches":
        taken = rows.union_bytes(asked.source, asked.request.regions)
        return cls(asked.source, asked.request, budget, taken <= budget.limit * _HELD_SHARE)

    def planned(self, size: int) -> list[Plan]:
        """The plan of each batch; refused if one does not fit."""
        return [self._plan(batch) for batch in self.request.regions.batches(size)]

    def _plan(self, batch: Regions) -> Plan:
        operation = f"extracting {len(batch)} masks from {self.source.name}"
        request = replace(self.request, regions=batch, operation=operation)
        if not self.once:
            return of_volumes(self.source, request, self.budget)
        left = self.budget.less(rows.union_bytes(self.source, self.request.regions))
        return of_rows(self.source, request, left)

    def fitting(self) -> int:
        """How many masks go together: at first what signals alone would allow, then half of it, and so on."""
        singles = (replace(self.request, regions=one) for one in self.request.regions.batches(1))
        largest = max(signals_bytes(self.source, one) for one in singles)
        size = min(max(1, self.budget.limit // largest), len(self.request.regions))
        while size > 1:
            try:
                self.planned(size)
                break
            except MemoryLimitError:
                size //= 2
        return size

    @contextlib.contextmanager
    def series(self, work: list[Plan]) -> Iterator[Series]:
        """What the batches are taken from."""
        if not self.once:
            yield self.source
            return
        shared = any(plan.in_processes for plan in work)
        with rows.load_union(self.source, self.request.regions.union, shared, self.budget) as held:
            yield held
