"""Requests: all that one call asks of an image, checked; one clear refusal before any work is done.

Covers: regions, what is made of them, dtypes, non-finite values, cleaning (confounds, sample masks,
repetition time), jobs. Does not cover: which voxels a mask has (``regions``), what a request takes
(``plan``), carrying it out (``signals``).
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

import numpy as np

from sharedmask.compute.cleaning import Cleaning
from sharedmask.compute.confounds import confounds_table, kept_volumes, warn_of_too_many
from sharedmask.compute.progress import Progress
from sharedmask.compute.strategies import BY_VOLUME, STRATEGIES, SUMS
from sharedmask.errors import EmptyMaskError, ParameterError, SharedMaskWarning
from sharedmask.records import dataclass
from sharedmask.regions.regions import Regions
from sharedmask.sources.source import Facts
from sharedmask.sources.values import Conversion, NanPolicy
from sharedmask.system.process import effective_n_jobs
from sharedmask.typing import NDArray, Numbers

if TYPE_CHECKING:  # an import of its own
    from numpy.typing import DTypeLike

WEIGHTED = "weighted_mean"
# Volumes that scipy needs to begin with: three times the coefficients of its second-order sections, and one.
_ONE_FILTER, _BOTH_FILTERS = 19, 34
_FLAGS = bool, np.bool_
_ALLOWED = {"prefer": ("threads", "processes"), "nan_policy": ("zero", "propagate", "raise", "omit")}

Strategy = str | Sequence[str] | None
Prefer = Literal["threads", "processes"] | None
OnResult = Callable[[Any, Any], None] | None


class Parameters(TypedDict, total=False):
    """What every request takes, by keyword; described in ``SharedImage.mask_parallel``."""

    n_jobs: int | None
    prefer: Prefer
    dtype: "DTypeLike | Literal['auto'] | None"
    nan_policy: NanPolicy | None
    standardize: str | bool | None
    detrend: bool
    confounds: Any
    sample_mask: Any
    low_pass: float | None
    high_pass: float | None
    t_r: float | None
    progress: Progress
    on_result: OnResult


class Probed(NamedTuple):
    """What a request gives with probes."""

    signals: Any
    values: NDArray[np.float32]
    """(n_timepoints, n_probes)"""


@dataclass(frozen=True)
class Request:
    """All that one call asks of an image, checked."""

    regions: Regions
    dtype: "DTypeLike | Literal['auto'] | None" = "auto"
    nan_policy: NanPolicy | None = None
    cleaning: Cleaning = field(default_factory=Cleaning)
    strategy: str | tuple[str, ...] | None = None
    """For one value per region and volume, or several; None: the signals of all voxels, or what ``function``
    makes."""
    function: Callable[[NDArray[Any]], Any] | None = None
    given: Sequence[tuple[Any, ...]] | None = None
    """What ``function`` is given of each region besides its signals."""
    random_state: Any = None
    probes: Numbers | None = None
    """Voxels whose values are given beside those of a strategy, as they are: uncleaned, all volumes."""
    n_jobs: int = 1
    prefer: Prefer = None
    progress: Progress = None
    on_result: OnResult = None
    label: str = "extract"
    """What monitors call it."""
    operation: str = "extracting"
    """What messages call it."""

    @classmethod
    def checked(
        cls,
        facts: Facts,
        regions: Regions,
        *,
        strategy: Strategy = None,
        function: Callable[[NDArray[Any]], Any] | None = None,
        random_state: Any = None,
        probes: Numbers | None = None,
        label: str = "extract",
        operation: str | None = None,
        n_jobs: int | None = None,
        prefer: Prefer = None,
        dtype: "DTypeLike | Literal['auto'] | None" = "auto",
        nan_policy: NanPolicy | None = None,
        progress: Progress = None,
        on_result: OnResult = None,
        **cleaning: Any,
    ) -> "Request":
        """Refuse what makes no sense for any image or for this; ``cleaning`` is as in :class:`Parameters`."""
        check_names(cleaning)
        check_for_all({"prefer": prefer, "nan_policy": nan_policy, "dtype": dtype, **cleaning})
        for name, given in (("func", function), ("on_result", on_result)):
            if given is not None and not callable(given):
                raise ParameterError(f"{name}={given!r} is no function")
        _check_voxels(regions)
        chosen = None if strategy is None else checked_strategy(strategy)
        if is_weighted(chosen) and regions.weights is None:
            raise ParameterError("strategy='weighted_mean' is of maps with weights: give one 4D image")
        return cls(
            regions=regions,
            dtype=dtype,
            nan_policy=nan_policy,
            cleaning=_checked_cleaning(facts, **cleaning),
            strategy=chosen,
            function=function,
            random_state=random_state,
            probes=probes,
            n_jobs=effective_n_jobs(n_jobs),
            prefer=prefer,
            progress=progress,
            on_result=on_result,
            label=label,
            operation=operation or f"extracting from {facts.name}",
        )

    @property
    def strategies(self) -> tuple[str, ...]:
        """None, one or several ways to reduce a region to one value."""
        return (self.strategy,) if isinstance(self.strategy, str) else self.strategy or ()

    def pack(self, results: Sequence[Any]) -> Any:
        """Results as the caller gets them: in the container of the masks, one table, or one by strategy.

        With probes they come with the values of those.
        """
        if self.probes is not None:
            return Probed(replace(self, probes=None).pack(results[:-1]), results[-1])
        if self.strategy is None:
            return self.regions.pack(results)
        return (
            results[0] if isinstance(self.strategy, str) else dict(zip(self.strategy, results, strict=True))
        )

    def per_region(self, results: Sequence[Any]) -> list[Any]:
        """What each region has of the results."""
        if self.strategy is None:
            return list(results)
        columns = [list(table.T) for table in results]
        if isinstance(self.strategy, str):
            return columns[0]
        return [dict(zip(self.strategy, series, strict=True)) for series in zip(*columns, strict=True)]

    @property
    def is_streamed(self) -> bool:
        """Whether the results can be made while volumes pass by."""
        if self.function is not None:
            return False
        return BY_VOLUME.issuperset(self.strategies) if self.strategy else not self.cleaning.needed

    @property
    def volumes(self) -> Numbers | None:
        """Those that are kept, ascending; None if the results need all."""
        kept = self.cleaning.sample_mask
        by_volume = self.function is None and BY_VOLUME.issuperset(self.strategies)
        if kept is None or not by_volume or self.cleaning.filters or self.probes is not None:
            return None
        volumes = np.unique(kept)
        if len(kept) > len(volumes):  # twice; nilearn takes no more than there are
            volumes = np.arange(volumes[0], volumes[-1] + 1)
        return volumes if len(kept) <= len(volumes) else None

    def within(self, volumes: Numbers) -> "Request":
        """The same, of an image that has these volumes of its image only."""
        kept, confounds = self.cleaning.sample_mask, self.cleaning.confounds
        cleaning = replace(
            self.cleaning,
            sample_mask=None if kept is None else np.searchsorted(volumes, kept),
            confounds=None if confounds is None else confounds[volumes],
        )
        return replace(self, cleaning=cleaning)

    @property
    def adds_up(self) -> bool:
        """Whether the results are sums of rows, which can be added in the order of the image."""
        if self.probes is not None or self.nan_policy == "omit" or not SUMS.issuperset(self.strategies):
            return False
        indices, starts = self.regions.indices, self.regions.offsets[1:-1]
        ascends = np.diff(indices) > 0
        ascends[starts - 1] = True
        return self.strategy is not None and bool(ascends.all())

    @property
    def is_heavy(self) -> bool:
        """Whether the work keeps the interpreter busy."""
        return self.function is not None or (self.strategy is None and self.cleaning.needed)

    @property
    def has_products(self) -> bool:
        """Whether the work of ours is BLAS's, which then takes no threads of its own."""
        return self.strategy == "pc1" or (self.function is None and self.is_heavy)

    def conversion(self, facts: Facts) -> Conversion:
        """For the signals of voxels: nilearn's dtypes, unless told otherwise.

        ``dtype=None`` asks for the values as nibabel gives them, non-finite ones included.
        """
        if self.nan_policy == "omit":
            raise ParameterError(
                "nan_policy='omit' leaves values out of a reduction; a signal keeps its length"
            )
        scaled = facts.scaled_dtype
        if self._automatic or self.cleaning.needed:
            result = scaled if scaled.kind == "f" else np.dtype(np.float32)
        else:
            result = scaled if self.dtype is None else np.dtype(self.dtype)
        policy = self.nan_policy or ("propagate" if self.dtype is None else "zero")
        return Conversion(facts.slope, facts.inter, scaled, result, policy, facts.name)

    def cast_result(self, signals: NDArray[Any]) -> NDArray[Any]:
        """Cleaned signals in the dtype asked for."""
        if self.dtype is None or self._automatic:
            return signals
        return signals.astype(self.dtype, copy=False)

    def reduction(self, facts: Facts) -> Conversion:
        """For one value per region, computed in float64: nilearn's dtypes, unless told otherwise."""
        scaled = facts.scaled_dtype
        result = np.dtype(np.float32 if scaled == np.float32 else np.float64)
        if not self._automatic and not self.cleaning.needed:
            result = np.dtype(self.dtype or np.float64)
        return Conversion(facts.slope, facts.inter, scaled, result, self.nan_policy or "zero", facts.name)

    @property
    def _automatic(self) -> bool:
        return isinstance(self.dtype, str) and self.dtype == "auto"


