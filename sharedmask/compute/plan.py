"""Plans: what a request takes, how it is cut into blocks, and how many workers it gets.

Covers: bytes of results, of reading and of workers, before any is allocated; the bound on each process. Does
not cover: how much there is (``budget``), carrying a plan out (``signals``), what loading takes
(``loader``, ``container``).

Every figure is an upper estimate of the peak above what is held already::

    of rows:     results + indices + n workers x (process + rows of one block x bytes per row)
    of volumes:  results + buffers of the loader
"""

import sys
from dataclasses import replace

from sharedmask.compute import row_sums
from sharedmask.compute.cleaning import COLUMNS
from sharedmask.compute.request import Request
from sharedmask.errors import MemoryLimitError, ParameterError
from sharedmask.records import dataclass
from sharedmask.sources import loader
from sharedmask.sources.by_row import RowSource
from sharedmask.sources.source import Facts, Source
from sharedmask.sources.values import PIECE_BYTES, REGION_BYTES, VOLUMES_BYTES
from sharedmask.storage import rows
from sharedmask.storage.rows import Series
from sharedmask.system import platform, process, settings
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.units import format_bytes

_BLOCK_BYTES = 8 * 2**20
_CLEANING_THREADS = 4  # that clean at a time, and are faster than processes with their outputs
_FEW_ROWS = 64  # of a region: of each of very many, blocks of rows that pass by have hardly any
_FEWER = "extract fewer masks at a time"

# Measured: a worker forked from an interpreter with numpy, that interpreter with the resource
# tracker, the import of nilearn that cleaning workers share; copies of a block in nilearn, of a
# piece in a kernel, of the voxel numbers.
_WORKER_BYTES = 10 * 2**20
_TEMPLATE_BYTES = 20 * 2**20
_CLEANING_IMPORT_BYTES = 200 * 2**20
_CLEANING_COPIES = 6
_PIECE_COPIES = 6
_REGION_COPIES = 4
_INDEX_COPIES = 4


@dataclass(frozen=True)
class Plan:
    """A request as it will be carried out."""

    request: Request
    needed: int
    """Bytes at the peak, results included."""
    rows: int = 0
    """Voxels per block."""
    in_processes: bool = False
    """Whether worker processes do the work, or threads of the caller."""


@dataclass(frozen=True)
class _Work:
    """What a request takes, for any number of workers."""

    fixed: int
    base: int
    """Private bytes of a worker, whatever its block."""
    per_row: int
    rows: int
    """Voxels of the largest block."""
    amount: int
    """Voxels in all; regions if a block is a region."""
    divisible: bool = True
    """Whether blocks may be smaller; else a block is a region."""
    hint: str = ""
    """What would fit where this does not."""

    def each(self, n_rows: int, in_processes: bool) -> int:
        return self.base + n_rows * self.per_row + in_processes * _WORKER_BYTES


def plan_for(series: Series, request: Request, budget: MemoryBudget) -> Plan:
    """What the request takes of rows that are held, or of volumes that pass by.

    Raises MemoryLimitError: it is more than may be used; with what would fit.
    """
    if isinstance(series, Source):
        return of_volumes(series, request, budget)
    return of_rows(series.facts, request, budget)


def of_volumes(source: Source, request: Request, budget: MemoryBudget) -> Plan:
    """For volumes that pass by: results are made on the way, or the voxels' rows are loaded first."""
    if passes_by(source, request):
        working = _passing_bytes(source, request)
        results = _table_bytes(source, request) if request.strategy else signals_bytes(source, request)
        budget.require(request.operation, working + results, _FEWER)
        # A bound that a profile made of the budget is told by the budget, which knows where it is from.
        check_bound(request.operation, working, per_process(request.n_jobs, budget))
        return Plan(request, working + results)
    plan = of_rows(source, request, budget)
    plan = replace(plan, needed=plan.needed + rows.union_bytes(source, request.regions))
    budget.require(request.operation, plan.needed, _FEWER)
    return plan


def passes_by(source: Source, request: Request) -> bool:
    """Whether results are made of what passes by, once; other regions of rows are reduced one by one."""
    if request.strategy is None or not isinstance(source, RowSource):
        return request.is_streamed
    regions = request.regions
    is_scattered = len(regions.indices) < _FEW_ROWS * len(regions)
    return request.adds_up and not (is_scattered and source.is_mappable)


