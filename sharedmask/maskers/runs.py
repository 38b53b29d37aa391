"""Many runs, one masker: nilearn's Multi maskers over shared and streamed images.

Covers: `SharedMultiNiftiMasker`, `SharedMultiLabelsMasker`, `SharedMultiMapsMasker`; which runs are read at
the same time. Does not cover: one run (``nifti``, ``labels``, ``maps``), many masks of one run (``multi``).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

from nilearn.maskers import MultiNiftiLabelsMasker, MultiNiftiMapsMasker, MultiNiftiMasker
from sklearn.utils.validation import check_is_fitted

from sharedmask.compute.cleaning import CLEANING_MODULES
from sharedmask.maskers.base import Masker, SharedMasker, documented
from sharedmask.maskers.inputs import Niimg, as_niimg, require_niimg
from sharedmask.maskers.labels import SharedLabelsMasker
from sharedmask.maskers.maps import SharedMapsMasker
from sharedmask.maskers.nifti import SharedNiftiMasker
from sharedmask.system import settings
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.process import effective_n_jobs
from sharedmask.workers import pool

_COPIES = 6  # of a run's signals while they are cleaned, as float64
_RUN_BYTES = 80 * 2**20  # of a worker and its buffers


class ManyRuns:
    """What is asked of several runs: a worker reads each, as many at a time as memory allows."""

    n_jobs: int | None
    n_elements_: int
    memory_limit: int | float | str | None

    def _for_nilearn(self) -> dict[str, Any]:
        parameters: dict[str, Any] = super()._for_nilearn()  # type: ignore[misc]
        return parameters | {"n_jobs": effective_n_jobs(self.n_jobs)}  # which it takes as a number alone

    def _opened(self, imgs: Any) -> Any:
        return [as_niimg(one) for one in imgs] if isinstance(imgs, list | tuple) else as_niimg(imgs)

    def transform(self, imgs: Any, confounds: Any = None, sample_mask: Any = None) -> Any:
        """Extract the signals of each run.

        Parameters
        ----------
        imgs : list of SharedImage, Handle, path, niimg, or list or glob pattern of 3D ones; or one of those
            The runs, or one.
        confounds : list with one entry per run, optional
            For :func:`nilearn.signal.clean`.
        sample_mask : list with one entry per run, optional
            The volumes to keep.

        Returns
        -------
        list of ndarray or of data frame, (n_timepoints, n_elements)
            One per run; not in a list, if one run was given that is in none.
        """
        check_is_fitted(self)
        # Past what makes a data frame of all that comes back, which is one of each run.
        transform = super(SharedMasker, self).transform  # type: ignore[misc]
        return transform(self._opened(imgs), confounds=confounds, sample_mask=sample_mask)

    def transform_imgs(
        self,
        imgs_list: Any,
        confounds: Any = None,
        *,
        n_jobs: int | None = 1,
        sample_mask: Any = None,
        copy: bool = True,
    ) -> list[Any]:
        """Extract the signals of each run.

        Parameters
        ----------
        imgs_list : list of SharedImage, Handle, path, niimg, or list or glob pattern of 3D ones
            The runs.
        confounds : list with one entry per run, optional
            For :func:`nilearn.signal.clean`.
        n_jobs : int, optional
            Runs at a time, as far as memory allows; -1 for all CPUs.
        sample_mask : list with one entry per run, optional
            The volumes to keep.
        copy : bool
            Not used.

        Returns
        -------
        list of ndarray, (n_timepoints, n_elements)
            One per run.
        """
        check_is_fitted(self)
        runs = [require_niimg(run) for run in imgs_list]
        given = _each(confounds, runs, "confounds"), _each(sample_mask, runs, "sample_mask")
        calls = list(zip(runs, *given, strict=True))
        jobs = min(effective_n_jobs(n_jobs), len(runs), self._fitting(runs))
        if jobs > 1 and pool.can_start_processes() and settings.current().shared_memory:
            made = pool.run_processes(_signals, (self,), calls, jobs, preload=CLEANING_MODULES)
        else:
            made = [_signals(self, *call) for call in calls]
        if made:
            vars(self).update(made[-1][1])
        return [signals for signals, _ in made]

    def _fitting(self, runs: Sequence[Niimg]) -> int:
        """How many runs go together; one is refused by its own plan."""
        longest = max((run.shape[3] for run in runs if len(run.shape) == 4), default=1)
        each = _RUN_BYTES + _COPIES * 8 * longest * self.n_elements_
        return max(1, MemoryBudget.here(self.memory_limit).limit // each)


def _each(given: Any, runs: Sequence[Niimg], name: str) -> list[Any]:
    """One of them for each run, in the list that a run's own call takes."""
    if given is None:
        return [None] * len(runs)
    if len(given) != len(runs):
        raise ValueError(f"number of {name} ({len(given)}) unequal to number of images ({len(runs)}).")
    return [None if one is None else [one] for one in given]


