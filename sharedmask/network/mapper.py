"""Functional network mapping: which voxels of a connectome go along with a lesion.

Covers: lesions as seeds, passes over the connectome's blocks, how many lesions go together. Does
not cover: the connectome's files (``connectome``), the arithmetic (``correlation``), what is given
out (``stat_maps``), batches of lesions (``batches``).

Blocks are the outer loop, lesions the inner one: each block is read and decompressed once for all
lesions of a batch, and once for all batches if the connectome is one block.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np

from sharedmask.compute import kernels
from sharedmask.compute.plan import check_bound, per_process
from sharedmask.compute.progress import Progress
from sharedmask.errors import (
    ConnectomeError,
    EmptyMaskError,
    GridMismatchError,
    ParameterError,
    SharedMaskError,
)
from sharedmask.network import correlation
from sharedmask.network.batches import Advance, batch_process
from sharedmask.network.connectome import Block, Connectome, SharedBlock, share_block
from sharedmask.network.stat_maps import KEYS, NetworkMaps, Statistics
from sharedmask.records import dataclass
from sharedmask.regions.masks import matching
from sharedmask.regions.regions import Regions
from sharedmask.sources.opening import open_source
from sharedmask.spaces.grid import Grid, box_of
from sharedmask.storage import container
from sharedmask.storage.registry import OwnedSegment
from sharedmask.storage.segment import Shared
from sharedmask.system import monitor, process, settings
from sharedmask.system.budget import MemoryBudget, within
from sharedmask.typing import Array, NDArray
from sharedmask.workers import pool, threaded
from sharedmask.workers.worker import Item, Kernel

Index = NDArray[np.intp]

# A block may take this much of the limit; a batch of lesions this much of the block, so that memory
# does not depend on how many lesions there are.
_BLOCK_SHARE = 0.6
_BATCH_SHARE = 0.04
_FEWEST = 10  # lesions: fewer make products that are bound by reading the block
_STATISTICS_COPIES = 8  # float64 values per voxel while the maps of one lesion are made


class FunctionalNetworkMapper:
    """Maps of what lesions are connected to in a connectome of healthy subjects.

    Parameters
    ----------
    method : {"boes", "pini"}
        The seed is the mean of the lesion's voxels; "pini" keeps those that load on the first
        principal component, over all subjects, of their correlations with that mean [1]_, [2]_.
    pini_percentile : float
        Of the loadings: voxels below are left out.
    compute_p_map : bool
        Also maps of p and of what the false discovery rate leaves.
    fdr_alpha : float, optional
        Level of the false discovery rate [3]_, over the connectome's voxels.
    t_threshold : float, optional
        Of the size of t.
    output_space : {"connectome", "lesion"}
        The grid of the maps; "lesion": resampled to each lesion's own.
    resampling_target : {"data"}, optional
        "data": lesions on another grid are resampled to the connectome's, nearest neighbour. By
        default they are refused, unless axes are only flipped or permuted.
    n_jobs : int, optional
        Workers, by joblib's convention.
    prefer : {"threads", "processes"}
        Threads of the caller, or workers that attach to the block.
    memory_limit : int, float or str, optional
        Bytes, ``"8G"``, or a fraction of the RAM.

    References
    ----------
    .. [1] A. D. Boes et al. (2015). Network localization of neurological symptoms from focal brain lesions.
       Brain 138, 3061-3075: "boes".
    .. [2] L. Pini et al. (2021). A novel stroke lesion network mapping approach: improved accuracy yet still
       low deficit prediction. Brain Communications 3, fcab259: "pini".
    .. [3] Y. Benjamini and Y. Hochberg (1995). Controlling the false discovery rate. Journal of the Royal
       Statistical Society B 57, 289-300.
    .. [4] B. P. Welford (1962). Note on a method for calculating corrected sums of squares and products.
       Technometrics 4, 419-420: means and variances over subjects, in one pass.

    Examples
    --------
    ::

        mapper = FunctionalNetworkMapper(t_threshold=7, n_jobs=-1).fit("gsp1000/")
        maps = mapper.transform("lesions/*.nii.gz")
        maps["sub-01_lesion"].tmap.to_filename("tmap.nii.gz")

    >>> FunctionalNetworkMapper("pini", pini_percentile=10)
    FunctionalNetworkMapper(method='pini')
    """

    connectome_: Connectome

    def __init__(
        self,
        method: Literal["boes", "pini"] = "boes",
        *,
        pini_percentile: float = 20,
        compute_p_map: bool = True,
        fdr_alpha: float | None = 0.05,
        t_threshold: float | None = None,
        output_space: Literal["connectome", "lesion"] = "connectome",
        resampling_target: Literal["data"] | None = None,
        n_jobs: int | None = None,
        prefer: Literal["threads", "processes"] = "threads",
        memory_limit: int | float | str | None = None,
    ) -> None:
        _check("method", method, ("boes", "pini"))
        _check("output_space", output_space, ("connectome", "lesion"))
        _check("prefer", prefer, ("threads", "processes"))
        if not 0 <= pini_percentile <= 100:
            raise ParameterError(f"pini_percentile={pini_percentile} is no percentile")
        self.method = method
        self.pini_percentile = pini_percentile
        self.statistics = Statistics(compute_p_map, fdr_alpha, t_threshold)
        self.output_space = output_space
        self.resampling_target = resampling_target
        self.n_jobs = n_jobs
        self.prefer = prefer
        self.memory_limit = memory_limit

    @property
    def settings(self) -> dict[str, Any]:
        """All that the values of the maps depend on, besides connectome and lesion."""
        percentile = {"pini_percentile": self.pini_percentile} if self.method == "pini" else {}
        spaces = {"output_space": self.output_space, "resampling_target": self.resampling_target}
        return {"method": self.method, **percentile, **asdict(self.statistics), **spaces}

    def __repr__(self) -> str:
        return f"FunctionalNetworkMapper(method={self.method!r})"

    def fit(self, connectome: Any, *, coordinates_axis: int | None = None) -> "FunctionalNetworkMapper":
        """Choose the connectome; its files are checked, no series is read.

        Parameters
        ----------
        connectome : str, path or Connectome
            One .h5 file, or a directory of them.
        coordinates_axis : {0, 1}, optional
            Which axis of ``mask_indices`` has length 3, where both have.

        Returns
        -------
        FunctionalNetworkMapper
            Itself.

        Raises
        ------
        MissingFileError, ConnectomeError
        """
        if not isinstance(connectome, Connectome):
            with within(self.memory_limit):
                connectome = Connectome.open(connectome, coordinates_axis=coordinates_axis)
        if connectome.n_subjects < 2:
            raise ConnectomeError(f"{connectome.files[0].path} holds one subject: t and p need at least 2")
        self.connectome_ = connectome
        return self

    def transform(self, lesions: Any, *, batch_size: int | None = None, progress: Progress = None) -> Any:
        """The maps of each lesion; for more than memory holds use :func:`batch_process`.

        Parameters
        ----------
        lesions : list, dict, glob pattern, or one lesion
            Paths or niimgs; non-zero is inside.
        batch_size : int, optional
            Lesions that go over the connectome together; default: chosen by memory.
        progress : bool or callable, optional
            True draws a bar; a function is called with (done, total), both in lesions.

        Returns
        -------
        NetworkMaps, or list or dict of them
            In the container given; a dict for a glob pattern.

        Raises
        ------
        MaskError, GridMismatchError, EmptyMaskError
            Of the first lesion that cannot be used.
        MemoryLimitError
            Not even one subject and one lesion fit.
        """
        found = batch_process(lesions, self, batch_size=batch_size, progress=progress).results
        if isinstance(lesions, Mapping):
            return dict(zip(lesions, found.values(), strict=True))
        if matching(lesions):
            return found
        return list(found.values()) if isinstance(lesions, list | tuple) else next(iter(found.values()))

    @contextlib.contextmanager
    def opened(self, n_jobs: int | None = None) -> Iterator["MappingSession"]:
        """What maps one batch after the other, and the block that they share.

        Parameters
        ----------
        n_jobs : int, optional
            Workers; default: those of the mapper.

        Yields
        ------
        MappingSession
            Valid within the ``with`` block.
        """
        if not hasattr(self, "connectome_"):
            raise ParameterError("the mapper has no connectome yet: call fit(connectome)")
        jobs = process.effective_n_jobs(self.n_jobs if n_jobs is None else n_jobs)
        with contextlib.ExitStack() as held:
            yield MappingSession(self, self.connectome_, jobs, held)


def _check(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise ParameterError(f"{name}={value!r} is none of {', '.join(map(repr, known))}")


@dataclass(frozen=True)
class _Lesion:
    """The positions of a lesion's voxels in the connectome, and the grid its maps come on."""

    seed: Index
    target: Grid | None


