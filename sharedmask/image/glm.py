"""General linear models of an image that is held: what is asked, and maps of what was found.

Covers: designs and contrasts as they are given, memory, blocks of voxels, results as images and by region.
Does not cover: the arithmetic (``sharedmask.compute.glm``), holding the image (``image``).
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any, Literal

import nibabel as nib
import numpy as np

from sharedmask.compute import glm
from sharedmask.compute.confounds import confounds_table
from sharedmask.compute.glm import Contrast, Task, contrast_matrix, place_of
from sharedmask.compute.plan import check_bound, per_process
from sharedmask.compute.progress import counted
from sharedmask.compute.request import Request
from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.regions import parcels
from sharedmask.regions.regions import Regions
from sharedmask.sources.source import Facts
from sharedmask.sources.values import Conversion
from sharedmask.spaces.grid import Grid, box_of
from sharedmask.storage import rows
from sharedmask.storage.rows import Held, Rows
from sharedmask.system import monitor, process
from sharedmask.system.budget import MemoryBudget
from sharedmask.typing import Array, NDArray

NoiseModel = Literal["ols", "ar1"]


@dataclass(frozen=True)
class FittedModel:
    """Estimates of a linear model for each voxel.

    Attributes
    ----------
    names : tuple
        Of the estimates: regressors, or trials.
    estimates : (n_estimates, n_voxels) float32 array
    contrasts : dict of name -> Contrast
        Each with ``effect``, ``variance``, ``stat``, ``p_value`` and ``z_score``.
    rho : (n_voxels,) array, or None
        AR(1) coefficients.
    """

    regions: Regions = field(repr=False)
    names: tuple[Any, ...]
    estimates: Array = field(repr=False)
    contrasts: Mapping[Any, Contrast]
    rho: Array | None = field(default=None, repr=False)

    def to_nifti(self, values: Any) -> nib.Nifti1Image:
        """An image of one value per voxel, or several volumes of (n, n_voxels); 0 elsewhere.

        Where regions overlap, the last has its value.
        """
        grid = box_of(self.regions.grid, "a NIfTI image of maps")
        return grid.to_nifti(self.regions.indices, np.asarray(values, np.float32).T)

    def to_cifti(self, values: Any) -> Any:
        """The same of an image of elements, to be saved as ``.dscalar.nii``, or of parcels ``.pscalar.nii``.

        Raises
        ------
        ParameterError
            The image has voxels.
        """
        if isinstance(self.regions.grid, Grid):
            raise ParameterError(f"maps of {self.regions.grid} are NIfTI: to_nifti()")
        return parcels.maps(self.regions.grid, self.regions.indices, np.asarray(values, np.float32).T)

    def by_region(self, values: Any) -> Any:
        """The mean of (..., n_voxels) values over each region's voxels, in the container of the masks."""
        given = np.asarray(values, np.float64)
        spans = zip(self.regions.offsets, self.regions.offsets[1:], strict=False)
        return self.regions.pack([given[..., start:stop].mean(axis=-1) for start, stop in spans])


