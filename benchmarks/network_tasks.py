"""What ``python -m benchmarks network`` measures, each task in a process of its own.

``python -m benchmarks.network_tasks TASK FOLDER ARGUMENTS [...]`` prints one line of JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.timing import Contender, Times, take_turns

_CUBE = (50, 60, 50)


def _lesions(count: int, arguments: SimpleNamespace, seed: int = 1) -> list[np.ndarray]:
    """Positions of compact lesions in the connectome."""
    starts = np.random.default_rng(seed).integers(0, arguments.voxels - arguments.lesion_voxels, count)
    return [np.arange(start, start + arguments.lesion_voxels) for start in starts]


def _images(count: int, arguments: SimpleNamespace) -> dict[str, Any]:
    import nibabel as nib

    images, indices = {}, _mask_indices(arguments)
    for number, positions in enumerate(_lesions(count, arguments)):
        data = np.zeros(_CUBE, "u1")
        data[tuple(indices[:, positions])] = 1
        images[f"lesion-{number:03d}"] = nib.Nifti1Image(data, np.eye(4))
    return images


def _mask_indices(arguments: SimpleNamespace) -> np.ndarray:
    return np.array(np.unravel_index(np.arange(arguments.voxels), _CUBE))


# --- tasks ---------------------------------------------------------------------------------------


def make(folder: Path, arguments: SimpleNamespace) -> None:
    """A connectome as the prior system writes it: a chunk per subject, gzip 1."""
    import h5py

    rng = np.random.default_rng(0)
    shape = (arguments.subjects, arguments.timepoints, arguments.voxels)
    with h5py.File(folder / "connectome.h5", "w") as file:
        series = file.create_dataset(
            "timeseries", shape, "f4", chunks=(1, *shape[1:]), compression="gzip", compression_opts=1
        )
        for number in range(arguments.subjects):
            common = rng.standard_normal((shape[1], 5), "f4") @ rng.standard_normal((5, shape[2]), "f4")
            series[number] = common + 3 * rng.standard_normal(shape[1:], "f4")
        file["mask_indices"], file["mask_affine"] = _mask_indices(arguments), np.eye(4)
        file.attrs["mask_shape"] = _CUBE


def speed(folder: Path, arguments: SimpleNamespace) -> dict[str, Any]:
    """Seconds of both ways, with the series in memory and from the file."""
    from sharedmask.network.mapper import FunctionalNetworkMapper

    path, seeds = folder / "connectome.h5", _lesions(arguments.lesions, arguments)
    images = _images(arguments.lesions, arguments)
    mapper = FunctionalNetworkMapper(n_jobs=arguments.n_jobs).fit(path)
    times = Times()
    with mapper.opened() as run:
        run(images, _ignored)  # reads the block, which the run keeps
        largest = _in_memory(run, _read(path), seeds, arguments.repeats, times)
    whole = [
        Contender("prior, whole", lambda: _prior(path, seeds)),
        Contender("ours, whole", lambda: mapper.transform(images)),
    ]
    take_turns(whole, arguments.repeats, times)
    names = [name.removeprefix("sgemm, ") for name in times.seconds if name.startswith("sgemm")]
    return {
        "seconds": {name: times.median(name) for name in times.seconds},
        "largest_difference": largest,
        "speed": times.ratio("prior", "ours"),
        "speed, whole": times.ratio("prior, whole", "ours, whole"),
        "least": times.ratio("sgemm, one core", "least, one core"),
        "of_products": {name: times.ratio(f"sgemm, {name}", f"ours, {name}") for name in names},
    }


def _in_memory(run: Any, series: np.ndarray, seeds: list[np.ndarray], repeats: int, times: Times) -> float:
    """Time the correlation alone; the largest difference of z."""
    ours = _Ours(run, seeds)
    contenders = [
        Contender("prior", lambda: _prior_moments(series, seeds)),
        Contender("ours", ours.moments),
        *_products(run, ours),
    ]
    take_turns(contenders, repeats, times)
    z = np.array([mean for mean, _ in ours.moments()])
    return float(np.abs(z - _prior_moments(series, seeds)[0]).max())


def memory(folder: Path, arguments: SimpleNamespace, who: str, n_lesions: str) -> dict[str, Any]:
    """Peak resident memory of a way from file to maps, above what imports take."""
    from sharedmask.network.batches import batch_process
    from sharedmask.network.mapper import FunctionalNetworkMapper

    path = folder / "connectome.h5"
    block = arguments.subjects * arguments.timepoints * arguments.voxels * 4
    mapper = FunctionalNetworkMapper(n_jobs=arguments.n_jobs).fit(path)
    _warm_up(folder, arguments)
    with mapper.opened() as run:
        batch_size = run.batch_size
    images = _images(int(n_lesions), arguments)
    before, started = _resident("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    if who == "ours":
        batch_process(images, mapper, on_batch=lambda batch: None)
    else:
        kept = _prior(path, _lesions(int(n_lesions), arguments))
        assert len(kept) == int(n_lesions)
    seconds = time.perf_counter() - started
    peak = _resident("VmHWM") - before
    return {"peak": peak, "block": block, "batch_size": batch_size, "seconds": seconds}


def _warm_up(folder: Path, arguments: SimpleNamespace) -> None:
    """Import and start whatever a run imports and starts."""
    small = SimpleNamespace(**{**vars(arguments), "subjects": 2, "timepoints": 20, "voxels": 500})
    (folder / "small").mkdir(exist_ok=True)
    make(folder / "small", small)
    from sharedmask.network.mapper import FunctionalNetworkMapper

    mapper = FunctionalNetworkMapper(n_jobs=arguments.n_jobs).fit(folder / "small/connectome.h5")
    mapper.transform(_images(2, small))
    _prior(folder / "small/connectome.h5", _lesions(2, small))


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


# --- ours, from the block on ---------------------------------------------------------------------


def _ignored(share: float) -> None:
    """Nobody watches."""


class _Ours:
    """The correlation of a run that holds its block."""

    def __init__(self, run: Any, seeds: list[np.ndarray]) -> None:
        self.run = run
        self.n_jobs = run._n_jobs
        self.seeds = [run._connectome.held(run._connectome.voxels[positions]) for positions in seeds]

    def moments(self, n_jobs: int | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
        """Mean of z and its summed squared deviations, per lesion."""
        self.run._n_jobs = n_jobs or self.n_jobs
        with threadpool_limits(1, user_api="blas"):
            moments: list[tuple[np.ndarray, np.ndarray]] = self.run._moments(self.seeds, _ignored)
            return moments


def _products(run: Any, ours: _Ours) -> list[Contender]:
    """Bare products of the run's series beside the run, on one core and on all."""
    from sharedmask.network import correlation

    series, rng = run._kept.series, np.random.default_rng(3)
    courses = rng.standard_normal((len(series), len(ours.seeds), series.shape[2]), dtype="f4")
    courses /= np.linalg.norm(courses, axis=2, keepdims=True)
    out = np.empty((len(ours.seeds), series.shape[1]), "f4")

    def bare(threads: int) -> None:
        with threadpool_limits(threads, user_api="blas"):
            for course, rows in zip(courses, series, strict=True):
                np.matmul(course, rows.T, out=out)

    def least() -> None:
        """Products, Fisher's z and its sums: the fewest passes of NumPy, in a core's cache."""
        n, step = series.shape[1], correlation.SPAN_VOXELS
        with threadpool_limits(1, user_api="blas"):
            for span in (slice(start, start + step) for start in range(0, n, step)):
                r = out[:, span]
                z, sums, squares = np.zeros((3, *r.shape))
                for course, rows in zip(courses, series, strict=True):
                    np.arctanh(np.matmul(course, rows[span].T), out=z)
                    sums += z
                    squares += np.square(z, out=z)

    return [
        Contender("least, one core", least),
        Contender("sgemm, one core", lambda: bare(1)),
        Contender("ours, one core", lambda: ours.moments(1)),
        Contender("sgemm, all cores", lambda: bare(ours.n_jobs)),
        Contender("ours, all cores", ours.moments),
    ]


