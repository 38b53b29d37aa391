"""Many images on the command line: folders, parts, array jobs, and the flags of other pipelines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import called, sharedmask
from images import AFFINE, SHAPE, bold, niimg, random_masks, save, truth

from sharedmask.study import executors
from sharedmask.system import process

CLUSTER = Path(__file__).parents[1] / "slurm" / "cluster.sh"


@pytest.fixture
def study(tmp_path):
    """Eight runs, three masks and an atlas."""
    for number in range(8):
        save(tmp_path / f"sub-{number:02}_bold.nii.gz", bold(seed=number))
    for name, mask in zip("abc", random_masks(3), strict=True):
        save(tmp_path / f"roi-{name}.nii.gz", mask.astype("u1"))
    labels = np.random.default_rng(0).integers(0, 4, SHAPE).astype("int16")
    niimg(labels).to_filename(tmp_path / "atlas.nii.gz")
    (tmp_path / "spill").mkdir()
    (tmp_path / "atlas.tsv").write_text("index\tname\n1\tone\n2\ttwo\n3\tthree\n")
    return tmp_path


def images(study):
    return sorted(path.name for path in study.glob("sub-*.nii.gz"))


def means(study, name):
    """What a table of the masks' means must hold."""
    values = truth(study / name).astype("f8")
    masks = [truth(study / f"roi-{roi}.nii.gz") != 0 for roi in "abc"]
    return np.stack([values[mask].mean(axis=0) for mask in masks], axis=1)


def assert_complete(study, folder="out"):
    for name in images(study):
        table = pd.read_csv(study / folder / name.replace(".nii.gz", ".tsv"), sep="\t")
        assert list(table.columns) == ["roi-a", "roi-b", "roi-c"]
        np.testing.assert_allclose(table, means(study, name), rtol=1e-12)


def test_many_images_go_to_a_folder(study):
    asked = ("extract", *images(study), "--masks", "roi-*.nii.gz", "--out-dir", "out", "-j", "2")
    done = sharedmask(*asked, cwd=study)
    assert (done.returncode, done.stdout) == (0, "8 images complete, 0 were already, 0 failed\n"), done.stderr
    assert_complete(study)
    assert sharedmask(*asked, cwd=study).stdout == "0 images complete, 8 were already, 0 failed\n"
    assert sharedmask(*asked, "--overwrite", cwd=study).stdout.startswith("8 images complete")


def test_parts_are_all_of_it(study):
    for part in ("1/3", "2/3", "3/3"):
        sharedmask("extract", *images(study), "--masks", "roi-*.nii.gz", "--out-dir", "out", "--shard", part,
                   cwd=study)  # fmt: skip
    assert_complete(study)


def test_a_failure_is_named_and_is_exit_code_1(study):
    (study / "sub-03_bold.nii.gz").write_bytes(b"nothing")
    done = sharedmask("extract", *images(study), "--masks", "roi-*.nii.gz", "--out-dir", "out", cwd=study)
    assert done.returncode == 1 and "7 images complete, 0 were already, 1 failed" in done.stdout
    assert done.stderr.startswith("sharedmask: sub-03_bold.nii.gz: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "args, message",
    [
        (["sub-00_bold.nii.gz", "sub-01_bold.nii.gz", "-o", "x.tsv"], "--out-dir DIR for any number"),
        (["sub-00_bold.nii.gz", "-o", "x.tsv", "--out-dir", "out"], "-o OUT for one BOLD"),
    ],
)
def test_outputs_must_be_clear(study, args, message):
    done = sharedmask("extract", *args, "--masks", "roi-*.nii.gz", cwd=study)
    assert done.returncode == 64 and message in done.stderr


