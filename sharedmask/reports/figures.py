"""Figures of a run: pictures for its report, from plain arrays.

Covers: the brain over time with its motion, outlines of regions on an image, the carpet of their signals,
coverage, matrices, memory over time; of a study distributions, coverage of all runs, thumbnails.
Does not cover: pages (``pages``), which numbers are shown (``quality``).

Each function gives a PNG, as a ``data:`` URL where it is for a page, which then needs no other file.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from sharedmask.reports.carpet import OTHER
from sharedmask.reports.quality import FD_THRESHOLD, Quality
from sharedmask.typing import Array, NDArray

_DPI = 185  # words are to be read where a page is 400 pixels wide
_WIDTH = 5.2
_INK, _PAPER, _BLUE, _ORANGE = "#222222", "#ffffff", "#0b5fa5", "#d1570a"
_THUMBNAIL = (160, 48)
_BELOW = 0.5  # inches for numbers and the name of an axis
_IN_A_LINE = 4  # names of a carpet's groups
_N_SLICES = 5
_FINER = 4
# Of the three rows of slices: what goes to the right, what goes up.
_PLANES = ((0, 1), (0, 2), (1, 2))
_MOST_ROWS = 1000


def outlines(image: Array, regions: Array, affine: Array) -> str:
    """Slices of ``image``, (x, y, z), from three sides with borders of ``regions``: their numbers, else 0."""
    from nibabel.affines import voxel_sizes
    from nibabel.orientations import apply_orientation, io_orientation

    upright = io_orientation(affine)
    sizes = voxel_sizes(affine)[np.argsort(upright[:, 0])]  # left-right, back-front, down-up
    image, regions = (apply_orientation(volume, upright) for volume in (image, regions))
    low, high = np.percentile(image[np.isfinite(image)], [2, 99.5])
    extents = [(sizes[a] * image.shape[a], sizes[b] * image.shape[b]) for a, b in _PLANES]
    heights = [height / width for width, height in extents]
    figure = _figure(_WIDTH, _WIDTH / _N_SLICES * sum(heights) * 1.03, 0.0, 0.0, 0.0)
    rows = figure.subplots(3, _N_SLICES, height_ratios=heights, gridspec_kw={"wspace": 0.04, "hspace": 0.04})
    for row, axis, (width, height) in zip(rows, (2, 1, 0), extents, strict=True):
        for axes, number in zip(row, _slices(regions, axis), strict=True):
            shown = {"extent": (0, width, 0, height), "interpolation": "nearest"}
            limits = {"vmin": low, "vmax": max(high, low + 1e-9)}
            axes.imshow(_upright_slice(image, axis, number), cmap="gray", **limits, **shown)
            borders = _borders(_upright_slice(regions, axis, number))
            axes.imshow(borders, cmap="turbo", vmin=1, vmax=max(regions.max(), 2), **shown)
            axes.set_axis_off()
    return as_data_url(figure)


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


def brain(quality: Quality, groups: Sequence[tuple[str, int]], t_r: float | None) -> str:
    """The carpet of the brain, its framewise displacement and DVARS above it.

    From top to bottom ``groups`` tells what the voxels of ``quality`` are, and how many. Without ``t_r``, in
    seconds, the axis counts volumes.
    """
    lines = -(-len(groups) // _IN_A_LINE)
    figure = _figure(_WIDTH, 4.5 + 0.2 * lines, below=_BELOW + 0.1 + 0.2 * lines)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1, 3.4))
    volumes = (np.arange(len(quality.kept)) + 0.5) * (t_r or 1)
    _course(top, volumes, quality.fd, "FD (mm)", FD_THRESHOLD)
    _course(middle, volumes, quality.std_dvars, "DVARS", None)
    for axes in (top, middle):
        _mark_dropped(axes, quality.kept, t_r or 1)
    _show_carpet(bottom, quality.values, t_r, np.ones(len(quality.values), bool))
    bottom.set_yticks([])
    _mark_groups(figure, bottom, groups)
    bottom.set_xlim(0, len(quality.values) * (t_r or 1))
    return as_data_url(figure)


def _show_carpet(axes: Any, values: Array, t_r: float | None, kept: Array) -> None:
    """Columns of (n_kept, n_columns) values from top to bottom, each standardized, where they were kept."""
    columns = values[:, :: -(-values.shape[1] // _MOST_ROWS)]
    shown = np.full((len(kept), columns.shape[1]), np.nan)
    shown[kept] = _steady(columns)
    extent = (0, len(kept) * (t_r or 1), values.shape[1], 0)
    axes.imshow(shown.T, aspect="auto", cmap="gray", vmin=-2, vmax=2, extent=extent, interpolation="nearest")
    axes.set_xlabel("time (s)" if t_r else "volume")
    _count(axes.yaxis)


def _count(*axes: Any) -> None:
    """Have axes that count things show whole numbers."""
    for axis in axes:
        axis.get_major_locator().set_params(integer=True)


def _mark_groups(figure: Any, axes: Any, groups: Sequence[tuple[str, int]]) -> None:
    """A bar of colours beside a carpet, lines between its groups, and what they are below it."""
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    colours = colormaps["tab10" if len(groups) <= 10 else "tab20"]
    bar = axes.inset_axes((-0.045, 0, 0.03, 1))
    ends = np.cumsum([0, *(count for _, count in groups)])
    shown = []
    for place, (name, count) in enumerate(groups):
        colour = "#bbbbbb" if name == OTHER else colours(place % colours.N)
        bar.axhspan(ends[place], ends[place + 1], color=colour, linewidth=0)
        shown.append(Patch(color=colour, label=name))
        if place and count:
            axes.axhline(ends[place], color=_PAPER, linewidth=1)
    bar.set_ylim(max(ends[-1], 1), 0)
    bar.set_axis_off()
    placed = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.0), "ncols": min(_IN_A_LINE, len(groups))}
    figure.legend(handles=shown, frameon=False, fontsize=8, handlelength=1, columnspacing=1.2, **placed)


def _course(axes: Any, times: Array, values: Array | None, label: str, threshold: float | None) -> None:
    axes.set_ylabel(label)
    if values is None or not np.isfinite(values).any():
        axes.text(0.5, 0.5, "not known", transform=axes.transAxes, ha="center", va="center", color="#777777")
        axes.set_yticks([])
        return
    axes.plot(times, values, color=_BLUE, linewidth=0.8)
    if threshold is not None:
        axes.axhline(threshold, color=_ORANGE, linestyle="--", linewidth=0.8)
    axes.set_ylim(0, max(1.1 * float(np.nanmax(values)), 1.2 * (threshold or 1.0)))


def _mark_dropped(axes: Any, kept: Array, step: float) -> None:
    """Shade the volumes that signals lack."""
    edges = np.flatnonzero(np.diff(np.r_[False, ~kept, False].astype(int)))
    for start, stop in edges.reshape(-1, 2) * step:
        axes.axvspan(start, stop, color=_ORANGE, alpha=0.25, linewidth=0)


def _steady(values: Array) -> NDArray[np.float64]:
    """Each column without its mean and linear trend, its spread 1."""
    times = np.linspace(-1, 1, len(values))
    centred = values - values.mean(axis=0, dtype=np.float64)
    if len(values) > 2:
        centred = centred - np.outer(times, times @ centred / (times @ times))
    spread = centred.std(axis=0)
    return np.asarray(centred / np.where(spread > 0, spread, 1.0))


def thumbnail(values: Array) -> bytes:
    """A small carpet of (n_timepoints, n_voxels) values, as PNG."""
    from matplotlib.image import imsave

    wide, down = _THUMBNAIL
    across = np.linspace(0, len(values) - 1, wide).round().astype(int)
    buffer = io.BytesIO()
    spans = np.array_split(_steady(values), down, axis=1)
    shown = np.stack([span.mean(axis=1) for span in spans if span.shape[1]])[:, across]
    shown = shown / (shown.std() or 1.0)
    unsigned: dict[str, Any] = {"Software": None}
    imsave(buffer, shown, cmap="gray", vmin=-2, vmax=2, format="png", metadata=unsigned)
    return buffer.getvalue()


def distribution(values: Sequence[float], label: str, threshold: float | None = None) -> str:
    """How many runs have which value."""
    figure = _figure(_WIDTH, 2.2)
    axes = figure.subplots()
    axes.hist(values, bins=min(30, max(5, len(values) // 2)), color=_BLUE)
    if threshold is not None and threshold < 2 * max(values):
        axes.axvline(threshold, color=_ORANGE, linestyle="--")
    axes.set_xlabel(label)
    axes.set_ylabel("runs")
    _count(axes.yaxis)
    return as_data_url(figure)


def coverage_of_runs(shares: Array) -> str:
    """Coverage of regions, from top to bottom, in runs, from left to right; NaN where a run lacks one."""
    figure = _figure(_WIDTH, 3.2, right=0.6)
    axes = figure.subplots()
    shown = axes.imshow(shares, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("run, in the order of the table by name")
    axes.set_ylabel("region")
    _count(axes.xaxis, axes.yaxis)
    figure.colorbar(shown, label="coverage")
    return as_data_url(figure)


def carpet(signals: Array, t_r: float | None, kept: Array) -> str:
    """Regions' signals, (n_kept, n_regions), from top to bottom, time from left to right.

    ``kept``: which volumes of the run they have, (n_timepoints,); the others are shaded.
    """
    figure = _figure(_WIDTH, 3)
    axes = figure.subplots()
    _show_carpet(axes, signals, t_r, kept)
    _mark_dropped(axes, kept, t_r or 1)
    axes.set_ylabel("region")
    return as_data_url(figure)


def coverage(shares: Sequence[float]) -> str:
    """How many regions have which share of their voxels inside the image's mask."""
    figure = _figure(_WIDTH, 2.2)
    axes = figure.subplots()
    axes.hist(shares, bins=np.linspace(0, 1, 21), color=_BLUE)
    axes.set_xlabel("share of a region's voxels inside the mask")
    axes.set_ylabel("regions")
    _count(axes.yaxis)
    axes.set_xlim(0, 1)
    return as_data_url(figure)