# --- the prior approach --------------------------------------------------------------------------


def _read(path: Path) -> np.ndarray:
    import h5py

    with h5py.File(path, "r") as file:
        series: np.ndarray = file["timeseries"][:]
        return series


def _prior(path: Path, seeds: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Maps per lesion from the file, all kept."""
    from scipy.stats import t as student

    series = _read(path)
    n_subjects = len(series)
    means, squares = _prior_moments(series, seeds)
    found = []
    for z, square in zip(means, squares, strict=True):
        variance = np.maximum((square - z**2) * n_subjects / (n_subjects - 1), 0)
        error = np.sqrt(variance / n_subjects)
        t = np.divide(z, error, out=np.zeros_like(z), where=error > 0)
        p = 2 * student.sf(np.abs(t), n_subjects - 1)
        order = np.argsort(p)
        ranked = np.minimum.accumulate((p[order] * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1]
        fdr = np.empty_like(p)
        fdr[order] = np.clip(ranked, 0, 1)
        values = {"r": np.tanh(z), "z": z, "t": t, "p": p, "fdr": fdr, "threshold": fdr < 0.05}
        found.append({name: _volume(array) for name, array in values.items()})
    return found


def _volume(values: np.ndarray) -> np.ndarray:
    volume = np.zeros(_CUBE, np.float32)
    volume.reshape(-1)[: len(values)] = values
    return volume


def _prior_moments(series: np.ndarray, seeds: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Means of z and of z squared over subjects, (n_lesions, n_voxels)."""
    courses = np.stack([series[:, :, seed].mean(axis=2) for seed in seeds])
    courses = courses - courses.mean(axis=2, keepdims=True)
    centred = series - series.mean(axis=1, keepdims=True)
    lengths = np.sqrt(np.sum(centred**2, axis=1))
    r = np.matmul(courses.transpose(1, 0, 2), centred).transpose(1, 0, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = r / (np.sqrt(np.sum(courses**2, axis=2))[:, :, None] * lengths)
        z = np.arctanh(np.nan_to_num(r, nan=0.0, posinf=1.0, neginf=-1.0))
    z = np.nan_to_num(z, nan=0.0, posinf=3.0, neginf=-3.0).astype(np.float64)
    return z.mean(axis=1), (z**2).mean(axis=1)


def main(task: str, folder: str, arguments: str, *more: str) -> None:
    tasks: dict[str, Callable[..., Any]] = {"make": make, "speed": speed, "memory": memory}
    print(json.dumps(tasks[task](Path(folder), SimpleNamespace(**json.loads(arguments)), *more)))


if __name__ == "__main__":
    main(*sys.argv[1:])