@pytest.mark.long
def test_a_local_dask_cluster(study):
    pytest.importorskip("distributed")
    command = [sys.executable, "-m", "sharedmask", "extract", *images(study), "--masks", "roi-*.nii.gz",
               "--out-dir", "out", "--dask", "local", "-j", "2"]  # fmt: skip
    done = subprocess.run(command, cwd=study, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert_complete(study)


# --- array jobs ----------------------------------------------------------------------------------


def test_a_script_for_an_array_job(study):
    asked = ("extract", *images(study), "--masks", "roi-*.nii.gz", "--out-dir", "out")
    done = sharedmask("submit", "--dry-run", "--array", "4", "--sbatch=--time=10", "--", *asked, cwd=study)
    lines = done.stdout.splitlines()
    assert lines[0] == "#!/bin/bash" and "#SBATCH --array=1-4" in lines and "#SBATCH --time=10" in lines
    assert lines[-2].endswith('--out-dir out --shard "$SLURM_ARRAY_TASK_ID/4"')


def test_the_memory_asked_for_grows_with_the_image(study):
    save(study / "large.nii", bold((60, 60, 60, 50)))

    def megabytes(*asked):
        done = sharedmask("submit", "--dry-run", "--", "extract", *asked, "--out-dir", "out", cwd=study)
        (line,) = [line for line in done.stdout.splitlines() if "--mem=" in line]
        return int(line.removeprefix("#SBATCH --mem=").removesuffix("M"))

    save(study / "whole.nii.gz", np.ones((60, 60, 60), "u1"))
    save(study / "dot.nii.gz", np.pad(np.ones((1, 1, 1), "u1"), 59)[:60, :60, :60])
    small = megabytes("large.nii", "--mask", "dot.nii.gz", "--format", "npz")
    # The signals of all voxels, as float32.
    assert (
        megabytes("large.nii", "--mask", "whole.nii.gz", "--format", "npz") - small > 60**3 * 50 * 4 / 2**20
    )
    assert megabytes("large.nii", "--mask", "dot.nii.gz", "--detrend") > small + 200  # nilearn


@pytest.mark.parametrize(
    "args, message",
    [
        (["--", "info", "sub-00_bold.nii.gz"], "the command to submit: extract"),
        (["--", "extract", "sub-00_bold.nii.gz", "--masks", "roi*", "-o", "x.tsv"], "needs --out-dir"),
        (
            [
                "--sbatch=time",
                *["--", "extract", "sub-00_bold.nii.gz", "--masks", "roi-*.nii.gz", "--out-dir", "o"],
            ],
            "no option of sbatch",
        ),
    ],
)
def test_what_cannot_be_submitted(study, args, message):
    done = sharedmask("submit", "--dry-run", *args, cwd=study)
    assert done.returncode == 64 and message in done.stderr


def test_without_slurm_the_script_is_there(study):
    asked = ("extract", *images(study), "--masks", "roi-*.nii.gz", "--out-dir", "out")
    where = ("--log-dir", "logs")
    done = sharedmask("submit", *where, "--", *asked, cwd=study, env={"PATH": "/nowhere"})
    assert done.returncode == 65 and "no sbatch; the script is" in done.stderr
    assert (study / "logs" / "sharedmask.sbatch").read_text().startswith("#!/bin/bash")


@pytest.mark.long
@pytest.mark.privileged
@pytest.mark.skipif(
    not shutil.which("slurmctld") or not shutil.which("munged"), reason="SLURM is not installed"
)
@pytest.mark.skipif(os.geteuid() != 0, reason="starting SLURM takes root")
def test_a_real_slurm_does_all_of_it(study, tmp_path_factory):
    home = tmp_path_factory.mktemp("slurm")
    env = {"SLURM_CONF": str(home / "slurm.conf")}
    subprocess.run([CLUSTER, "start", home], check=True, timeout=120)
    try:
        asked = ("extract", *images(study), "--masks", "roi-*.nii.gz", "--out-dir", "out")
        done = sharedmask("submit", "--array", "4", "--sbatch=--wait", "--", *asked, cwd=study, env=env)
        assert done.returncode == 0 and done.stdout.strip().isdigit(), done.stderr
        logs = sorted((study / "sharedmask-logs").glob("*.log"))
        assert [path.read_text() for path in logs] == ["2 images complete, 0 were already, 0 failed\n"] * 4
        assert_complete(study)
    finally:
        subprocess.run([CLUSTER, "stop", home], check=True, timeout=120)


# --- the flags of memory-efficient pipelines -----------------------------------------------------


@pytest.fixture
def run(study, monkeypatch):
    """``sharedmask run`` of the first two images, with the masks, in this process."""
    monkeypatch.chdir(study)
    monkeypatch.setenv("SHAREDMASK_TMPDIR", str(study / "spill"))

    def call(*flags, out="out", env=None):
        regions = () if {"--atlas", "--mask", "--masks"} & set(flags) else ("--masks", "roi-*.nii.gz")
        return called("run", *images(study)[:2], *regions, "--output-dir", out, *flags, env=env)

    return call


def stores(answer):
    """Where images went, as ``--verbose`` tells."""
    return [
        line.split(" goes to ")[1].split(":")[0] for line in answer.stderr.splitlines() if "goes to" in line
    ]


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--standard",),
        ("--parallel-subjects", "--n-jobs", "2"),
        ("--cached",),
        ("--memory-efficient", "--memory-limit", "1G"),
        ("--force-memmap",),
        ("--disable-shared-memory", "-j", "2"),
        ("--auto-configure",),
        ("--slurm",),
    ],
    ids=" ".join,
)
def test_the_flags_that_only_say_how_change_no_number(run, study, flags):
    done = run(*flags)
    assert done.returncode == 0, done.stderr
    for name in images(study)[:2]:
        table = pd.read_csv(study / "out" / name.replace(".nii.gz", ".tsv"), sep="\t")
        np.testing.assert_allclose(table, means(study, name), rtol=1e-12)