class MappingSession:
    """Batches of lesions on one connectome."""

    batch_size: int
    """How many lesions memory lets go together."""

    def __init__(
        self, mapper: FunctionalNetworkMapper, connectome: Connectome, n_jobs: int, held: contextlib.ExitStack
    ) -> None:
        self._mapper = mapper
        self._connectome = connectome
        self._n_jobs = n_jobs
        self._in_processes = mapper.prefer == "processes"
        if self._in_processes and not settings.current().shared_memory:
            raise ParameterError("prefer='processes' has nothing to read from: shared_memory is off")
        self._held = held
        self._only_block: SharedBlock | None = None
        budget = MemoryBudget.here(mapper.memory_limit)
        self._blocks = connectome.blocks(int(budget.limit * _BLOCK_SHARE))
        self._most = max(block.n_subjects for block in self._blocks)
        self.batch_size = self._fitting(budget)

    def _fitting(self, budget: MemoryBudget) -> int:
        block = container.projected(self._connectome.geometry(self._most))
        n_voxels = self._connectome.n_voxels
        fixed = block + self._connectome.buffer_bytes(self._n_jobs)
        fixed += self._n_jobs * _STATISTICS_COPIES * 8 * n_voxels
        per_lesion = n_voxels * (16 + 4 * len(KEYS)) + self._most * self._connectome.n_timepoints * 8
        hint = "fewer workers (n_jobs) need less" if self._n_jobs > 1 else ""
        what = f"mapping a lesion on {self._connectome.files[0].path.parent}"
        budget.require(what, fixed + per_lesion, hint)
        self._fixed, self._per_lesion = fixed, per_lesion
        wanted = max(_FEWEST, int(block * _BATCH_SHARE) // per_lesion)
        bound = per_process(self._n_jobs, budget)
        own = fixed - block if budget.settings.shared_memory else fixed
        check_bound(what, own + per_lesion, bound)
        room = budget.limit - fixed if bound is None else min(budget.limit - fixed, bound - own)
        return min(wanted, room // per_lesion)

    def __call__(self, batch: Mapping[str, Any], advance: Advance) -> dict[str, NetworkMaps | Exception]:
        """The maps of each lesion, or what is wrong with it."""
        found: dict[str, Any] = {name: self._read(name, lesion) for name, lesion in batch.items()}
        good = {name: lesion for name, lesion in found.items() if isinstance(lesion, _Lesion)}
        if good:
            what = f"mapping {len(good)} lesions on {self._connectome.files[0].path.parent}"
            with monitor.operation("network", what, self._fixed + len(good) * self._per_lesion):
                found.update(self._mapped(good, advance))
        return found

    def _read(self, name: str, lesion: Any) -> "_Lesion | Exception":
        grid, mapper = self._connectome.grid, self._mapper
        try:
            with within(mapper.memory_limit):
                regions = Regions.from_any({name: lesion}, grid, resampling_target=mapper.resampling_target)
            seed = self._connectome.held(regions[0])
            if not len(seed):
                raise EmptyMaskError(
                    f"lesion {name!r}: none of its {len(regions[0])} voxels is in the connectome's mask"
                )
            return _Lesion(seed, _grid_of(lesion) if mapper.output_space == "lesion" else None)
        except GridMismatchError as error:
            return error.instead('resampling_target="data" resamples lesions (nearest neighbour)')
        except (SharedMaskError, OSError) as error:
            return error

    def _mapped(self, lesions: dict[str, _Lesion], advance: Advance) -> dict[str, NetworkMaps]:
        seeds = [lesion.seed for lesion in lesions.values()]
        passes = 1
        with kernels.one_blas_thread():
            if self._mapper.method == "pini":
                passes = 2
                seeds = self._reduced_seeds(seeds, lambda share: advance(share / 2))
            moments = self._moments(seeds, lambda share: advance(1 - (1 - share) / passes))
        items = [(name, lesion, *pair) for (name, lesion), pair in zip(lesions.items(), moments, strict=True)]
        maps = threaded.run_threads(self._maps, (), items, self._n_jobs)
        return {one.name: one for one in maps}

    def _maps(self, name: str, lesion: _Lesion, mean: Array, squares: Array) -> NetworkMaps:
        connectome, statistics = self._connectome, self._mapper.statistics
        values = statistics.values_from(mean, squares, connectome.n_subjects)
        counts = {"n_subjects": connectome.n_subjects, "n_batches": len(connectome.files)}
        summary = {**statistics.summary(values), **counts, "n_lesion_voxels": len(lesion.seed)}
        return NetworkMaps(name, connectome.grid, connectome.voxels, values, summary, lesion.target)

    # --- passes over the connectome ---

    def _reduced_seeds(self, seeds: list[Index], advance: Advance) -> list[Index]:
        """The voxels of each seed that go along with it in the same way in all subjects."""
        own: list[list[Array]] = []
        needed = 8 * self._connectome.n_subjects * sum(map(len, seeds))
        budget = MemoryBudget.here(self._mapper.memory_limit, self._fixed)
        budget.require("choosing voxels of lesions", needed)

        with self._scratch({"courses": self._courses(seeds)}) as (_, scratch):

            def collect(block: SharedBlock, n_before: int) -> None:
                arguments = (block.argument("series", self._in_processes), scratch["courses"], seeds)
                own.extend(self._run(correlation.seed_correlations, arguments, _numbers(block)))

            self._each_block(seeds, scratch["courses"], collect, advance)
        percentile = self._mapper.pini_percentile
        return [
            seed[correlation.kept_voxels(np.array(subjects), percentile)]
            for seed, subjects in zip(seeds, zip(*own, strict=True), strict=True)
        ]

    def _moments(self, seeds: list[Index], advance: Advance) -> list[tuple[Array, Array]]:
        """Mean and summed squared deviations of z over subjects, (n_voxels,) each, per seed."""
        shape = (2, len(seeds), self._connectome.n_voxels)
        geometry = {"courses": self._courses(seeds), "moments": (shape, np.dtype(np.float64))}
        starts = range(0, self._connectome.n_voxels, correlation.SPAN_VOXELS)
        with self._scratch(geometry) as (arrays, scratch):

            def add(block: SharedBlock, n_before: int) -> None:
                series = block.argument("series", self._in_processes)
                arguments = (series, scratch["courses"], scratch["moments"])
                self._run(correlation.accumulate, arguments, [(n_before, start) for start in starts])

            self._each_block(seeds, scratch["courses"], add, advance)
            return list(zip(*arrays["moments"], strict=True))

    def _each_block(
        self, seeds: list[Index], courses: Any, use: Callable[[SharedBlock, int], None], advance: Advance
    ) -> None:
        """Make the seeds' courses in each block, and ``use`` them."""
        n_before = 0
        for number, block in enumerate(self._blocks, 1):
            with self._block(block) as shared:
                rows = (shared.argument(name, self._in_processes) for name in ("series", "lengths"))
                self._run(correlation.seed_courses, (*rows, courses, seeds), _numbers(shared))
                use(shared, n_before)
            n_before += block.n_subjects
            advance(number / len(self._blocks))

    @contextlib.contextmanager
    def _block(self, block: Block) -> Iterator[SharedBlock]:
        if self._only_block is not None:
            yield self._only_block
            return
        opened = share_block(self._connectome, block, self._n_jobs)
        if len(self._blocks) == 1:
            self._only_block = self._held.enter_context(opened)
            yield self._only_block
        else:
            with opened as shared:
                yield shared

    # --- threads or processes ---

    def _courses(self, seeds: list[Index]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        return (self._most, len(seeds), self._connectome.n_timepoints), np.dtype(np.float64)

    @contextlib.contextmanager
    def _scratch(self, geometry: container.Geometry) -> Iterator[tuple[dict[str, Array], dict[str, Any]]]:
        """Arrays of 0, and what a kernel gets for them."""
        if not self._in_processes:
            arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in geometry.items()}
            yield arrays, dict(arrays)
            return
        with OwnedSegment("sums of network maps", geometry, "auto") as owned:
            arrays = {name: owned.segment.array(name) for name in geometry}
            handle = owned.share({}, writable=True)
            yield arrays, {name: Shared(handle, name, writable=True) for name in geometry}

    def _run(self, kernel: Kernel, arguments: Item, items: list[Any]) -> list[Any]:
        run = pool.run_processes if self._in_processes else threaded.run_threads
        return run(kernel, arguments, items, self._n_jobs)


def _numbers(block: SharedBlock) -> list[tuple[int]]:
    return [(number,) for number in range(len(block.series))]


def _grid_of(lesion: Any) -> Grid | None:
    """The grid of a lesion's file or image; an array has none of its own."""
    if isinstance(lesion, np.ndarray):
        return None
    return box_of(open_source(lesion).grid, "a lesion")
