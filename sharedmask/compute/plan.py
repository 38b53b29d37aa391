"""Plans: what an operation takes, how it is cut into blocks, and how many workers it gets.

Covers: bytes of results and of workers, before any is allocated; the bound on each process. Does
not cover: how much there is (``budget``), carrying a plan out (``signals``), what loading takes
(``loader``, ``segment``).

Every figure is an upper estimate of the peak above what is held already::

    needed = results + indices + n workers x (process + rows of one block x bytes per row)
"""

import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from sharedmask.compute import pool
from sharedmask.compute.request import Request
from sharedmask.errors import MemoryLimitError, ParameterError
from sharedmask.regions.regions import Regions
from sharedmask.sources.source import Facts
from sharedmask.system import monitor, process, settings
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.units import format_bytes

_BLOCK_BYTES = 8 * 2**20
_CLEAN_COLUMNS = 512

# Measured: a worker forked from an interpreter with numpy, that interpreter with the resource
# tracker, the import of nilearn that cleaning workers share; copies of a block in nilearn, of a
# piece in a kernel, of the voxel numbers.
_WORKER_BYTES = 10 * 2**20
_TEMPLATE_BYTES = 20 * 2**20
_CLEANING_IMPORT_BYTES = 200 * 2**20
_CLEANING_COPIES = 6
_PIECE_BYTES = 256 * 1024
_PIECE_COPIES = 6
_VOLUMES_BYTES = 4 * 2**20
_INDEX_COPIES = 4


@dataclass(frozen=True)
class Plan:
    """A request as it will be carried out."""

    request: Request
    rows: int
    """Voxels per block."""
    needed: int
    """Bytes at the peak, results included."""
    label: str
    operation: str

    def running(self) -> AbstractContextManager[None]:
        """The time in which it is carried out."""
        return monitor.operation(self.label, self.operation, self.needed)


@dataclass(frozen=True)
class _Work:
    """What an operation takes, for any number of workers."""

    label: str
    operation: str
    fixed: int
    base: int
    """Private bytes of a worker, whatever its block."""
    per_row: int
    rows: int
    """Voxels of the largest block."""
    amount: int
    """Voxels in all; regions if a block is a region."""
    heavy: bool
    """Whether it keeps the interpreter busy."""
    divisible: bool = True
    """Whether blocks may be smaller; else a block is a region."""

    def each(self, rows: int, processes: bool) -> int:
        return self.base + rows * self.per_row + processes * _WORKER_BYTES


def in_processes(request: Request, heavy: bool) -> bool:
    """Whether worker processes do the work, or threads of the caller.

    Copying rows is bound by memory, and numpy leaves the interpreter to other threads; processes
    pay where work is ``heavy`` on the interpreter.

    Raises
    ------
    ParameterError
        Processes are asked for where nothing may be shared with them.
    """
    if not settings.current().shared_memory:
        if request.prefer == "processes":
            raise ParameterError("prefer='processes' has nothing to read from: shared_memory is off")
        return False
    worthwhile = heavy and request.n_jobs > 1 and pool.can_start_processes()
    return request.prefer == "processes" or (request.prefer is None and worthwhile)


def signals_bytes(facts: Facts, regions: Regions, request: Request) -> int:
    """Of the signals of all voxels of ``regions``."""
    return len(regions.indices) * _kept(facts, request) * request.conversion(facts).result.itemsize


# --- operations ----------------------------------------------------------------------------------