@pytest.mark.parametrize(
    "flags, env, store",
    [
        ((), {}, []),
        (("--memory-efficient",), {}, ["shm"] * 2),
        (("--force-memmap",), {"SHAREDMASK_USE_DISK": "0"}, ["disk"] * 2),
        (("--memmap-threshold", "0.000001"), {}, ["disk"] * 2),
        (("--memory-efficient", "--disable-shared-memory"), {}, ["private"] * 2),
        (("--memory-efficient",), {"SHAREDMASK_SHARED_MEMORY": "0"}, ["private"] * 2),
        (("--memory-efficient", "--set", "shared_memory=0"), {}, ["private"] * 2),
        (("--memory-efficient",), {"SHAREDMASK_CONFIG": "settings.toml"}, ["private"] * 2),
        (("--memory-efficient", "--config", "settings.toml"), {}, ["private"] * 2),
        (("--memory-efficient", "--profile", "small"), {"SHAREDMASK_DISK_THRESHOLD": "0"}, ["disk"] * 2),
    ],
)
def test_flags_come_before_variables_before_the_file_and_say_nothing_unless_given(
    run, study, flags, env, store
):
    (study / "settings.toml").write_text("shared_memory = false")
    answer = run(*flags, "--verbose", "--n-jobs", "1", env=env)
    assert answer.returncode == 0, answer.stderr
    assert stores(answer) == store, answer.stderr


@pytest.mark.parametrize(
    "flags, most",
    [((), 2), (("--standard",), 1), (("-j", "1"), 1), (("--parallel",), 3), (("--parallel", "-j", "5"), 5)],
)
def test_how_many_images_go_at_a_time(run, monkeypatch, flags, most):
    monkeypatch.setattr(process, "n_cpus", lambda: 3)
    monkeypatch.setattr(executors.pool, "can_start_processes", lambda: False)
    asked = []
    ours = executors.Engine

    def engine(*given, **options):
        made = ours(*given, **options)
        asked.append(made.at_once)
        return made

    monkeypatch.setattr(executors, "Engine", engine)
    assert run(*flags).returncode == 0
    assert asked == [most]


def test_threads_where_no_memory_is_shared(run, monkeypatch):
    monkeypatch.setattr(executors, "Processes", None)  # which would be called
    assert run("--parallel", "-j", "2", "--disable-shared-memory").returncode == 0


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--memory-buffer", "0.9999999"), "may be used"),
        (("--max-memory-per-process", "0.000001"), "max_memory_per_process"),
        (("--memory-limit", "1000"), "memory_limit='1000'"),
    ],
)
def test_limits_hold(run, flags, message):
    done = run(*flags)
    assert done.returncode == 1 and message in done.stderr


def test_masks_on_another_grid_are_refused_with_the_flag_that_resamples(run, study):
    shifted = AFFINE.copy()
    shifted[:3, 3] += AFFINE[:3, 0] / 2
    niimg(np.ones(SHAPE, "u1"), shifted).to_filename(study / "far.nii.gz")
    done = run("--mask", "far.nii.gz")
    assert done.returncode == 1 and "--resampling-target data" in done.stderr
    assert run("--mask", "far.nii.gz", "--resampling-target", "data").returncode == 0