def _signals(masker: Any, run: Niimg, confounds: Any, sample_mask: Any) -> tuple[Any, dict[str, Any]]:
    """A run's signals, and what the masker learnt from it."""
    before = dict(vars(masker))
    signals = masker.transform(run, confounds=confounds, sample_mask=sample_mask)
    return signals, {name: new for name, new in vars(masker).items() if new is not before.get(name)}


def _with_jobs(masker: Masker) -> Masker:
    """The class with ``n_jobs`` besides the parameters of the masker of one run, and nilearn's defaults."""
    bases: tuple[Any, ...] = masker.__bases__
    _, one, of_nilearn = bases
    nilearns = inspect.signature(of_nilearn).parameters
    own = inspect.signature(one.__init__).parameters.values()
    known = [given.replace(default=nilearns.get(given.name, given).default) for given in own]
    jobs = inspect.Parameter("n_jobs", inspect.Parameter.KEYWORD_ONLY, default=1, annotation="int | None")
    signature = inspect.Signature([*known, jobs])

    @functools.wraps(one.__init__)
    def init(*given: Any, **named: Any) -> None:
        bound = signature.bind(*given, **named)
        bound.apply_defaults()
        masker, n_jobs = bound.arguments.pop("self"), bound.arguments.pop("n_jobs")
        one.__init__(masker, **bound.arguments)
        masker.n_jobs = n_jobs

    init.__signature__ = signature  # type: ignore[attr-defined]
    masker.__init__ = init  # type: ignore[misc]
    return masker


@documented
@_with_jobs
class SharedMultiNiftiMasker(ManyRuns, SharedNiftiMasker, MultiNiftiMasker):
    """nilearn's ``MultiNiftiMasker`` over shared or streamed images: one mask, many runs.

    The voxels of each run are read in one pass, by a worker of its own. Parameters, values and warnings are
    those of :class:`nilearn.maskers.MultiNiftiMasker`.

    Parameters
    ----------
    n_jobs : int or None, default=1
        Runs at a time, as far as memory allows; -1 for all CPUs. The numbers do not depend on it.

    Notes
    -----
    A run on another grid than the mask is resampled to it; nilearn resamples it to the first run's before.
    ``dtype`` is that of all signals; nilearn leaves it out where several runs are given.

    Examples
    --------
    >>> import nibabel as nib, numpy as np
    >>> runs = [nib.Nifti1Image(np.full((2, 3, 4, n), n, dtype="int16"), np.eye(4)) for n in (5, 10)]
    >>> mask = nib.Nifti1Image(np.ones((2, 3, 4), dtype="uint8"), np.eye(4))
    >>> masker = SharedMultiNiftiMasker(mask, standardize=None).fit()
    >>> [signals.shape for signals in masker.transform(runs)]
    [(5, 24), (10, 24)]
    """


@documented
@_with_jobs
class SharedMultiLabelsMasker(ManyRuns, SharedLabelsMasker, MultiNiftiLabelsMasker):
    """nilearn's ``MultiNiftiLabelsMasker`` over shared or streamed images: one atlas, many runs.

    Parameters, values and warnings are those of :class:`nilearn.maskers.MultiNiftiLabelsMasker`.

    Parameters
    ----------
    n_jobs : int or None, default=1
        Runs at a time, as far as memory allows; -1 for all CPUs. The numbers do not depend on it.

    Notes
    -----
    After ``transform`` the table and the atlas are those of the last run, as in nilearn with one job.

    Examples
    --------
    >>> import nibabel as nib, numpy as np
    >>> runs = [nib.Nifti1Image(np.full((2, 3, 4, n), n, dtype="int16"), np.eye(4)) for n in (5, 10)]
    >>> atlas = nib.Nifti1Image(np.arange(24, dtype="int16").reshape(2, 3, 4) % 3, np.eye(4))
    >>> masker = SharedMultiLabelsMasker(atlas, standardize=None).fit()
    >>> [signals.shape for signals in masker.transform(runs)]
    [(5, 2), (10, 2)]
    """


@documented
@_with_jobs
class SharedMultiMapsMasker(ManyRuns, SharedMapsMasker, MultiNiftiMapsMasker):
    """nilearn's ``MultiNiftiMapsMasker`` over shared or streamed images: maps with weights, many runs.

    Parameters, values (to 1e-6) and warnings are those of :class:`nilearn.maskers.MultiNiftiMapsMasker`.

    Parameters
    ----------
    n_jobs : int or None, default=1
        Runs at a time, as far as memory allows; -1 for all CPUs. The numbers do not depend on it.

    Examples
    --------
    >>> import nibabel as nib, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> runs = [nib.Nifti1Image(rng.normal(size=(4, 4, 4, n)), np.eye(4)) for n in (5, 10)]
    >>> maps = nib.Nifti1Image(rng.random((4, 4, 4, 3)), np.eye(4))
    >>> masker = SharedMultiMapsMasker(maps, standardize=None).fit()
    >>> [signals.shape for signals in masker.transform(runs)]
    [(5, 3), (10, 3)]
    """