@dataclass(frozen=True)
class Question:
    """A linear model, checked."""

    names: list[Any]
    design: NDArray[np.float64]
    contrasts: dict[Any, NDArray[np.float64]]
    autoregressive: bool
    trials: list[int]
    in_per_cent: bool

    @classmethod
    def checked(
        cls,
        facts: Facts,
        design: Any,
        contrasts: Mapping[Any, Any] | Sequence[Any] | None,
        noise_model: str,
        trials: Sequence[Any] | None,
        in_per_cent: bool,
    ) -> "Question":
        """Refuse what makes no sense.

        Raises
        ------
        ParameterError
        """
        table = confounds_table(facts, design)
        names = list(getattr(design, "columns", range(table.shape[1])))
        if noise_model not in ("ols", "ar1"):
            raise ParameterError(f"noise_model={noise_model!r} is none of 'ols' and 'ar1'")
        if table.shape[1] >= len(table):
            raise ParameterError(f"a design of {table.shape[1]} regressors for {len(table)} volumes")
        if trials is not None and (contrasts is not None or noise_model != "ols"):
            raise ParameterError("trials are estimated one by one: without contrasts, noise_model='ols'")
        if contrasts is not None and not isinstance(contrasts, Mapping):
            contrasts = {str(one): one for one in contrasts}
        asked = {name: contrast_matrix(one, names) for name, one in (contrasts or {}).items()}
        for name, contrast in asked.items():
            if (told := glm.Model(table).rank(contrast)) < len(contrast):
                said = f"contrast {name!r}: of {len(contrast)} rows this design tells {told} apart"
                raise ParameterError(f"{said}; leave out zeros, and what follows from others")
        places = [place_of("trial", trial, names) for trial in trials or ()]
        return cls(names, table, asked, noise_model == "ar1", places, in_per_cent)

    @property
    def estimated(self) -> tuple[Any, ...]:
        return tuple(self.names[trial] for trial in self.trials) or tuple(self.names)

    def result_bytes(self, n_voxels: int) -> int:
        per_voxel = len(self.estimated) + self.autoregressive
        per_voxel += sum(len(contrast) + 1 for contrast in self.contrasts.values())
        return 4 * per_voxel * n_voxels

    def task(self, n_voxels: int) -> Task:
        """With results to be filled."""

        def empty(*shape: int) -> Array:
            return np.empty(shape, np.float32)

        return Task(
            self.design,
            self.contrasts,
            self.autoregressive,
            self.in_per_cent,
            glm.separate_estimator(self.design, self.trials) if self.trials else None,
            empty(len(self.estimated), n_voxels),
            {name: empty(len(contrast), n_voxels) for name, contrast in self.contrasts.items()},
            {name: empty(n_voxels) for name in self.contrasts},
            empty(n_voxels) if self.autoregressive else None,
        )

    def fitted(self, regions: Regions, task: Task) -> FittedModel:
        freedom = glm.degrees_of_freedom(self.design)
        contrasts = {
            name: Contrast(effect[0] if len(effect) == 1 else effect, task.variances[name], freedom)
            for name, effect in task.effects.items()
        }
        return FittedModel(regions, self.estimated, task.estimates, contrasts, task.rho)


def fit(held: Held, question: Question, request: Request, budget: MemoryBudget) -> FittedModel:
    """Fit the model to the voxels of the request's regions.

    Raises MemoryLimitError.
    """
    from threadpoolctl import threadpool_limits

    regions, n_timepoints = request.regions, held.facts.n_timepoints
    n_threads = _threads(n_timepoints, request, budget)
    results = question.result_bytes(len(regions.indices))
    needed = results + n_threads * glm.block_bytes(n_timepoints)
    if isinstance(held, Rows):
        loading: contextlib.AbstractContextManager[Rows] = contextlib.nullcontext(held)
    else:
        needed += rows.union_bytes(held, regions)
        loading = rows.load_union(held, regions.union, False, budget)
    budget.require(request.operation, needed, "fewer voxels at a time fit")
    with (
        monitor.operation(request.label, request.operation, needed),
        loading as series,
        threadpool_limits(1, user_api="blas"),
    ):
        return _fit(series, question, replace(request, n_jobs=n_threads))


def _threads(n_timepoints: int, request: Request, budget: MemoryBudget) -> int:
    """How many may work at a time under the bound on this process."""
    wanted, each = process.at_a_time(request.n_jobs), glm.block_bytes(n_timepoints)
    bound = per_process(request.n_jobs, budget)
    check_bound(request.operation, each, bound)
    return wanted if bound is None else min(wanted, bound // each)


def _fit(series: Rows, question: Question, request: Request) -> FittedModel:
    from sharedmask.workers import threaded

    conversion = request.conversion(series.facts)
    positions = series.positions(request.regions)
    step = glm.block_rows(series.facts.n_timepoints)
    items = [(positions[start : start + step], start) for start in range(0, len(positions), step)]
    task = question.task(len(positions))
    if question.autoregressive:
        task = _with_mean(series, conversion, task, items)
    arguments = (series.array, series.finite, conversion, task)
    with counted(request.progress, len(items), "block") as tell:
        threaded.run_threads(glm.fit_block, arguments, items, request.n_jobs, on_done=tell)
    return question.fitted(request.regions, task)


def _with_mean(series: Rows, conversion: Conversion, task: Task, items: list[Any]) -> Task:
    """What residuals are about when autocorrelation is taken: the mean of all of them."""
    model, n_timepoints = task.model(0.0), len(task.design)
    _, left = model.fit(np.ones((1, n_timepoints)))
    if np.abs(left).max() < 1e-9:
        return task
    total, count = np.zeros((1, n_timepoints)), 0
    for index, _ in items:
        total += glm.series_of(series.array, series.finite, conversion, index, task.in_per_cent).sum(axis=0)
        count += len(index)
    _, residuals = model.fit(total / count)
    return replace(task, mean=float(residuals.mean()))