def test_images_are_cleaned_and_smoothed_as_by_extract(run, study):
    (study / "c.tsv").write_text(
        "x\n" + "".join(f"{value}\n" for value in np.random.default_rng(0).random(12))
    )
    asked = ("--detrend", "--standardize", "psc", "--smoothing-fwhm", "4", "--confounds", "c.tsv", "c.tsv")
    assert run(*asked).returncode == 0
    done = called("extract", *images(study)[:2], "--masks", "roi-*.nii.gz", "--out-dir", "plain", *asked)
    assert done.returncode == 0, done.stderr
    for name in ("sub-00_bold.tsv", "sub-01_bold.tsv"):
        assert (study / "out" / name).read_bytes() == (study / "plain" / name).read_bytes()


def test_complete_images_are_skipped_unless_told_otherwise(run):
    run()
    assert run().stdout == "0 images complete, 2 were already, 0 failed\n"
    assert run("--overwrite").stdout.startswith("2 images complete")
    assert "sub-00_bold.nii.gz is complete already" in run("-v").stderr


def test_the_cache_is_used_told_and_cleared(run, study):
    assert "hits           0" in run("--cache-dir", "kept", "--cache-stats").stdout
    assert "hits           2" in run("--cache-dir", "kept", "--cache-stats", out="other").stdout
    assert "2 results removed from kept" in run("--cache-dir", "kept", "--clear-cache").stdout
    assert not (study / "cache").exists()
    run("--cached", out="third")
    assert (study / "cache").exists()


def test_the_folder_of_the_settings_is_the_cache_unless_a_flag_names_another(run, study):
    env = {"SHAREDMASK_CACHE_DIR": "mine"}
    assert "entries        2" in run("--cached", "--cache-stats", env=env).stdout
    assert "entries        2" in run("--cache-dir", "kept", "--cache-stats", out="b", env=env).stdout
    assert "hits           0" in run("--no-cache", "--cache-stats", out="c", env=env).stdout
    assert "hits           2" in run("--cache-stats", out="d", env=env).stdout
    assert not (study / "cache").exists()


def test_subjects_and_rois_are_chosen_by_name(run, study):
    done = run("--subjects", "01", "--rois", "roi-b", "roi-a")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (study / "out").glob("*.tsv")] == ["sub-01_bold.tsv"]
    table = pd.read_csv(study / "out" / "sub-01_bold.tsv", sep="\t")
    np.testing.assert_allclose(
        table[["roi-a", "roi-b"]], means(study, "sub-01_bold.nii.gz")[:, :2], rtol=1e-12
    )
    assert list(table.columns) == ["roi-b", "roi-a"]


def test_atlas_regions_are_chosen_by_name(run, study):
    done = run("--atlas", "atlas.nii.gz", "--lut", "atlas.tsv", "--rois", "three", "one")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(study / "out" / "sub-00_bold.tsv", sep="\t")
    inside = truth(study / "atlas.nii.gz") == 3
    np.testing.assert_allclose(table["three"], truth(study / "sub-00_bold.nii.gz")[inside].mean(0))
    assert list(table.columns) == ["one", "three"]


@pytest.mark.parametrize(
    "flags, code, message",
    [
        (("--subjects", "77"), 18, "no image of sub-77"),
        (("--rois", "roi-z"), 18, "no region roi-z; there are: roi-a"),
        (("--atlas", "atlas.nii.gz", "--rois", "one"), 18, "give the atlas's --lut"),
        (("--lut", "atlas.tsv"), 64, "--lut names the labels of an --atlas"),
        (("--standard", "--parallel"), 64, "--standard and --parallel contradict"),
        (("--standard", "-j", "2"), 64, "--standard and --n-jobs contradict"),
        (("--no-cache", "--cache-dir", "x"), 64, "--no-cache and --cache-dir contradict"),
        (("--slurm", "--auto-configure"), 64, "give one"),
        (("--slurm", "--profile", "small"), 64, "give one"),
        (("--stat", "sum", "--format", "npz"), 64, "gives a table"),
    ],
)
def test_what_makes_no_sense_is_said(run, flags, code, message):
    done = run(*flags)
    assert done.returncode == code and message in done.stderr


def test_debug_shows_the_traceback_of_each_failure(run, study):
    (study / "sub-01_bold.nii.gz").write_bytes(b"nothing")
    assert "Traceback" not in run().stderr
    assert "Traceback" in run("--debug").stderr


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_log_memory_says_a_line_per_image_and_once(run, n_jobs):
    done = run("--log-memory", "-v", "--n-jobs", n_jobs)
    lines = [line for line in done.stderr.splitlines() if "projected" in line]
    assert len(lines) == 2 and all("extracting from" in line for line in lines), done.stderr
