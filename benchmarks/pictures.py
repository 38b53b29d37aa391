"""Pictures: memory over time, bars with limits, curves.

Covers: drawing and writing PNG files. Does not cover: what is drawn (``results``, ``scaling``).
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Limits, Result

_OURS, _THEIRS, _MPROF, _DISK, _LIMIT = "#1f6fb4", "#6b6b6b", "#e08a2e", "#5a9e4b", "#b3262a"
_COLUMNS = 4
_DPI = 75
_COLOURS = 128


def timeline(results: Sequence[Result], path: Path) -> None:
    """One panel per way, all with the same scale of memory."""
    n_rows = math.ceil(len(results) / _COLUMNS)
    figure = _figure(14, 2.1 * n_rows + 0.8)
    panels = list(figure.subplots(n_rows, _COLUMNS, sharey=True, squeeze=False).flat)
    for axes, result in zip(panels, results, strict=False):
        _panel(axes, result)
    for axes in panels[len(results) :]:
        axes.set_axis_off()
    told = max(panels, key=lambda axes: len(axes.lines))
    figure.legend(*told.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.supylabel("memory, GB", fontsize="medium")
    _save(figure, path)


def _panel(axes: Any, result: Result) -> None:
    color = _OURS if result.ours else _THEIRS
    axes.set_title(result.name, fontsize="medium", color=color)
    axes.spines[["top", "right"]].set_visible(False)
    if result.peak is None:
        text = result.verdict.replace(": ", ":\n", 1).replace(", ", ",\n")
        axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, fontsize="small")
        axes.set_xticks([])
        return
    seconds = [sample.seconds for sample in result.samples]
    axes.plot(*_gigabytes(result.mprof), color=_MPROF, label="mprof: resident sizes, summed")
    held = [sample.held / 1e9 for sample in result.samples]
    axes.fill_between(seconds, held, color=color, alpha=0.3)
    axes.plot(seconds, held, color=color, label="held: PSS and shared memory once")
    if result.spilled:
        axes.plot(seconds, [s.spilled / 1e9 for s in result.samples], color=_DISK, ls="--", label="on disk")
    text = f"{result.peak / 1e9:.2f} GB held, {_brief(result.seconds)}"
    axes.text(0.98, 0.92, text, ha="right", transform=axes.transAxes, fontsize="small")
    axes.set_xlim(0, seconds[-1])


def _gigabytes(series: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [at for at, _ in series], [nbytes / 1e9 for _, nbytes in series]


def _brief(seconds: float | None) -> str:
    if seconds is None:
        return "no time"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2f} s"


def bars(results: Sequence[Result], limits: Limits, path: Path) -> None:
    """Time and memory of each way, with lines at what none can do without."""
    figure = _figure(14, 0.27 * len(results) + 1.5)
    times, memory = figure.subplots(1, 2, sharey=True)
    for place, result in enumerate(results):
        color = _OURS if result.ours else _THEIRS
        _bar(times, place, result.seconds, color, result.verdict, _brief)
        peak = None if result.peak is None else result.peak / 1e9
        _bar(memory, place, peak, color, "", lambda gb: f"{gb:.2f}")
        if result.state == "skipped":
            needed = result.projected / 1e9
            memory.barh(place, needed, facecolor="none", edgecolor=color, hatch="///")
            _label(memory, place, needed, f"{needed:.0f}")
    times.set_yticks(range(len(results)), [f"{one.name} ({one.n_jobs})" for one in results])
    times.invert_yaxis()
    _lines(times, {"decompress only": limits.decompress, "copy the signals": limits.copy})
    _lines(memory, {"the run, once": limits.image / 1e9, "the signals": limits.signals / 1e9})
    times.set(xscale="log", xlabel="seconds; way (jobs)")
    memory.set(xscale="log", xlabel="peak of held memory, GB; hatched: projected, not run")
    _save(figure, path)


def _bar(axes: Any, place: int, value: float | None, color: str, otherwise: str, said: Any) -> None:
    if value is None:
        axes.text(0.01, place, otherwise.partition(":")[0], transform=axes.get_yaxis_transform(), va="center",
                  fontsize="small", color=color)  # fmt: skip
        return
    axes.barh(place, value, color=color)
    _label(axes, place, value, said(value))


def _label(axes: Any, place: int, value: float, text: str) -> None:
    axes.annotate(text, (value, place), (3, 0), textcoords="offset points", va="center", fontsize="small")


def _lines(axes: Any, limits: dict[str, float]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    for name, value in limits.items():
        axes.axvline(value, color=_LIMIT, ls="--", lw=1)
        axes.annotate(name, (value, 1), (2, 2), xycoords=("data", "axes fraction"),
                      textcoords="offset points", color=_LIMIT, fontsize="small")  # fmt: skip


def curves(found: Sequence[tuple[str, str, Sequence[tuple[int, float]]]], path: Path) -> None:
    """(panel, name, points) each; both axes are logarithmic."""
    panels = list(dict.fromkeys(panel for panel, _, _ in found))
    figure = _figure(14, 3.2 * math.ceil(len(panels) / 3))
    drawn = list(figure.subplots(math.ceil(len(panels) / 3), 3, squeeze=False).flat)
    for axes, panel in zip(drawn, panels, strict=False):
        for name, points in ((name, points) for where, name, points in found if where == panel):
            amounts, seconds = zip(*points, strict=True)
            axes.plot(amounts, seconds, marker="o", ms=3, label=name)
        axes.set(xscale="log", yscale="log", xlabel=panel, ylabel="seconds")
        told = amounts[:: math.ceil(len(amounts) / 6)]
        axes.set_xticks(told, [f"{amount:,}" for amount in told])
        axes.set_xticks([], minor=True)
        axes.legend(fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3,
                    columnspacing=0.8, handlelength=1, handletextpad=0.4)  # fmt: skip
        axes.spines[["top", "right"]].set_visible(False)
    for axes in drawn[len(panels) :]:
        axes.set_axis_off()
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    """As a small file: few colours are enough for lines."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DPI)
    Image.open(drawn).convert("RGB").quantize(_COLOURS).save(path, optimize=True)