def _check_voxels(regions: Regions) -> None:
    if not len(regions):
        raise EmptyMaskError("there is no region")
    empty = np.flatnonzero(regions.sizes == 0)
    if len(empty):
        many = f", as have {len(empty) - 1} more" if len(empty) > 1 else ""
        name = regions.names[empty[0]]
        raise EmptyMaskError(f"region {name} has no voxels{many}: Regions.without_empty() leaves such out")


def _check_dtype(dtype: "DTypeLike | None") -> None:
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        return
    try:
        kind = np.dtype(dtype).kind
    except TypeError as error:
        raise ParameterError(f"dtype={dtype!r}: {error}") from error
    if kind not in "iuf":
        raise ParameterError(f"dtype={dtype!r} holds no signals: give an integer or float type")


def check_names(given: Iterable[str], *more: str) -> None:
    """Refuse names that are neither among :class:`Parameters` nor ``more``.

    Raises TypeError: naming those that there are.
    """
    known = {*Parameters.__annotations__, *more}
    for name in given:
        if name not in known:
            raise TypeError(f"there is no parameter {name!r}; there are {', '.join(sorted(known))}")


def check_for_all(asked: Mapping[str, Any]) -> None:
    """Refuse what makes no sense for any image; each may be left out, or be a function of the image's key.

    Raises ParameterError.
    """
    for name, allowed in _ALLOWED.items():
        given = asked.get(name)
        if given is not None and not (isinstance(given, str) and given in allowed):
            raise ParameterError(f"{name}={given!r} is none of {', '.join(map(repr, allowed))} and None")
    _check_dtype(asked.get("dtype"))
    standardize, detrend = asked.get("standardize"), asked.get("detrend")
    if not isinstance(standardize, _FLAGS) and standardize not in (None, "zscore_sample", "psc"):
        raise ParameterError(f"standardize={standardize!r} is none of 'zscore_sample', 'psc' and None")
    if detrend is not None and not isinstance(detrend, _FLAGS):
        raise ParameterError(f"detrend={detrend!r} is neither True nor False")
    low_pass, high_pass, t_r = (asked.get(name) for name in ("low_pass", "high_pass", "t_r"))
    if low_pass is not None or high_pass is not None:
        _check_filter(low_pass, high_pass, None if callable(t_r) else t_r)


