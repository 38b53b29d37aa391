"""Files that nifreeze itself reads and writes, both ways; its interpreter is named by NIFREEZE_PYTHON."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from images import bold, niimg, same_bits

from sharedmask import FrameDataset

PYTHON = os.environ.get("NIFREEZE_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="NIFREEZE_PYTHON names no Python with nifreeze")

N = 12
RNG = np.random.default_rng(0)
DIRECTIONS = RNG.normal(size=(N, 3))
del RNG
GRADIENTS = np.c_[DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1, keepdims=True), np.full(N, 1000.0)]
READER = """
import sys
import numpy as np
from nifreeze.data.base import BaseDataset
from nifreeze.data.dmri import DWI
from nifreeze.data.pet import PET
for line in sys.stdin:
    kind, path, back, seen = line.rstrip("\\n").split("\\t")
    dataset = {"base": BaseDataset, "dwi": DWI, "pet": PET}[kind].from_filename(path)
    last = dataset[len(dataset) - 1]
    fields = {"affine": dataset.affine, "last": last[0], "dataobj": dataset.dataobj}
    for name in ("brainmask", "motion_affines", "gradients", "bzero", "midframe", "total_duration"):
        if getattr(dataset, name, None) is not None:
            fields[name] = getattr(dataset, name)
    np.savez(seen, **fields)
    dataset.to_filename(back)
    print("done", flush=True)
"""


@pytest.fixture(scope="module")
def nifreeze():
    """nifreeze's interpreter, which takes a second to start, reading one file after the other."""
    reader = subprocess.Popen(
        [PYTHON, "-c", READER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    with reader:
        yield reader


def through_nifreeze(reader, tmp_path, kind, path):
    back, seen = tmp_path / "back.h5", tmp_path / "seen.npz"
    print(kind, path, back, seen, sep="\t", file=reader.stdin, flush=True)
    assert reader.stdout.readline() == "done\n"  # what went wrong is in the standard error
    return back, dict(np.load(seen))


@pytest.mark.some(4)
@pytest.mark.parametrize("compression", [(), ("gzip", 1)])
@pytest.mark.parametrize("dtype", ["i2", "u1", "f4", "f8"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("base", {}),
        ("base", {"mask_img": bold()[..., 0] > 1000, "affines": np.repeat(np.eye(4)[None], N, 0)}),
        ("dwi", {"per_frame": {"gradients": GRADIENTS}, "overall": {"bzero": bold()[..., 0]}}),
        ("dwi", {"per_frame": {"gradients": GRADIENTS, "censored": np.arange(N) > 3}}),
        (
            "pet",
            {"per_frame": {"midframe": np.arange(N) * 2.0 + 1}, "overall": {"total_duration": 24.0}},
        ),
    ],
)
def test_what_each_writes_the_other_reads(nifreeze, tmp_path, kind, options, dtype, compression):
    data = (bold() % 200).astype(dtype)
    with FrameDataset(niimg(data), **options) as ds:
        path = ds.to_filename(tmp_path / "ours.h5", *compression)
        affine, brain = ds.affine, ds.brainmask
    back, seen = through_nifreeze(nifreeze, tmp_path, kind, path)
    given = {**options.get("per_frame", {}), **options.get("overall", {})}
    same_bits(seen.pop("dataobj"), data)
    same_bits(seen.pop("last"), data[..., -1])
    same_bits(seen.pop("affine"), affine)
    for name, values in seen.items():
        told = {"brainmask": brain, "motion_affines": options.get("affines"), **given}[name]
        np.testing.assert_array_equal(values, told)
    with FrameDataset(back) as ds:
        same_bits(ds[:][0], data)
        for name in ("gradients", "midframe"):
            if name in given:
                np.testing.assert_array_equal(ds.per_frame[name], given[name])
        assert (ds.brainmask is None) == (brain is None)


# What writes into frames, which are read-only here; what asks for the very map that it gave; what looks for a
# file in the home of its author.
_ALLOWED = {
    "test_pet_set_transform_updates_motion_affines",
    "test_memmap_dataobj_preserved",
    "test_main",
}


@pytest.mark.long
@pytest.mark.skipif("NIFREEZE_SOURCE" not in os.environ, reason="NIFREEZE_SOURCE names no source of nifreeze")
def test_its_own_tests_of_data_pass_over_our_views():
    tests = [f"test/test_data{name}.py" for name in ("", "_base", "_dmri", "_pet", "_utils")]
    path = os.pathsep.join((str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "helpers")))
    done = subprocess.run(
        [PYTHON, "-m", "pytest", "-q", "-p", "nifreeze_views", "-p", "no:cacheprovider", *tests],
        cwd=os.environ["NIFREEZE_SOURCE"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", done.stdout, re.MULTILINE))
    assert failed <= _ALLOWED, done.stdout[-5000:]
    assert int(re.search(r"views: (\d+)", done.stdout)[1]) > 100
