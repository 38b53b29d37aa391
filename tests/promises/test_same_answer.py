"""A call gives the same answer in the workers of other tools as in the caller, whoever does its work."""

import subprocess
import sys

import numpy as np
import pytest
from images import bold, random_masks, save

SCRIPT = '''
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
import numpy as np
from sharedmask import FrameDataset, SharedImage, batch_process, extract, extract_many

kind, path, masks = sys.argv[1], sys.argv[2], list(np.load(sys.argv[3]))

def mean_of(values):
    return float(np.mean(values))

def double(number):
    return 2 * number

def answers(_=None):
    """Of every call that takes n_jobs, with functions of the main script."""
    with SharedImage(path) as image, FrameDataset(path) as frames:
        found = {
            "signals": image.mask_parallel(masks, n_jobs=2, prefer="processes"),
            "cleaned": image.mask_parallel(masks, n_jobs=2, detrend=True),
            "reduced": image.reduce(masks, "mean", n_jobs=2),
            "map": image.map(mean_of, masks, n_jobs=2),
            "extract": extract(path, masks, n_jobs=2, detrend=True),
            "many": extract_many({"a": path, "b": path}, masks, n_jobs=2).results["b"],
            "batch": list(batch_process({1: 1, 2: 2}, double, n_jobs=2).results.values()),
            "frames": frames.map(mean_of, n_jobs=2),
        }
    return {name: [np.sum(one).item() for one in values] for name, values in found.items()}

def inside():
    tool, _, method = kind.partition("-")
    if tool == "pool":  # whose workers are daemonic
        with multiprocessing.get_context(method).Pool(1) as pool:
            return pool.map(answers, [0])[0]
    if tool == "executor":
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as executor:
            return executor.submit(answers).result()
    import joblib
    return joblib.Parallel(2, backend=method)(joblib.delayed(answers)() for _ in range(2))[0]

if __name__ == "__main__":
    here, there = answers(), inside()
    differ = [name for name in here if here[name] != there[name]]
    print(differ, os.listdir(os.environ["SHAREDMASK_DIR"]))
'''
KINDS = ["pool-spawn", "joblib-loky"]
MORE = ["pool-fork", "pool-forkserver", "executor-fork", "executor-spawn", "executor-forkserver"]
MORE += ["joblib-multiprocessing", "joblib-threading"]


@pytest.mark.parametrize("kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.long) for kind in MORE)])
def test_workers_of_other_tools_answer_as_the_caller(kind, tmp_path):
    path = save(tmp_path / "run.nii.gz", bold())
    np.save(tmp_path / "masks.npy", np.array(random_masks(3)))
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py", kind, path, tmp_path / "masks.npy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "[] []\n"), done.stderr