def is_weighted(strategy: Strategy) -> bool:
    """Whether regions need weights for it."""
    return strategy == WEIGHTED or (not isinstance(strategy, str) and WEIGHTED in (strategy or ()))


def checked_strategy(strategy: Strategy) -> str | tuple[str, ...]:
    """One way to reduce a region to one value, or several different ones.

    Raises ParameterError: naming the ways that there are.
    """
    several = tuple(strategy) if isinstance(strategy, Iterable) and not isinstance(strategy, str) else ()
    for one in several or (strategy,):
        if not isinstance(one, str) or one not in STRATEGIES:
            raise ParameterError(f"strategy={one!r} is none of {', '.join(STRATEGIES)}")
        if several.count(one) > 1:
            raise ParameterError(f"strategy={one!r} is asked for twice")
    return several or str(strategy)


def _checked_cleaning(
    facts: Facts,
    *,
    standardize: str | bool | None = None,
    detrend: bool = False,
    confounds: Any = None,
    sample_mask: Any = None,
    low_pass: float | None = None,
    high_pass: float | None = None,
    t_r: float | None = None,
) -> Cleaning:
    """The cleaning asked for, with what does not suit this image refused."""
    if low_pass is not None or high_pass is not None:
        t_r = _repetition_time(facts) if t_r is None else t_r
        check_length(facts, low_pass, high_pass)
    kept = None if sample_mask is None else kept_volumes(facts, sample_mask)
    cleaning = Cleaning(
        standardize=standardize if isinstance(standardize, str) else "zscore_sample" if standardize else None,
        detrend=bool(detrend),
        confounds=None if confounds is None else confounds_table(facts, confounds, kept),
        sample_mask=kept,
        low_pass=low_pass,
        high_pass=high_pass,
        t_r=t_r,
    )
    if cleaning.filters and kept is not None and np.any(np.diff(kept) <= 0):
        raise ParameterError("sample_mask must ascend where a filter interpolates the volumes between")
    if cleaning.filters and kept is not None and len(kept) == 1:
        raise ParameterError(
            f"sample_mask keeps one volume of {facts.name}: a filter interpolates between two"
        )
    if cleaning.confounds is not None:
        warn_of_too_many(facts, cleaning.confounds, kept, cleaning.detrend)
    return cleaning


