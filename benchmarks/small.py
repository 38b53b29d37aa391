"""SMALL: peak memory against what has to be held, each variant in a fresh process.

Covers: which variants are watched, what each may take. Does not cover: what counts (``memory``).
"""

import sys
from dataclasses import dataclass
from itertools import cycle, islice

from benchmarks import memory
from benchmarks.data import Dataset
from benchmarks.memory import Measured
from benchmarks.report import Bar, Row

_N_JOBS = 20
_N_MASKS = 20
_MB = 1e6
_FIXED = 64 * _MB
_PER_WORKER = 10 * _MB
_HELPERS = 3  # the caller, the template of its workers, the tracker of shared memory
_SECTION = "SMALL: peak memory above a bare interpreter, and what it may be"


@dataclass(frozen=True)
class _Plan:
    """A variant to watch, and the bytes that it has to hold; None: it is there to compare."""

    what: str
    variant: str
    n_jobs: int = 1
    n_masks: int = _N_MASKS
    held: float | None = None

    def allowed(self, found: Measured) -> float | None:
        """Workers count as far as they were there: no allowance for those never started."""
        if self.held is None:
            return None
        return self.held + _FIXED + _PER_WORKER * max(0, found.n_processes - _HELPERS)


def _plans(dataset: Dataset) -> list[_Plan]:
    image, signals = 1.05 * dataset.image_bytes, dataset.signal_bytes
    streamed = 1.25 * (dataset.union_bytes + signals(_N_MASKS))
    # A worker takes blocks of 8 MiB: fewer masks have not enough of them for 20 workers.
    many = 3 * _N_MASKS
    return [
        _Plan("extract", "extract", held=streamed),
        _Plan("resident, processes", "resident_processes", _N_JOBS, held=image + signals(_N_MASKS)),
        _Plan("resident, processes", "resident_processes", _N_JOBS, many, image + signals(many)),
        _Plan("resident", "resident", _N_JOBS, held=image + signals(_N_MASKS)),
        _Plan("(numpy indexing)", "numpy_indexing"),
        _Plan("(union masker)", "union_masker"),
        _Plan("(SharedMemory recipe)", "shared_recipe", _N_JOBS),
        # The loop's peak comes again with every mask.
        _Plan("(NiftiMasker loop)", "masker_loop", 2, n_masks=4),
        _Plan("(the same over as_nifti)", "masker_loop_shared", 2, n_masks=4),
        _Plan("(indexing loop over .array)", "indexing_loop_shared", 2, n_masks=4),
    ]


def measure(dataset: Dataset) -> list[Row]:
    """One row per variant; all must return the same signals."""
    bare = memory.bare_interpreter()
    print(f"bare interpreter: {bare / _MB:.1f} MB", file=sys.stderr, flush=True)
    found = {plan: _watched(plan, dataset, bare) for plan in _plans(dataset)}
    expected = _expected(found)
    return [_row(plan, result, expected) for plan, result in found.items()]


def _expected(found: dict[_Plan, Measured | str]) -> list[str]:
    """The digests of numpy's indexing or, where it had no room, of the first variant."""
    measured = {plan.variant: one for plan, one in reversed(found.items()) if isinstance(one, Measured)}
    reference = measured.get("numpy_indexing", next(reversed(measured.values()), None))
    return reference.digests if reference else []


def _watched(plan: _Plan, dataset: Dataset, bare: int) -> Measured | str:
    lacking = memory.lacking(plan.variant, dataset, plan.n_jobs, plan.n_masks)
    if lacking is not None:
        return lacking
    print(f"watching {plan.variant}", file=sys.stderr, flush=True)
    masks = list(islice(cycle(dataset.masks), plan.n_masks))
    return memory.measure(plan.variant, dataset, plan.n_jobs, masks, bare)


def _row(plan: _Plan, found: Measured | str, expected: list[str]) -> Row:
    if isinstance(found, str):
        return Row(_SECTION, plan.what, unit="MB", note=found)
    allowed = plan.allowed(found)
    return Row(
        _SECTION,
        plan.what,
        ours=found.peak / _MB,
        reference=None if allowed is None else allowed / _MB,
        unit="MB",
        ratio=None if allowed is None else found.peak / allowed,
        bar=None if allowed is None else Bar(1.0, at_most=True),
        wrong=found.digests != list(islice(cycle(expected), plan.n_masks)),
        note=_note(plan, found),
    )


def _note(plan: _Plan, found: Measured) -> str:
    note = f"{plan.n_masks} masks, n_jobs={plan.n_jobs}: {found.n_processes} processes, "
    note += f"{found.seconds:.1f} s, {found.n_samples} samples"
    if found.n_processes == 1:
        note += f", resident at most {found.peak_rss / _MB:,.0f} MB"
    return note
