"""``sharedmask network``: what it writes, its exit codes, and taking up where a kill stopped it."""

import json
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from command import sharedmask
from images import AFFINE
from networks import contents, lesion, mask, write_study

from sharedmask import FunctionalNetworkMapper
from sharedmask.compute.journal import Failures
from sharedmask.system import process

KEYS = ("rmap", "zmap", "tmap", "pmap", "pfdrmap", "tthresholdmap", "pfdrthresholdmap")


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path)


def arguments(study, *options, out="out", lesions=None):
    listed = lesions or sorted(map(str, study.glob("lesions/*.nii.gz")))
    usual = {"--connectome": "connectome", "--out": out, "--t-threshold": "2", "--batch-size": "2"}
    given = [part for option in usual.items() if option[0] not in options for part in option]
    return ["network", *listed, *given, *options]


def run(study, *options, **kwargs):
    return sharedmask(*arguments(study, *options, **kwargs), cwd=study)


def test_each_lesion_has_its_maps_and_its_summary(study):
    done = run(study)
    said = "9 lesions complete, 0 were already, 0 failed\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    expected = FunctionalNetworkMapper(t_threshold=2).fit(study / "connectome")
    maps = expected.transform(str(study / "lesions/*.nii.gz"), batch_size=2)
    for name in maps:
        for key in KEYS:
            image = nib.load(study / f"out/{name}_{key}.nii.gz")
            np.testing.assert_array_equal(image.dataobj, maps[name][key].dataobj)
            np.testing.assert_allclose(image.affine, AFFINE, rtol=1e-6)
        said = json.loads((study / f"out/{name}_summary.json").read_text())
        assert said["summary"] == dict(maps[name].summary)
    assert Failures(study / "out/.sharedmask/failed").all() == {}
    table = pd.read_csv(study / "out/summary.tsv", sep="\t")
    assert list(table.lesion) == [f"sub-{number}" for number in range(9)]
    np.testing.assert_allclose(table["max"], [maps[name].summary["max"] for name in maps], rtol=1e-12)
    assert len(contents(study / "out")) == 9 * 8 + 2


@pytest.mark.long
@pytest.mark.parametrize("patterns", [["lesions/*.nii.gz"], ["lesions/sub-[0-4]*", "lesions/sub-[5-8]*"]])
def test_patterns_may_be_quoted(study, patterns):
    done = run(study, lesions=patterns)
    assert done.returncode == 0, done.stderr
    assert len(list((study / "out").glob("*_rmap.nii.gz"))) == 9


def test_some_that_fail_are_named_and_the_exit_code_is_1(study):
    outside = nib.Nifti1Image((~mask()).astype("u1"), AFFINE)
    nib.save(outside, study / "lesions/sub-2.nii.gz")
    shifted = AFFINE.copy()
    shifted[0, 3] += 40
    nib.save(lesion(affine=shifted)[0], study / "lesions/sub-3.nii.gz")
    (study / "lesions/sub-8.nii.gz").write_text("not an image")
    done = run(study)
    assert done.returncode == 1
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == ["sub-2", "sub-3", "sub-8"]
    errors = Failures(study / "out/.sharedmask/failed").all()
    assert errors["sub-2"].startswith("EmptyMaskError: ")
    assert errors["sub-3"].startswith("GridMismatchError: ")
    assert "sub-8.nii.gz" in errors["sub-8"]
    assert len(pd.read_csv(study / "out/summary.tsv", sep="\t")) == 6


@pytest.mark.some(3)
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--connectome", "nowhere"], 66, "nowhere does not exist"),
        (["--connectome", "lesions/sub-1.nii.gz"], 65, "cannot be read as HDF5"),
        (["--batch-size", "0"], 64, "--batch-size 0"),
        (["--fdr-alpha", "3"], 64, "fdr_alpha=3"),
        (["--method", "both"], 64, "both"),
        (["--memory-limit", "10K"], 75, "mapping a lesion"),
        (["--out", "lesions/sub-1.nii.gz/out"], 73, "sub-1.nii.gz"),
    ],
)
def test_exit_codes(options, code, message, study):
    done = run(study, *options)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.long
def test_killed_and_resumed_the_files_are_those_of_an_undisturbed_run(study):
    """Killed in the second batch, between two files, with one of them half written."""
    assert run(study, "--n-jobs", "2", out="whole").returncode == 0
    command = [sys.executable, "-m", "sharedmask", *arguments(study)]
    child = subprocess.Popen(command, cwd=study, start_new_session=True)
    wanted = study / "out/sub-2_zmap.nii.gz"
    deadline = time.monotonic() + 60
    while not wanted.exists():
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.0005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (study / f"out/.sharedmask-{process._here()}-{child.pid}-5-{16 * '0'}.tmp").write_bytes(b"half")
    (study / "out/.notes.tmp").write_text("the user's")
    assert not (study / "out/summary.tsv").exists()
    before = {path.name: path.stat().st_mtime_ns for path in (study / "out").glob("sub-0_*")}
    done = run(study, "--resume")
    assert (done.returncode, done.stderr) == (0, "")
    (study / "out/.notes.tmp").unlink()
    assert contents(study / "out") == contents(study / "whole")
    assert {path.name: path.stat().st_mtime_ns for path in (study / "out").glob("sub-0_*")} == before
