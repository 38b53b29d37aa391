"""Executors: a real Dask cluster of processes, each in a program of its own."""

import os
import textwrap
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from children import python
from images import bold, niimg, random_masks, same_bits, save

from sharedmask import extract, extract_many
from sharedmask.errors import ParameterError

BEFORE = """
    import os, signal, sys, tempfile
    import nibabel, numpy as np
    from distributed import Client, LocalCluster
    from sharedmask import extract_many

    folder = sys.argv[1]
    runs = sorted(f"{folder}/{name}" for name in os.listdir(folder) if name.endswith("_bold.nii.gz"))
    masks = {name: f"{folder}/{name}.nii.gz" for name in "abc"}
    inside = {name: np.asarray(nibabel.load(path).dataobj) != 0 for name, path in masks.items()}
    done = []

    def keep(path, signals):
        values = np.asarray(nibabel.load(path).dataobj)
        for name, mask in inside.items():
            np.testing.assert_array_equal(signals[name], values[mask].T)
        done.append(path)

    def cluster():
        return LocalCluster(n_workers=2, threads_per_worker=1, processes=True,
                            dashboard_address="localhost:0", local_directory=tempfile.mkdtemp(dir=folder))
"""

KILLED = """
    if __name__ == "__main__":
        from sharedmask import MemoryMonitor
        with MemoryMonitor() as monitor, cluster() as local, Client(local) as client:
            def take(path, signals):
                keep(path, signals)
                if len(done) == 10:
                    os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)

            study = extract_many(runs, masks, executor=client.get_executor(), n_jobs=4, retries=3,
                                 on_result=take, on_error=lambda *_: None)
        failed = sorted(os.path.basename(path) for path in study.errors)
        print(monitor.peak, len(done), len(set(done)), *failed)
"""

RESTARTED = """
    if __name__ == "__main__":
        for attempt in range(2):
            done.clear()
            with cluster() as local, Client(local, timeout=5) as client:
                def take(path, signals):
                    keep(path, signals)
                    if attempt == 0 and len(done) == 20:
                        client.shutdown()

                study = extract_many(runs, masks, executor=client, n_jobs=4, retries=0,
                                     on_result=take, on_error=lambda *_: None, resume=f"{folder}/done.jsonl")
            print(len(done), len(study.skipped), *sorted(os.path.basename(path) for path in study.errors)[:2])
"""

CUT = ["sub-07_bold.nii.gz", "sub-40_bold.nii.gz"]


SMALL, LARGE = (20, 20, 10, 10), (50, 59, 50, 70)  # 80 KB and 20 MB


@pytest.fixture
def study(tmp_path, request):
    """A folder of 64 runs, two of them cut short, and masks."""
    shape, n_timepoints = request.param[:3], request.param[3]
    for number in range(64):
        path = save(tmp_path / f"sub-{number:02}_bold.nii.gz", bold((*shape, n_timepoints), seed=number))
        if path.name in CUT:
            os.truncate(path, path.stat().st_size // 2)
    for name, mask in zip("abc", random_masks(3, shape=shape), strict=True):
        save(tmp_path / f"{name}.nii.gz", mask.astype("uint8"))
    return tmp_path


def run(script, study, tmp_path):
    path = tmp_path / "program.py"

    path.write_text(textwrap.dedent(BEFORE) + textwrap.dedent(script))
    answer = python(str(path), study, how="-u")
    assert answer.returncode == 0, answer.stderr[-3000:]
    return [line.split() for line in answer.stdout.splitlines()]


needs_dask = pytest.mark.skipif(find_spec("distributed") is None, reason="needs Dask")
sizes = pytest.mark.parametrize(
    "study", [SMALL, pytest.param(LARGE, marks=pytest.mark.slow)], indirect=True, ids=["small", "20 MB"]
)


def test_a_client_is_as_good_as_its_executor():
    masks = random_masks(2)
    with ThreadPoolExecutor(1) as executor:
        client = SimpleNamespace(get_executor=lambda: executor, submit=lambda task: 1 / 0)
        found = extract_many({"run": niimg(bold())}, masks, executor=client).results["run"]
    for got, expected in zip(found, extract(niimg(bold()), masks), strict=True):
        same_bits(got, expected)


@pytest.mark.parametrize("executor", [4, "threads", "tcp://localhost:8786", object])
def test_what_is_no_executor_is_refused(executor):
    with pytest.raises(ParameterError, match=r"executor=.* is none: give a concurrent.futures.Executor, or"):
        extract_many({"run": niimg(bold())}, random_masks(1), executor=executor)


@pytest.mark.long
@needs_dask
@sizes
def test_a_killed_worker_costs_nothing(study, tmp_path):
    ((peak, done, different, *failed),) = run(KILLED, study, tmp_path)
    assert done == different == "62" and failed == CUT
    # Dask itself takes most: its parent, its two nannies and workers, and the one that is started anew.
    assert int(peak) < 800 * 2**20


@pytest.mark.long
@needs_dask
@sizes
def test_a_scheduler_that_ends_costs_only_what_was_not_done(study, tmp_path):
    """A new cluster and the same call do what is left, and nothing twice."""
    (first, none, *_), (second, skipped, *failed) = run(RESTARTED, study, tmp_path)
    assert 20 <= int(first) < 62 and none == "0"
    assert skipped == first and int(first) + int(second) == 62 and failed == CUT
