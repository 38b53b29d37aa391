"""Denoising: the confounds and kept volumes of a run, as nilearn's strategies choose them.

Covers: loading them, what is wrong with a table, which volumes are kept. Does not cover: finding the table
(``bids``), regressing it out (``cleaning``).
"""

from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedmask.errors import MissingFileError, ParameterError
from sharedmask.records import dataclass
from sharedmask.sources.names import Name
from sharedmask.study.bids import Run

STRATEGIES = ("simple", "scrubbing", "compcor", "ica_aroma")


@dataclass
class Denoising:
    """What a strategy takes out of one run.

    Attributes
    ----------
    strategy : str
    file : Path
        The table of confounds.
    columns : list of str
        Names of the confounds.
    kept : ndarray of int
        Numbers of the volumes that stay.
    n_timepoints : int
        Of the run.
    """

    strategy: str
    file: Path
    columns: list[str]
    kept: NDArray[np.intp] = field(repr=False)
    n_timepoints: int
    _confounds: Any = field(repr=False)

    @classmethod
    def load(cls, run: Run, strategy: str, n_timepoints: int) -> "Denoising":
        """The confounds that ``strategy`` wants of ``run``.

        Raises
        ------
        MissingFileError
            If the run has no table of confounds, or a link to none.
        ParameterError
            If the table lacks columns or rows, or no volume is kept; the table is named.
        """
        file = run.confounds
        if file is None:
            raise MissingFileError(f"{run.bold} has no ..._desc-confounds_timeseries.tsv beside it: "
                                   f"the denoising strategy {strategy} needs one")  # fmt: skip
        confounds, kept = _loaded(file, run.name, strategy)
        numbers = np.arange(n_timepoints) if kept is None else np.asarray(kept, np.intp)
        if not len(numbers):
            raise ParameterError(f"{file}: the denoising strategy {strategy} keeps none of "
                                 f"the {n_timepoints} volumes of {run.bold.name}")  # fmt: skip
        if len(confounds) != n_timepoints:
            raise ParameterError(
                f"{file} has {len(confounds)} rows for the {n_timepoints} volumes of {run.bold.name}"
            )
        return cls(strategy, file, list(map(str, confounds.columns)), numbers, n_timepoints, confounds)

    def take(self) -> Any:
        """The confounds, (n_timepoints, n_confounds), once: they are not kept until the run is done."""
        confounds, self._confounds = self._confounds, None
        return confounds

    @property
    def dropped(self) -> NDArray[np.intp]:
        """Numbers of the volumes that go."""
        return np.setdiff1d(np.arange(self.n_timepoints), self.kept)

    @property
    def sample_mask(self) -> NDArray[np.intp] | None:
        """:attr:`kept`; None if that is all."""
        return None if len(self.kept) == self.n_timepoints else self.kept


def _loaded(file: Path, name: Name, strategy: str) -> tuple[Any, Any]:
    from nilearn.interfaces.fmriprep import load_confounds_strategy

    # nilearn looks for the table beside an image, by that one's name.
    desc = name.entities.get("desc") if strategy == "ica_aroma" else "preproc"
    table = Name.parse(file)
    image = file.with_name(str(table.replace(desc=desc, suffix="bold", extension=".nii.gz")))
    try:
        confounds, kept = load_confounds_strategy(str(image), strategy)
    except Exception as error:
        text = " ".join(str(error).split())
        raise ParameterError(f"{file} does not serve the denoising strategy {strategy}: {text}") from error
    return confounds, kept
