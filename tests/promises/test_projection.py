"""What an operation takes is known beforehand: its measured peak is no more than projected.

Each row is a process of its own, whose memory (PSS of its tree, shared memory once) is sampled from
outside. Pages of files are not counted: the kernel drops them when memory is short.
"""

import json
import select
import subprocess
import sys
import textwrap

import nibabel as nib
import numpy as np
import pytest
from images import bold, random_masks

from sharedmask.storage import rows
from sharedmask.system import usage

MIB = 2**20
TOLERANCE = 32 * MIB
SHAPE = (48, 48, 32, 220)

CHILD = """
import json, sys
import numpy as np
from sharedmask import MemoryBudget, Regions, SharedImage, extract

asked, require = [], MemoryBudget.require
def noted(self, operation, needed, hint=""):
    asked.append(needed)
    require(self, operation, needed, hint)
MemoryBudget.require = noted

path, masks, store = sys.argv[1:4]
regions = Regions.from_any(masks)
if store != "none":
    image = SharedImage(path, store=store)
{before}
print("ready", flush=True)
sys.stdin.readline()
{body}
print(json.dumps(asked), flush=True)
sys.stdin.readline()
"""
LOADED = "    image.load()\nasked.clear()"

OPERATIONS = {
    "load": ("", "image.load()"),
    "mask": (LOADED, "result = image.mask_parallel(regions)"),
    "mask, 2 processes": (LOADED, "result = image.mask_parallel(regions, n_jobs=2, prefer='processes')"),
    "mask, float64": (LOADED, "result = image.mask_parallel(regions, dtype='f8')"),
    "clean": (LOADED, "result = image.mask_parallel(regions, standardize='zscore_sample', detrend=True)"),
    "clean, 2 processes": (LOADED, "result = image.mask_parallel(regions, standardize='psc', n_jobs=2)"),
    "mean": (LOADED, "result = image.reduce(regions)"),
    "median": (LOADED, "result = image.reduce(regions, 'median', n_jobs=2)"),
    "pc1": (LOADED, "result = image.reduce(regions, 'pc1', n_jobs=2)"),
    "map": (LOADED, "result = image.map(np.shape, regions, n_jobs=2)"),
}
PASSES = {
    "extract": "result = extract(path, regions)",
    "extract, mean": "result = extract(path, regions, strategy='mean')",
    "extract, clean": "result = extract(path, regions, detrend=True)",
    "extract, clean, 2 processes": "result = extract(path, regions, detrend=True, n_jobs=2)",
}
FEW = ["load", "mask", "mask, 2 processes", "mean", "pc1", "map"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """62 MiB, plain and compressed; three overlapping masks of a quarter of it, and of a twentieth."""
    folder = tmp_path_factory.mktemp("run")
    image = nib.Nifti1Image(np.resize(bold((48, 48, 32), "f4"), SHAPE), np.eye(4))
    nib.save(image, folder / "run.nii")
    for name, density in (("masks.nii", 0.25), ("few.nii", 0.04)):
        masks = np.stack(random_masks(3, SHAPE[:3], density=density), axis=-1).astype("u1")
        nib.save(nib.Nifti1Image(masks, np.eye(4)), folder / name)
    from isal import igzip

    with igzip.open(folder / "run.nii.gz", "wb", compresslevel=0) as file:
        file.write((folder / "run.nii").read_bytes())
    return folder


def measured(folder, name, store, before, body, monkeypatch, spill):
    """(peak above what was held before, all amounts asked for)."""
    monkeypatch.setenv("SHAREDMASK_TMPDIR", str(spill))
    script = CHILD.format(before=before, body=textwrap.dedent(body))
    masks = "few.nii" if any(slow in body for slow in ("detrend", "psc", "pc1", "median")) else "masks.nii"
    arguments = [folder / name, folder / masks, store]
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        before = peak = usage.of_tree(child.pid).held
        child.stdin.write("\n")
        child.stdin.flush()
        while not select.select([child.stdout], [], [], 0.01)[0]:
            peak = max(peak, usage.of_tree(child.pid).held)
        asked = json.loads(child.stdout.readline())
        peak = max(peak, usage.of_tree(child.pid).held)
        child.stdin.write("\n")
        child.stdin.close()
        assert child.wait() == 0
    return peak - before, asked


@pytest.mark.some(3)
@pytest.mark.parametrize(
    ("operation", "store"),
    [(operation, "shm") for operation in OPERATIONS]
    + [
        pytest.param(operation, store, marks=pytest.mark.long)
        for store in rows.STORES
        if store != "shm"
        for operation in FEW
        if store != rows.PRIVATE or "processes" not in operation
    ],
)
def test_no_operation_on_an_image_takes_more_than_projected(operation, store, run, monkeypatch, tmp_path):
    before, body = OPERATIONS[operation]
    peak, asked = measured(run, "run.nii", store, before, body, monkeypatch, tmp_path)
    assert asked or store in ("disk", "file")
    assert peak <= max(asked, default=0) + TOLERANCE


@pytest.mark.some(1)
@pytest.mark.parametrize(
    ("operation", "name"),
    [(operation, "run.nii") for operation in PASSES]
    + [("extract", "run.nii.gz"), ("extract, mean", "run.nii.gz")],
)
def test_no_extraction_takes_more_than_projected(operation, name, run, monkeypatch, tmp_path):
    peak, asked = measured(run, name, "none", "", PASSES[operation], monkeypatch, tmp_path)
    assert 0 < peak <= max(asked) + TOLERANCE