def _passing_bytes(source: Source, request: Request) -> int:
    """Besides the results."""
    if isinstance(source, RowSource) and request.strategy is not None:
        return row_sums.block_bytes(source) + _REGION_COPIES * max(REGION_BYTES, source.row_bytes * 4)
    n_voxels = len(request.regions.indices)
    if request.strategy is None:
        return loader.buffer_bytes(source, n_voxels, source.n_writers)
    return loader.buffer_bytes(source, n_voxels) + _PIECE_COPIES * max(
        VOLUMES_BYTES, int(request.regions.sizes.max(initial=1)) * 8
    )


def of_rows(facts: Facts, request: Request, budget: MemoryBudget) -> Plan:
    """For rows that are held."""
    in_processes = runs_in_processes(request, budget)
    work = _work(facts, request, in_processes, budget)
    work = replace(work, fixed=work.fixed + in_processes * _TEMPLATE_BYTES)
    block, n_jobs = _bounded(work, request, in_processes, budget)
    each = work.each(block, in_processes)
    at_work = min(n_jobs, -(-work.amount // block) if work.divisible else work.amount)
    at_work = at_work if in_processes else process.at_a_time(at_work)
    needed, hint = work.fixed + at_work * each, work.hint
    if needed > budget.limit >= work.fixed + each:
        hint = f"n_jobs={(budget.limit - work.fixed) // each} would fit"
    budget.require(request.operation, needed, hint)
    return Plan(replace(request, n_jobs=n_jobs), needed, block, in_processes)


def runs_in_processes(request: Request, budget: MemoryBudget) -> bool:
    """Whether worker processes do the work, or threads of the caller.

    Copying rows is bound by memory, and numpy leaves the interpreter to other threads; so do the blocks that
    are cleaned, up to some at a time. Processes pay where work is heavy on the interpreter.

    Raises ParameterError: processes are asked for where nothing may be shared with them.
    """
    from sharedmask.workers import pool

    if not budget.settings.shared_memory:
        if request.prefer == "processes":
            why = "store='private', or shared_memory is off" if platform.can_share() else platform.NOT_SHARED
            raise ParameterError(f"prefer='processes' has nothing to read from: {why}")
        return False
    cleans = request.function is None
    many = process.at_a_time(request.n_jobs) > _CLEANING_THREADS if cleans else request.n_jobs > 1
    worthwhile = request.is_heavy and many and pool.can_start_processes()
    return request.prefer == "processes" or (request.prefer is None and worthwhile)


def signals_bytes(facts: Facts, request: Request) -> int:
    """Of the signals of all voxels of the request's regions."""
    return len(request.regions.indices) * _kept(facts, request) * request.conversion(facts).result.itemsize


# --- what rows take ------------------------------------------------------------------------------


def _work(facts: Facts, request: Request, in_processes: bool, budget: MemoryBudget) -> _Work:
    if request.function is not None:
        return _of_function(facts, request, in_processes)
    if request.strategy is not None:
        return _of_reduction(facts, request)
    fixed = signals_bytes(facts, request) + _INDEX_COPIES * request.regions.indices.nbytes
    if request.cleaning.needed:
        return _of_cleaning(facts, request, fixed, in_processes, budget)
    n_voxels = len(request.regions.indices)
    row_bytes = facts.n_timepoints * request.conversion(facts).result.itemsize
    block = max(1, min(n_voxels, _BLOCK_BYTES // row_bytes))
    hint = _fewer(request, fixed, budget)
    return _Work(fixed, _gathering(facts, n_voxels), 8, block, n_voxels, hint=hint)


def _of_cleaning(
    facts: Facts, request: Request, fixed: int, in_processes: bool, budget: MemoryBudget
) -> _Work:
    n_union = len(request.regions.union)
    fixed += _cleaning_import(in_processes)
    per_row = _CLEANING_COPIES * facts.n_timepoints * 8
    return _Work(fixed, 0, per_row, min(COLUMNS, n_union), n_union, hint=_fewer(request, fixed, budget))


def _of_reduction(facts: Facts, request: Request) -> _Work:
    sizes, n_timepoints = request.regions.sizes, facts.n_timepoints
    largest = max(1, int(sizes.max()))
    base = _REGION_COPIES * _piece(len(request.regions.indices), n_timepoints * 8, REGION_BYTES)
    if "median" in request.strategies:
        base += _PIECE_COPIES * max(largest * 8, min(VOLUMES_BYTES, largest * n_timepoints * 8))
    if "pc1" in request.strategies:
        smaller = min(largest, n_timepoints)
        base += 3 * largest * n_timepoints * 8 * (largest <= n_timepoints) + 4 * smaller**2 * 8
    return _Work(_table_bytes(facts, request), base, 8, largest, len(sizes), divisible=False)


def _of_function(facts: Facts, request: Request, in_processes: bool) -> _Work:
    """Without what the function itself takes and returns."""
    itemsize, sizes = request.conversion(facts).result.itemsize, request.regions.sizes
    per_row = 2 * facts.n_timepoints * itemsize
    fixed = _INDEX_COPIES * request.regions.indices.nbytes
    if request.cleaning.needed:
        per_row += _CLEANING_COPIES * facts.n_timepoints * 8
        fixed += _cleaning_import(in_processes)
    largest = max(1, int(sizes.max()))
    return _Work(fixed, _gathering(facts, largest), per_row, largest, len(sizes), divisible=False)


def _table_bytes(facts: Facts, request: Request) -> int:
    """Of one value per region, volume and strategy, and of what cleaning a table takes, in this process."""
    result = len(request.regions) * facts.n_timepoints * 8
    cleaning = result * _CLEANING_COPIES + _cleaning_import(False) if request.cleaning.needed else 0
    probed = 0 if request.probes is None else len(request.probes) * facts.n_timepoints * 16
    indices = _INDEX_COPIES * request.regions.indices.nbytes
    return result * 2 * len(request.strategies) + indices + cleaning + probed


def _cleaning_import(in_processes: bool) -> int:
    """nilearn is imported once: here, or in the template of the workers."""
    return 0 if "nilearn.signal" in sys.modules and not in_processes else _CLEANING_IMPORT_BYTES


def _kept(facts: Facts, request: Request) -> int:
    kept = request.cleaning.sample_mask
    return facts.n_timepoints if kept is None else len(kept)


def _gathering(facts: Facts, n_rows: int) -> int:
    """Copies of the piece that a kernel converts at a time: as stored, and scaled ones."""
    stored = facts.dtype.itemsize
    scaled = 3 * facts.scaled_dtype.itemsize / stored if facts.is_scaled else 1
    return int(_piece(n_rows, facts.n_timepoints * stored) * (1 + scaled))


def _piece(n_rows: int, row_bytes: int, most: int = PIECE_BYTES) -> int:
    return min(max(most, row_bytes), n_rows * row_bytes)


def _fewer(request: Request, results: int, budget: MemoryBudget) -> str:
    """How many masks at a time fit, about."""
    size = len(request.regions) * max(budget.limit, 0) * 9 // (10 * max(results, 1))
    return f"fewer masks at a time fit, as with iter_masks(..., batch_size={size})" if size else ""


# --- the bound on each process -------------------------------------------------------------------


def _bounded(work: _Work, request: Request, in_processes: bool, budget: MemoryBudget) -> tuple[int, int]:
    """Rows per block and workers under the bound on each process, the caller's threads together."""
    n_jobs = request.n_jobs
    bound = per_process(n_jobs, budget)
    if bound is None:
        return work.rows, n_jobs
    least = work.each(1 if work.divisible else work.rows, in_processes)
    check_bound(request.operation, least, bound)
    block = min(work.rows, (bound - work.each(0, in_processes)) // work.per_row)
    each = work.each(block, in_processes)
    room = budget.limit - work.fixed if in_processes else bound
    return block, max(1, min(n_jobs, room // each))


def check_bound(operation: str, least: int, bound: int | None) -> None:
    """Refuse what a process cannot do within the bound on its private memory, whatever its blocks.

    Raises MemoryLimitError.
    """
    if bound is not None and least > bound:
        origin = settings.origins()["max_memory_per_process"]
        raise MemoryLimitError(
            f"{operation}: a worker needs {format_bytes(least)} for its smallest block and "
            f"max_memory_per_process is {format_bytes(bound)} ({origin})"
        )


def per_process(n_jobs: int, budget: MemoryBudget) -> int | None:
    """What each of ``n_jobs`` processes may take for itself; None: no bound.

    The profile ``"auto"`` gives each its part of the memory, at most its tier's number.
    """
    bound = budget.settings.max_memory_per_process
    if bound is not None and settings.origins().get("max_memory_per_process") == "profile auto":
        return min(bound, max(budget.limit, 0) // max(n_jobs, 2))
    return bound