def check_length(facts: Facts, low_pass: float | None, high_pass: float | None) -> None:
    """Refuse a run that is too short for nilearn's filter, a Butterworth of order 5 that goes both ways.

    Raises ParameterError.
    """
    needed = _BOTH_FILTERS if low_pass is not None and high_pass is not None else _ONE_FILTER
    if facts.n_timepoints < needed:
        which = "low_pass and high_pass together need" if needed == _BOTH_FILTERS else "a filter needs"
        raise ParameterError(f"{which} at least {needed} volumes: {facts.name} has {facts.n_timepoints}")


def _check_filter(low_pass: Any, high_pass: Any, t_r: Any) -> None:
    given = {"low_pass": low_pass, "high_pass": high_pass, "t_r": t_r}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.number | None):
            raise ParameterError(f"{name}={value!r} is no number")
        if value is not None and not value > 0:
            raise ParameterError(f"{name}={value} must be above 0")
    if low_pass is not None and high_pass is not None and high_pass >= low_pass:
        raise ParameterError(f"low_pass={low_pass} must be above high_pass={high_pass}")


def _repetition_time(facts: Facts) -> float:
    if facts.t_r is None:
        raise ParameterError(f"a filter needs t_r: {facts.t_r_origin}")
    if not 0.05 <= facts.t_r <= 30:
        warnings.warn(
            f"{facts.name} gives a repetition time of {facts.t_r:g} s: give t_r= if that is wrong",
            SharedMaskWarning,
            stacklevel=2,
        )
    return facts.t_r
