"""How frames were acquired: gradients of diffusion, timing of PET; read, and checked.

Covers: files of gradients, unit directions, volumes without weighting, shells, the timing that a sidecar
tells. Does not cover: other fields of frames (``metadata``), the frames (``dataset``).
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from sharedmask.errors import ParameterError
from sharedmask.sources.sidecar import read_json, sidecars
from sharedmask.typing import NDArray

Floats = NDArray[np.float64]

LOW_B = 50.0
"""Volumes of a smaller or equal b, in s/mm2, are not weighted."""
_OFF_UNIT = 1e-2  # of a direction's length: beyond, the length is part of b
_FEWEST = 6  # orientations of a tensor


def read_gradients(gradients_file: Any = None, *, bvec_file: Any = None, bval_file: Any = None) -> Floats:
    """(N, 4) gradients of a table of rows x, y, z, b, or of FSL's two files, in whatever orientation."""
    if (gradients_file is None) == (bvec_file is None) or (bvec_file is None) != (bval_file is None):
        raise ParameterError("gradients are one gradients_file, or bvec_file and bval_file")
    if gradients_file is not None:
        table = _table(gradients_file)
        return table if table.shape[1] == 4 else table.T
    directions, b = _table(bvec_file), _table(bval_file).ravel()
    directions = directions.T if directions.shape[0] == 3 and len(directions) != len(b) else directions
    directions = directions.T if directions.shape == (3, 3) else directions  # FSL's orientation
    if directions.shape != (len(b), 3):
        raise ParameterError(f"{bvec_file} holds {directions.shape} numbers, for {len(b)} in {bval_file}")
    return np.column_stack([directions, b])


def _table(path: Any) -> Floats:
    try:
        return np.loadtxt(os.path.expanduser(os.fspath(path)), ndmin=2)
    except (OSError, ValueError) as error:
        raise ParameterError(f"{path} is no table of gradients: {error}") from error


def checked_gradients(given: Any, n_frames: int) -> Floats:
    """(N, 4) rows of a unit direction and b, as nifreeze has them, of an (N, 4) or (4, N) array.

    A direction whose length is off 1 by more than a hundredth is scaled to it, and b by its length; one of
    length 0 is a row of 0. Values that are not finite, a negative b, another shape, and fewer than six
    orientations are refused.

    Examples
    --------
    >>> checked_gradients([[2, 0, 0, 500]] + [[0, 1, i, 1000] for i in range(6)], 7)[0].tolist()
    [1.0, 0.0, 0.0, 1000.0]
    """
    table = np.array(given, np.float64)
    if table.ndim == 2 and table.shape != (n_frames, 4) and table.shape == (4, n_frames):
        table = table.T.copy()
    if table.shape != (n_frames, 4):
        raise ParameterError(f"gradients have shape {table.shape} where ({n_frames}, 4) is needed")
    if not np.isfinite(table).all():
        row = int(np.argwhere(~np.isfinite(table))[0, 0])
        raise ParameterError(f"gradients: row {row} is {table[row].tolist()}, which is not finite")
    if (table[:, 3] < 0).any():
        row = int(np.argmin(table[:, 3]))
        raise ParameterError(f"gradients: row {row} has b = {table[row, 3]:g}, which is negative")
    lengths = np.linalg.norm(table[:, :3], axis=1)
    off = (np.abs(lengths - 1) > _OFF_UNIT) & (lengths > np.finfo(np.float32).eps)
    table[off, 3] *= lengths[off]
    table[off, :3] /= lengths[off, None]
    table[lengths <= np.finfo(np.float32).eps] = 0
    weighted = int((table[:, 3] > LOW_B).sum())
    if weighted < _FEWEST:
        raise ParameterError(
            f"gradients: {weighted} orientations with b above {LOW_B:g}; {_FEWEST} are needed"
        )
    return table


def shells(b: Any, gap: float = 100.0) -> list[tuple[float, NDArray[np.intp]]]:
    """The median b of each shell, and its frames: values that follow each other by less than ``gap``.

    Examples
    --------
    >>> [(b, frames.tolist()) for b, frames in shells([990, 2000, 1005, 2010])]
    [(997.5, [0, 2]), (2005.0, [1, 3])]
    """
    values = np.asarray(b, np.float64)
    order = np.argsort(values, kind="stable")
    cuts = np.flatnonzero(np.diff(values[order]) >= gap) + 1
    return [(float(np.median(values[part])), np.sort(part)) for part in np.split(order, cuts)]


# --- PET -----------------------------------------------------------------------------------------


def read_timing(source: Any, temporal_file: Any = None) -> tuple[Floats, float]:
    """Middles of frames and the end of the last one, in seconds, of a JSON file.

    If none is named, the image's sidecars are looked at, the nearest first.
    """
    files = list(sidecars(Path(source))) if temporal_file is None else [Path(temporal_file)]
    for path in files:
        told = read_json(path)
        if "FrameTimesStart" in told:
            return _timing(path, told["FrameTimesStart"], told.get("FrameDuration"))
    raise ParameterError(f"{temporal_file or source}: no sidecar tells FrameTimesStart: give midframe")


def _timing(path: Path, starts: Any, durations: Any) -> tuple[Floats, float]:
    try:
        start = np.array(starts, np.float64)
        # Where durations are not told, the last frame is as long as the one before.
        duration = np.append(np.diff(start), np.diff(start)[-1:]) if durations is None else durations
        duration = np.array(duration, np.float64)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"{path}: FrameTimesStart and FrameDuration are no numbers: {error}") from error
    fits = start.ndim == 1 and start.shape == duration.shape
    if not (fits and (duration > 0).all() and np.isfinite(start).all()):
        counts = f"{start.shape} FrameTimesStart and {duration.shape} FrameDuration"
        raise ParameterError(f"{path}: {counts}, which must be as many, finite, and durations positive")
    return start + duration / 2, float(start[-1] + duration[-1])
