"""``python -m benchmarks scaling``: how the cost grows with masks, voxels, volumes, jobs and images.

Covers: the curves, what one mask more costs at both ends. Does not cover: pictures (``pictures``),
what other machines would do (``model``: ``--cores N``).

All points of a curve take turns, and results of the first and last are compared with numpy's.
"""

import argparse
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import data, jobs, machine, model, pictures, variants
from benchmarks.results import write_whole
from benchmarks.timing import Contender, Times, take_turns
from sharedmask import Grid, Regions, SharedImage, extract
from sharedmask.system.process import n_cpus

Array = NDArray[Any]

_MASKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_VOXELS = (10, 30, 100, 300, 1000, 3000, 10_000, 30_000)
_VOLUMES = (75, 150, 300, 600)
_JOBS = tuple(n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n < 4 * n_cpus())
"""Up to twice the cores."""
_IMAGES = (1, 2, 4, 8)
_PARTS = ("masks", "voxels", "jobs", "volumes", "images")
_JOBS_PANEL = "jobs"
_APART = "apart"
_OVERLAPPING_VOXELS = 100


@dataclass(frozen=True)
class Curve:
    """Seconds as one number grows."""

    panel: str
    """What grows."""
    name: str
    points: tuple[tuple[int, float], ...]
    gain: float = 0.0
    """Of two jobs over one, the median of the rounds."""
    apart: float = 0.0
    """Of two processes with half of the work each, if measured."""

    @property
    def first(self) -> float:
        """Seconds at the first point, per unit of what grows."""
        x, seconds = self.points[0]
        return seconds / x

    @property
    def last(self) -> float:
        """Seconds that one unit more costs at the other end."""
        (x0, y0), (x1, y1) = self.points[-2:]
        return (y1 - y0) / (x1 - x0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("--cores", type=int, metavar="N",
                        help="put the costs of one core through a model of a node with so many")  # fmt: skip
    parser.add_argument("--bandwidth", type=float, default=model.BANDWIDTH, metavar="BYTES",
                        help="per second, of that node's memory (default: %(default)g)")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("scaling"), metavar="FOLDER",
                        help="for scaling.csv, scaling.json and the picture (default: scaling)")  # fmt: skip
    parser.add_argument("--only", choices=_PARTS, help="what grows")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="put them into benchmarks.md there")
    parser.add_argument("--data", type=Path, default=data.default_folder(), metavar="FOLDER",
                        help="where generated runs are kept (default: %(default)s)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="1 round, every other point")


def run(arguments: argparse.Namespace) -> int:
    n_rounds, step = (1, 2) if arguments.quick else (arguments.repeats, 1)
    facts = machine.facts()
    print(machine.described(facts), flush=True)
    curves = list(_Scaling(arguments.data, n_rounds, step).curves(arguments.only))
    modelled = _modelled(arguments, facts)
    text = "\n".join([_slopes(curves), *modelled])
    _write(arguments.output.resolve(), curves, facts, text)
    if arguments.docs:
        from benchmarks import pages

        command = f"python -m benchmarks scaling --repeats {n_rounds}"
        if arguments.cores:
            command += f" --cores {arguments.cores} --bandwidth {arguments.bandwidth:g}"
        given = str(data.prepare(arguments.data))
        pages.show_scaling(arguments.docs.resolve(), arguments.output.resolve(), text, command, facts, given)
    print(text)
    return 0


def _modelled(arguments: argparse.Namespace, facts: dict[str, Any]) -> list[str]:
    if arguments.cores is None:
        return []
    dataset = data.prepare(arguments.data)
    return [model.described(model.measured(dataset), arguments.cores, arguments.bandwidth)]


def _slopes(curves: Sequence[Curve]) -> str:
    """What one costs at the beginning and one more at the end; of jobs, all times."""
    lines = [
        "| what grows | way | the first, each | at the end, one more | ratio |",
        "|---|---|---:|---:|---:|",
    ]
    for curve in curves:
        if curve.panel != _JOBS_PANEL:
            ratio = f"{curve.last / curve.first:.2f}"
            lines.append(
                f"| {curve.panel} | {curve.name} | {_ms(curve.first)} | {_ms(curve.last)} | {ratio} |"
            )
    of_jobs = [curve for curve in curves if curve.panel == _JOBS_PANEL]
    if not of_jobs:
        return "\n".join(lines) + "\n"
    counts = [str(x) for x, _ in of_jobs[0].points]
    lines += ["", f"| {_JOBS_PANEL} | {' | '.join(counts)} | 1 / 2 | apart | of that |"]
    lines.append(f"|---|{'---:|' * (len(counts) + 3)}")
    for curve in of_jobs:
        cells = [_ms(seconds) for _, seconds in curve.points]
        share = curve.gain / curve.apart if curve.apart else 0.0
        gains = [f"{gain:.2f}" if gain else "" for gain in (curve.gain, curve.apart, share)]
        lines.append(f"| {' | '.join([curve.name, *cells, *gains])} |")
    return "\n".join(lines) + "\n"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e3:.4f} ms"


