"""The command line: what it writes, what it says where, and its exit codes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import sharedmask
from images import AFFINE, SHAPE, save, truth
from nilearn.maskers import NiftiLabelsMasker

from sharedmask import extract


def test_an_atlas_gives_a_table_with_names(study):
    done = sharedmask(
        "extract", "bold.nii.gz", "--atlas", "atlas.nii.gz", "--lut", "atlas.tsv", "-o", "out.tsv", cwd=study
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    table = pd.read_csv(study / "out.tsv", sep="\t")
    assert list(table) == ["insula", "cuneus", "pons"]
    masker = NiftiLabelsMasker(study / "atlas.nii.gz", standardize=None)
    np.testing.assert_allclose(table, masker.fit_transform(study / "bold.nii.gz"), rtol=1e-12)


def test_a_smoothed_image_is_resampled_to_a_mask(study):
    affine = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    save(study / "fine.nii.gz", np.ones((6, 6, 6), "u1"), affine=affine)
    steps = {"smoothing_fwhm": 5.0, "resampling_target": "mask"}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in steps.items()]
    done = sharedmask("extract", "bold.nii.gz", "--mask", "fine.nii.gz", *options, "-o", "out.npz", cwd=study)
    assert (done.returncode, done.stderr) == (0, "")
    expected = extract(study / "bold.nii.gz", study / "fine.nii.gz", **steps)
    np.testing.assert_array_equal(np.load(study / "out.npz")["fine"], expected)
    done = sharedmask(
        "extract", "bold.nii.gz", "--mask", "roi0.nii.gz", "--smoothing-fwhm=0", "-o", "-", cwd=study
    )
    assert (done.returncode, done.stdout) == (64, "")
    assert "--smoothing-fwhm 0.0 is no width" in done.stderr


def test_a_dash_writes_the_table_to_standard_output(study):
    done = sharedmask(
        "extract", "bold.nii.gz", "--atlas", "atlas.nii.gz", "--stat", "median", "-o", "-", cwd=study
    )
    assert done.stdout.splitlines()[0] == "1\t2\t3"
    assert len(done.stdout.splitlines()) == 13
    assert done.stderr == ""


@pytest.mark.parametrize(
    "masks",
    [
        ["--mask", "roi0.nii.gz", "roi1.nii.gz", "roi2.nii.gz"],
        ["--mask", "roi0.nii.gz", "--mask", "roi1.nii.gz", "roi2.nii.gz"],
        ["--masks", "roi*.nii.gz"],
    ],
)
def test_masks_give_the_series_of_their_voxels(study, masks):
    done = sharedmask("extract", "bold.nii.gz", *masks, "-o", "out.npz", cwd=study)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    data = truth(study / "bold.nii.gz")
    with np.load(study / "out.npz") as series:
        assert series.files == ["roi0", "roi1", "roi2"]
        for name in series.files:
            inside = truth(study / f"{name}.nii.gz") != 0
            np.testing.assert_array_equal(series[name], data[inside].T.astype("f4"))


def test_several_masks_before_other_options(study):
    done = sharedmask(
        "extract", "--mask", "roi0.nii.gz", "roi1.nii.gz", "-o", "out.npz", "bold.nii.gz", cwd=study
    )
    assert done.returncode == 0, done.stderr


def test_masks_with_a_statistic_give_a_table(study):
    sharedmask(
        "extract",
        "bold.nii.gz",
        "--masks",
        "roi*.nii.gz",
        "--stat",
        "standard-deviation",
        "-o",
        "o.tsv",
        cwd=study,
    )
    table = pd.read_csv(study / "o.tsv", sep="\t")
    inside = truth(study / "roi1.nii.gz") != 0
    np.testing.assert_allclose(table["roi1"], truth(study / "bold.nii.gz")[inside].std(axis=0))


def test_cleaning_options_and_underscores(study):
    np.savetxt(study / "confounds.tsv", np.random.default_rng(0).normal(size=(12, 2)), delimiter="\t")
    options = ["--standardize", "zscore_sample", "--detrend", "--confounds", "confounds.tsv", "--n_jobs", "1"]
    done = sharedmask(
        "extract", "bold.nii.gz", "--atlas", "atlas.nii.gz", *options, "-o", "out.tsv", cwd=study
    )
    assert done.returncode == 0, done.stderr
    masker = NiftiLabelsMasker(study / "atlas.nii.gz", standardize="zscore_sample", detrend=True)
    expected = masker.fit_transform(
        study / "bold.nii.gz", confounds=np.loadtxt(study / "confounds.tsv", delimiter="\t")
    )
    np.testing.assert_allclose(pd.read_csv(study / "out.tsv", sep="\t"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 64, "Missing argument 'BOLD...'"),
        (["bold.nii.gz", "-o", "o.tsv"], 64, "give one of --mask, --masks, --sphere and --atlas"),
        (["bold.nii.gz", "--masks", "r*", "--atlas", "a", "-o", "o.tsv"], 64, "give one of"),
        (["bold.nii.gz", "--masks", "roi*", "--lut", "a.tsv", "-o", "o.npz"], 64, "--lut"),
        (["bold.nii.gz", "--masks", "roi*", "-o", "o.mat"], 64, r".npz, .h5"),
        (["bold.nii.gz", "--atlas", "atlas.nii.gz", "--stat", "mode", "-o", "o.tsv"], 64, "--stat mode"),
        (["bold.nii.gz", "--masks", "roi*", "-j", "0", "-o", "o.npz"], 64, "--n-jobs 0"),
        (["absent.nii", "--masks", "roi*", "-o", "o.npz"], 66, "absent.nii does not exist"),
        (["bold.nii.gz", "--masks", "none*.nii", "-o", "o.npz"], 66, "none*.nii"),
        (["cut.nii.gz", "--masks", "roi*", "-o", "o.npz"], 65, "cut.nii.gz is truncated"),
        (["atlas.tsv", "--masks", "roi*", "-o", "o.npz"], 65, "atlas.tsv"),
        (["bold.nii.gz", "--mask", "empty.nii.gz", "-o", "o.npz"], 65, "empty"),
        (["bold.nii.gz", "--mask", "other.nii.gz", "-o", "o.npz"], 65, "another grid"),
        (["bold.nii.gz", "--masks", "roi*", "--memory-limit", "1K", "-o", "o.npz"], 75, "memory_limit='1K'"),
        (["bold.nii.gz", "--masks", "roi*", "-o", "nowhere/o.npz"], 73, "nowhere"),
    ],
)
def test_errors_are_one_line_and_a_code(study, args, code, message):
    whole = (study / "bold.nii.gz").read_bytes()
    (study / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    save(study / "empty.nii.gz", np.zeros(SHAPE, "u1"))
    save(study / "other.nii.gz", np.ones(SHAPE, "u1"), affine=np.diag([2, 2, 2, 1]))
    done = sharedmask("extract", *args, cwd=study)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not list(study.glob("o.*"))
    assert not list(study.glob(".o.*"))


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ("-o atlas.tsv", "atlas.tsv"),
        ("-o linked/atlas.tsv", "atlas.tsv"),
        ("--confounds bold.tsv -o bold.tsv", "bold.tsv"),
        ("--confounds bold.tsv --out-dir .", "bold.tsv"),
        ("--denoise-strategy simple --out-dir .", "bold.json"),
        ("--denoise-strategy simple -o ../{}/bold.tsv", "bold.json"),
    ],
)
def test_nothing_that_is_read_is_written_over(study, flags, kept):
    (study / "linked").symlink_to(".")
    for name in ("bold.tsv", "bold.json"):
        (study / name).write_text("{}")
    before = (study / kept).read_bytes()
    given = ("bold.nii.gz", "--atlas", "atlas.nii.gz", "--lut", "atlas.tsv")
    done = sharedmask("extract", *given, *flags.format(study.name).split(), cwd=study)
    assert (done.returncode, (study / kept).read_bytes()) == (64, before)
    assert f"{kept}, which is read" in done.stderr and done.stderr.count("\n") == 1


def test_ctrl_c_is_130_and_leaves_no_output(study):
    big = np.zeros((60, 60, 60, 60), "f4")
    save(study / "big.nii.gz", big)
    save(study / "all.nii.gz", np.ones((60, 60, 60), "u1"))
    command = [sys.executable, "-m", "sharedmask", "extract", "big.nii.gz", "--mask", "all.nii.gz"]
    options = ["--low-pass", "0.1", "-o", "o.npz"]
    with subprocess.Popen(command + options, stderr=subprocess.PIPE, cwd=study, text=True) as child:
        deadline = time.monotonic() + 60
        while "scipy/signal" not in Path(f"/proc/{child.pid}/maps").read_text():  # cleaning has begun
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        assert child.stderr.read().strip() == "sharedmask: interrupted"
        # `python -m` ends by the signal itself where it came while a string was executed, as imports
        # of named tuples do; a shell says 130 to both
        assert child.wait() in (130, -signal.SIGINT)
    assert not list(study.glob("*o.npz*"))