def mask(facts: Facts, regions: Regions, request: Request, budget: MemoryBudget, operation: str) -> Plan:
    """For the signals of all voxels of ``regions``; ``operation`` is what messages call it.

    Raises
    ------
    MemoryLimitError
        With what would fit.
    """
    cleaning, itemsize = request.cleaning, request.conversion(facts).result.itemsize
    kept = _kept(facts, request)
    fixed = signals_bytes(facts, regions, request) + _INDEX_COPIES * regions.indices.nbytes
    if not cleaning.needed:
        n_voxels = len(regions.indices)
        rows = max(1, min(n_voxels, _BLOCK_BYTES // (facts.n_timepoints * itemsize)))
        base = _gathering(facts, n_voxels)
        work = _Work("mask", operation, fixed, base, 8, rows, n_voxels, heavy=False)
        return _plan(work, request, budget, _fewer(regions, fixed, budget))
    n_union = len(regions.union)
    fixed += (n_union < len(regions.indices)) * n_union * kept * itemsize + _cleaning_import(request)
    per_row = _CLEANING_COPIES * facts.n_timepoints * 8
    work = _Work("mask", operation, fixed, 0, per_row, min(_CLEAN_COLUMNS, n_union), n_union, heavy=True)
    return _plan(work, request, budget, _fewer(regions, fixed, budget))


def reduce(
    facts: Facts, regions: Regions, strategy: str, request: Request, budget: MemoryBudget, operation: str
) -> Plan:
    """For one value per region and volume; refuses as :func:`mask` does."""
    fixed = _table_bytes(facts, regions, request)
    largest, n_timepoints = max(1, int(regions.sizes.max())), facts.n_timepoints
    base = _PIECE_COPIES * _piece(largest, n_timepoints * 8)
    if strategy == "median":
        base += _PIECE_COPIES * max(largest * 8, min(_VOLUMES_BYTES, largest * n_timepoints * 8))
    if strategy == "pc1":
        smaller = min(largest, n_timepoints)
        base += 3 * largest * n_timepoints * 8 * (largest <= n_timepoints) + 4 * smaller**2 * 8
    work = _Work("reduce", operation, fixed, base, 8, largest, len(regions), heavy=False, divisible=False)
    return _plan(work, request, budget)


def reduce_volumes(facts: Facts, regions: Regions, request: Request) -> int:
    """Bytes for one value per region of volumes that pass by, besides what reading them takes."""
    most = max(_VOLUMES_BYTES, int(regions.sizes.max(initial=1)) * 8)
    return _table_bytes(facts, regions, request) + _PIECE_COPIES * most


def _table_bytes(facts: Facts, regions: Regions, request: Request) -> int:
    """Of one value per region and volume, and of what cleaning them takes."""
    result = len(regions) * facts.n_timepoints * 8
    cleaning = result * _CLEANING_COPIES + _cleaning_import(request) if request.cleaning.needed else 0
    return result * 2 + _INDEX_COPIES * regions.indices.nbytes + cleaning


def map_regions(
    facts: Facts, regions: Regions, request: Request, budget: MemoryBudget, operation: str
) -> Plan:
    """For a function of each region, without what the function itself takes and returns."""
    itemsize = request.conversion(facts).result.itemsize
    per_row = 2 * facts.n_timepoints * itemsize
    fixed = _INDEX_COPIES * regions.indices.nbytes
    if request.cleaning.needed:
        per_row += _CLEANING_COPIES * facts.n_timepoints * 8
        fixed += _cleaning_import(request)
    largest = max(1, int(regions.sizes.max()))
    base = _gathering(facts, largest)
    work = _Work("map", operation, fixed, base, per_row, largest, len(regions), heavy=True, divisible=False)
    return _plan(work, request, budget)


def _cleaning_import(request: Request) -> int:
    """nilearn is imported once: here, or in the template of the workers."""
    imported = "nilearn.signal" in sys.modules and not in_processes(request, heavy=True)
    return 0 if imported else _CLEANING_IMPORT_BYTES


def _kept(facts: Facts, request: Request) -> int:
    kept = request.cleaning.sample_mask
    return facts.n_timepoints if kept is None else len(kept)


def _gathering(facts: Facts, n_rows: int) -> int:
    """Copies of the piece that a kernel converts at a time: as stored, and scaled ones."""
    stored = facts.dtype.itemsize
    scaled = 3 * facts.scaled_dtype.itemsize / stored if facts.is_scaled else 1
    return int(_piece(n_rows, facts.n_timepoints * stored) * (1 + scaled))


def _piece(n_rows: int, row_bytes: int) -> int:
    return min(max(_PIECE_BYTES, row_bytes), n_rows * row_bytes)


def _fewer(regions: Regions, results: int, budget: MemoryBudget) -> str:
    """How many masks at a time fit, about."""
    size = len(regions) * max(budget.limit, 0) * 9 // (10 * max(results, 1))
    return f"fewer masks at a time fit, as with iter_masks(..., batch_size={size})" if size else ""


# --- fitting -------------------------------------------------------------------------------------


def _plan(work: _Work, request: Request, budget: MemoryBudget, hint: str = "") -> Plan:
    processes = in_processes(request, work.heavy)
    work = replace(work, fixed=work.fixed + processes * _TEMPLATE_BYTES)
    rows, n_jobs = _bounded(work, request.n_jobs, processes, budget)
    each = work.each(rows, processes)
    at_work = min(n_jobs, -(-work.amount // rows) if work.divisible else work.amount)
    at_work = at_work if processes else min(at_work, process.n_cpus())
    needed = work.fixed + at_work * each
    if needed > budget.limit >= work.fixed + each:
        hint = f"n_jobs={(budget.limit - work.fixed) // each} would fit"
    budget.require(work.operation, needed, hint)
    return Plan(replace(request, n_jobs=n_jobs), rows, needed, work.label, work.operation)


def _bounded(work: _Work, n_jobs: int, processes: bool, budget: MemoryBudget) -> tuple[int, int]:
    """Rows per block and workers under the bound on each process, the caller's threads together."""
    bound = per_process(n_jobs, budget)
    if bound is None:
        return work.rows, n_jobs
    least = work.each(1 if work.divisible else work.rows, processes)
    if least > bound:
        origin = settings.origins()["max_memory_per_process"]
        raise MemoryLimitError(
            f"{work.operation}: a worker needs {format_bytes(least)} for its smallest block and "
            f"max_memory_per_process is {format_bytes(bound)} ({origin})"
        )
    rows = min(work.rows, (bound - work.each(0, processes)) // work.per_row)
    each = work.each(rows, processes)
    room = budget.limit - work.fixed if processes else bound
    return rows, max(1, min(n_jobs, room // each))


def per_process(n_jobs: int, budget: MemoryBudget) -> int | None:
    """What each of ``n_jobs`` processes may take for itself; None: no bound.

    The profile ``"auto"`` gives each its part of the memory, at most its tier's number.
    """
    bound = settings.current().max_memory_per_process
    if bound is not None and settings.origins()["max_memory_per_process"] == "profile auto":
        return min(bound, max(budget.limit, 0) // max(n_jobs, 2))
    return bound
