"""Figures of a run: pictures for its report, from plain arrays.

Covers: outlines of regions on an image, the carpet of their signals, coverage, memory over time.
Does not cover: pages (``report``), which numbers are shown.

Each function gives a PNG, as a ``data:`` URL where it is for a page, which then needs no other file.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedmask.typing import Array

_DPI = 150
_WIDTH = 6.4
_INK, _PAPER, _BLUE, _ORANGE = "#222222", "#ffffff", "#0b5fa5", "#d1570a"
_N_SLICES = 5
_FINER = 4
# Of the three rows of slices: what goes to the right, what goes up.
_PLANES = ((0, 1), (0, 2), (1, 2))
_MOST_ROWS = 1000


def outlines(image: Array, regions: Array, affine: Array) -> str:
    """Slices of ``image`` from three sides with the borders of the regions.

    Parameters
    ----------
    image : ndarray, (x, y, z)
    regions : ndarray of int, (x, y, z)
        0 outside of all regions, else the region's number.
    affine : ndarray, (4, 4)
    """
    sizes = _upright_sizes(affine)
    image, regions = _upright(image, affine), _upright(regions, affine)
    low, high = np.percentile(image[np.isfinite(image)], [2, 99.5])
    extents = [(sizes[a] * image.shape[a], sizes[b] * image.shape[b]) for a, b in _PLANES]
    heights = [height / width for width, height in extents]
    figure = _figure(_WIDTH, _WIDTH / _N_SLICES * sum(heights) * 1.06)
    rows = figure.subplots(3, _N_SLICES, height_ratios=heights)
    for row, axis, (width, height) in zip(rows, (2, 1, 0), extents, strict=True):
        for axes, number in zip(row, _slices(regions, axis), strict=True):
            shown = {"extent": (0, width, 0, height), "interpolation": "nearest"}
            limits = {"vmin": low, "vmax": max(high, low + 1e-9)}
            axes.imshow(_upright_slice(image, axis, number), cmap="gray", **limits, **shown)
            borders = _borders(_upright_slice(regions, axis, number))
            axes.imshow(borders, cmap="turbo", vmin=1, vmax=max(regions.max(), 2), **shown)
            axes.set_axis_off()
    return _data_url(figure)


def _upright(volume: Array, affine: Array) -> Array:
    from nibabel.orientations import apply_orientation, io_orientation

    upright: Array = apply_orientation(volume, io_orientation(affine))
    return upright


def _upright_sizes(affine: Array) -> NDArray[np.float64]:
    """Voxel sizes in mm along left-right, back-front, down-up."""
    from nibabel.affines import voxel_sizes
    from nibabel.orientations import io_orientation

    sizes = np.empty(3)
    sizes[io_orientation(affine)[:, 0].astype(int)] = voxel_sizes(affine)
    return sizes


def _borders(regions: Array) -> Any:
    """Thin lines in the regions' numbers, masked elsewhere; (x, y) of a finer grid."""
    fine = np.kron(regions, np.ones((_FINER, _FINER), regions.dtype))
    edge = np.zeros(fine.shape, bool)
    edge[1:] |= fine[1:] != fine[:-1]
    edge[:, 1:] |= fine[:, 1:] != fine[:, :-1]
    # The line between a region and nothing lies on either side; it is the region's.
    numbers = np.maximum(fine, np.roll(fine, (1, 1), (0, 1)))
    return np.ma.masked_where(~edge | (numbers == 0), numbers)


def _slices(regions: Array, axis: int) -> NDArray[np.intp]:
    """Numbers of slices, evenly over where regions are."""
    others = tuple(other for other in range(3) if other != axis)
    inside = np.flatnonzero((regions != 0).any(axis=others))
    first, last = (inside[0], inside[-1]) if len(inside) else (0, regions.shape[axis] - 1)
    # Not the very ends, where a region is a few voxels.
    return np.linspace(first, last, _N_SLICES + 2).round().astype(np.intp)[1:-1]


def _upright_slice(volume: Array, axis: int, number: int) -> Array:
    """A slice as it is looked at: up is superior or anterior."""
    across: Array = np.take(volume, number, axis=axis)
    return across.T[::-1]


def carpet(signals: Array, t_r: float | None) -> str:
    """Regions from top to bottom, time from left to right, each standardized.

    Parameters
    ----------
    signals : ndarray, (n_timepoints, n_regions)
    t_r : float or None
        Seconds; without it the axis counts volumes.
    """
    shown = signals[:, :: -(-signals.shape[1] // _MOST_ROWS)].astype(np.float64)
    spread = shown.std(axis=0)
    shown = (shown - shown.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    figure = _figure(_WIDTH, 3)
    axes = figure.subplots()
    stop = len(signals) * (t_r or 1)
    extent = (0, stop, shown.shape[1], 0)
    axes.imshow(shown.T, aspect="auto", cmap="gray", vmin=-2, vmax=2, extent=extent, interpolation="nearest")
    axes.set_xlabel("time (s)" if t_r else "volume")
    axes.set_ylabel("region")
    return _data_url(figure)


def coverage(shares: Sequence[float]) -> str:
    """How many regions have which share of their voxels inside the image's mask."""
    figure = _figure(_WIDTH, 2.2)
    axes = figure.subplots()
    axes.hist(shares, bins=np.linspace(0, 1, 21), color=_BLUE)
    axes.set_xlabel("share of a region's voxels inside the mask")
    axes.set_ylabel("regions")
    axes.set_xlim(0, 1)
    return _data_url(figure)


def timeline(seconds: Sequence[float], nbytes: Sequence[float], limit: float | None = None) -> str:
    """Memory over time, with the limit that held."""
    figure = _figure(_WIDTH, 2.2)
    axes = figure.subplots()
    axes.fill_between(seconds, np.asarray(nbytes) / 2**20, color=_BLUE, alpha=0.3, linewidth=0)
    axes.plot(seconds, np.asarray(nbytes) / 2**20, color=_BLUE)
    if limit is not None and limit < 4 * max(nbytes, default=0):
        axes.axhline(limit / 2**20, color=_ORANGE, linestyle="--", label="limit")
        axes.legend(frameon=False)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("memory (MiB)")
    return _data_url(figure)


def matrix(values: Array, title: str) -> bytes:
    """A matrix of regions as a PNG; symmetric colours around 0.

    Parameters
    ----------
    values : ndarray, (n_regions, n_regions)
        NaN is left blank.
    title : str
    """
    off = values[~np.eye(len(values), dtype=bool)]
    most = float(np.nanmax(np.abs(off), initial=0.0)) if np.isfinite(off).any() else 1.0
    figure = _figure(_WIDTH, _WIDTH)
    axes = figure.subplots()
    shown = axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    axes.set_title(title, fontsize=8, wrap=True)
    axes.set_xlabel("region")
    figure.colorbar(shown, shrink=0.7)
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    # A figure of its own, not of pyplot, which keeps figures and may want a screen.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, facecolor=_PAPER, layout="constrained")


def _png(figure: Any) -> bytes:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _data_url(figure: Any) -> str:
    return "data:image/png;base64," + base64.b64encode(_png(figure)).decode("ascii")