def timeline(seconds: Sequence[float], nbytes: Sequence[float], limit: float | None = None) -> str:
    """Memory over time, with the limit that held."""
    figure = _figure(_WIDTH, 2.2, left=0.95)
    axes = figure.subplots()
    axes.fill_between(seconds, np.asarray(nbytes) / 2**20, color=_BLUE, alpha=0.3, linewidth=0)
    axes.plot(seconds, np.asarray(nbytes) / 2**20, color=_BLUE)
    if limit is not None and limit < 4 * max(nbytes, default=0):
        axes.axhline(limit / 2**20, color=_ORANGE, linestyle="--", label="limit")
        axes.legend(frameon=False)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("memory (MiB)")
    return as_data_url(figure)


def matrix(values: Array, title: str) -> bytes:
    """A matrix of regions as a PNG; symmetric colours around 0, which the largest values do not set.

    NaN is left blank.
    """
    off = values[~np.eye(len(values), dtype=bool)]
    off = np.abs(off[np.isfinite(off)])
    most = float(np.percentile(off, 99)) if off.size and off.any() else 1.0
    above = 0.4 if title else 0.1
    figure = _figure(_WIDTH, 0.82 * _WIDTH - 0.4 + above, left=0.5, right=0.4, top=above)
    axes = figure.subplots()
    shown = axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    axes.set_title(title, fontsize=8, wrap=True)
    axes.set_xlabel("region")
    _count(axes.xaxis, axes.yaxis)
    figure.colorbar(shown, shrink=0.7)
    return _png(figure)


def _figure(
    width: float,
    height: float,
    left: float = 0.75,
    right: float = 0.15,
    top: float = 0.1,
    below: float = _BELOW,
) -> Any:
    """One with margins in inches: to let matplotlib find them takes as long as to draw."""
    # A figure of its own, not of pyplot, which keeps figures and may want a screen.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=_PAPER)
    bottom = below if left else 0.0
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    return figure


def _png(figure: Any) -> bytes:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    return buffer.getvalue()


def data_url(png: bytes) -> str:
    """For a page, which then needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def bare_figure(width: float, height: float) -> Any:
    """One without margins."""
    return _figure(width, height, 0.0, 0.0, 0.0, 0.0)


def as_data_url(figure: Any) -> str:
    """A figure for a page."""
    return data_url(_png(figure))