def _write(folder: Path, curves: Sequence[Curve], facts: dict[str, Any], text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("what grows", "way", "number", "seconds"))
    writer.writerows((one.panel, one.name, x, seconds) for one in curves for x, seconds in one.points)
    write_whole(folder / "scaling.csv", table.getvalue())
    write_whole(folder / "scaling.json", json.dumps({"machine": facts, "slopes": text}, indent=1) + "\n")
    pictures.curves([(one.panel, one.name, one.points) for one in curves], folder / "scaling.png")


class _Scaling:
    """All curves on the generated run."""

    def __init__(self, folder: Path, n_rounds: int, step: int) -> None:
        self._folder = folder
        self._n_rounds = n_rounds
        self._step = step
        self._dataset = data.prepare(folder)
        self._data = variants.load_array(self._dataset.run)
        self._brain = np.argwhere(self._data[..., 0] != 0)

    def curves(self, only: str | None = None) -> Iterator[Curve]:
        resident = {"masks": self._masks, "voxels": self._voxels, "jobs": self._jobs}
        with SharedImage(self._dataset.run) as image:
            image.load()
            for part, of_image in resident.items():
                if only in (None, part):
                    yield from of_image(image)
        for part, of_files in {"volumes": self._volumes, "images": self._images}.items():
            if only in (None, part):
                yield from of_files()

    def _curve(
        self,
        panel: str,
        name: str,
        points: Sequence[int],
        call: Callable[[int], Any],
        right: Any = None,
        apart: Callable[[], Any] | None = None,
    ) -> Curve:
        """``right(x, result)`` judges the ends; ``apart`` does the work in two processes."""
        print(f"timing {panel}: {name}", flush=True)
        points = points[:: self._step] if self._step > 1 else points
        judged = {} if right is None else {x: partial(right, x) for x in (points[0], points[-1])}
        contenders = [Contender(str(x), partial(call, x), judged.get(x, lambda _: True)) for x in points]
        times = Times()
        if apart is not None:
            contenders.append(Contender(_APART, apart))
        take_turns(contenders, self._n_rounds, times)
        if times.wrong:
            raise ValueError(f"{panel}, {name}: other signals than numpy's at {', '.join(times.wrong)}")
        gain, most = (times.ratio("1", x) if times.knows("1", x) else 0.0 for x in ("2", _APART))
        return Curve(panel, name, tuple((x, times.median(str(x))) for x in points), gain, most)

    # --- masks and voxels ---

    def _masks(self, image: SharedImage) -> Iterator[Curve]:
        for kind, masks in (("overlapping", self._overlapping()), ("disjoint", self._disjoint())):
            grid = Grid(image.shape[:3], image.affine)
            regions = {n: Regions.from_any(masks[:n], grid) for n in _MASKS}
            right = partial(self._equal, masks)
            panel = f"masks, {kind}, of {int(masks[0].sum())} voxels"
            calls: dict[str, Callable[[int], Any]] = {
                "resident, arrays": lambda n, masks=masks: image.mask_parallel(masks[:n]),
                "resident, Regions": lambda n, regions=regions: image.mask_parallel(regions[n]),
                "extract, arrays": lambda n, masks=masks: extract(self._dataset.run, masks[:n]),
            }
            for name, call in calls.items():
                yield self._curve(panel, name, _MASKS, call, right)

    def _equal(self, masks: Sequence[Array], n: int, found: Sequence[Array]) -> bool:
        ends = (0, n - 1)
        return all(np.array_equal(found[i], self._data[masks[i]].T) for i in ends)

    def _overlapping(self) -> list[Array]:
        """The voxels nearest to centres drawn in the brain."""
        return list(self._nearest([_OVERLAPPING_VOXELS] * _MASKS[-1]))

    def _disjoint(self) -> list[Array]:
        """Neighbours along the last axis, every voxel of the brain once."""
        parts = np.array_split(self._brain, _MASKS[-1])
        return [self._mask(part) for part in parts]

    def _nearest(self, sizes: Sequence[int]) -> Iterator[Array]:
        from scipy.spatial import cKDTree

        tree = cKDTree(self._brain)
        centres = np.random.default_rng(0).choice(self._brain, len(sizes))
        for centre, size in zip(centres, sizes, strict=True):
            yield self._mask(self._brain[np.atleast_1d(tree.query(centre, size)[1])])

    def _mask(self, voxels: Array) -> Array:
        mask = np.zeros(self._data.shape[:3], bool)
        mask[tuple(voxels.T)] = True
        return mask

    def _voxels(self, image: SharedImage) -> Iterator[Curve]:
        masks = dict(zip(_VOXELS, self._nearest(_VOXELS), strict=True))

        def right(n: int, found: Sequence[Array]) -> bool:
            return np.array_equal(found[0], self._data[masks[n]].T)

        panel = "voxels of one mask"
        yield self._curve(panel, "resident", _VOXELS, lambda n: image.mask_parallel([masks[n]]), right)
        yield self._curve(panel, "data[mask]", _VOXELS, lambda n: [self._data[masks[n]].T], right)
        yield self._curve(panel, "extract", _VOXELS, lambda n: extract(self._dataset.run, [masks[n]]), right)

    # --- jobs, volumes, images ---

    def _jobs(self, image: SharedImage) -> Iterator[Curve]:
        panel, masks = _JOBS_PANEL, variants.load_masks(self._dataset.masks)
        right = {"20 masks": partial(self._all_equal, masks)}
        yield self._curve(panel, "decompressing, by itself", _JOBS, partial(_decompress, self._short().run))
        with jobs.apart(image, self._dataset) as apart:
            for name, call in jobs.operations(image, self._dataset).items():
                yield self._curve(panel, name, _JOBS, call, right.get(name), partial(apart, name))
        for name, asked in {"extract": {}, "extract, cleaned": jobs.CLEANING}.items():
            passing = partial(extract, self._dataset.run, masks, **asked)
            yield self._curve(panel, name, _JOBS, lambda n, passing=passing: passing(n_jobs=n))

    def _short(self) -> data.Dataset:
        x, y, z, _ = self._dataset.shape
        return data.prepare(self._folder, data.Spec(shape=(x, y, z, _VOLUMES[0])))

    def _all_equal(self, masks: Sequence[Array], _: int, found: Sequence[Array]) -> bool:
        return self._equal(masks, len(masks), found)

    def _volumes(self) -> Iterator[Curve]:
        x, y, z, _ = self._dataset.shape
        runs = {t: data.prepare(self._folder, data.Spec(shape=(x, y, z, t))).run for t in _VOLUMES}
        masks = variants.load_masks(self._dataset.masks)
        panel = "volumes, 20 masks"
        yield self._curve(panel, "extract", _VOLUMES, lambda t: extract(runs[t], masks))
        yield self._curve(panel, "load", _VOLUMES, lambda t: _load(runs[t]))
        yield self._curve(panel, "decompress", _VOLUMES, lambda t: variants.decompress(runs[t]))

    def _images(self) -> Iterator[Curve]:
        run = self._short().run
        masks = variants.load_masks(self._dataset.masks)

        def several(n: int) -> None:
            for _ in range(n):
                extract(run, masks)

        yield self._curve(f"images of {_VOLUMES[0]} volumes", "extract, in turn", _IMAGES, several)


def _decompress(run: Path, n_jobs: int) -> None:
    """As often as there are jobs at most: what more cores give those that share nothing."""
    with ThreadPoolExecutor(n_jobs) as threads:
        list(threads.map(variants.decompress, [run] * _JOBS[-1]))


def _load(run: Path) -> None:
    with SharedImage(run) as image:
        image.load()
