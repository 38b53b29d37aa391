"""The job script of the documentation, run as SLURM runs it, but for SLURM."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import called
from images import SHAPE, bold, save

from sharedmask.cli.submit import most_tasks

PAGE = Path(__file__).parents[2] / "docs/slurm.md"

COMMANDS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "sharedmask": f'exec {sys.executable} -m sharedmask "$@"',
}


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A folder with two runs, an atlas and the script; and a function that runs one array task."""
    (tmp_path / "bin").mkdir()
    for name, line in COMMANDS.items():
        command = tmp_path / "bin" / name
        command.write_text(f"#!/bin/bash\n{line}\n")
        command.chmod(0o755)
    save(tmp_path / "sub-01_bold.nii.gz", bold(seed=1))
    save(tmp_path / "sub-02_bold.nii.gz", bold(seed=2))
    save(tmp_path / "atlas.nii.gz", np.random.default_rng(0).integers(0, 4, SHAPE).astype("i2"))
    (tmp_path / "runs.txt").write_text("sub-01_bold.nii.gz\nsub-02_bold.nii.gz\n")
    script = re.search(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    (tmp_path / "regions.sh").write_text(script)

    def run(task, memory):
        slurm = {"JOB_ID": "7", "ARRAY_TASK_ID": task, "CPUS_PER_TASK": "2", "MEM_PER_NODE": memory}
        environment = os.environ | {f"SLURM_{name}": value for name, value in slurm.items()}
        environment["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        command = ["bash", "regions.sh"]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )

    return run


@pytest.mark.long
def test_the_job_script_works(job, tmp_path):
    for task in "12":
        done = job(task, "8192")
        assert done.returncode == 0, done.stderr
        assert "extracting from" in done.stderr
    assert sorted(os.listdir(tmp_path / "signals")) == ["sub-01_bold.tsv", "sub-02_bold.tsv"]


def test_a_job_without_the_memory_is_refused_at_once(job, tmp_path):
    done = job("1", "1")
    assert done.returncode == 75
    assert "the job's SLURM_MEM_PER_NODE" in done.stderr
    assert os.listdir(tmp_path / "signals") == []


SAYS = {
    "MaxArraySize            = 1001": 1000,
    "MaxArraySize=11\nMaxJobCount = 5": 10,
    "MaxJobCount = 5": sys.maxsize,
    None: sys.maxsize,
}


@pytest.mark.parametrize("said, most", SAYS.items())
def test_an_array_has_as_many_tasks_as_the_cluster_takes(tmp_path, monkeypatch, said, most):
    monkeypatch.setenv("PATH", str(tmp_path))
    if said is not None:
        (tmp_path / "scontrol").write_text(f"#!{sys.executable}\nprint({said!r})\n")
        (tmp_path / "scontrol").chmod(0o755)
    assert most_tasks() == most


def test_more_images_than_tasks_are_cut_into_parts(tmp_path):
    images = [str(save(tmp_path / f"sub-{number}_bold.nii.gz", bold(seed=number))) for number in range(5)]
    atlas = save(tmp_path / "atlas.nii.gz", np.ones(SHAPE, "i2"))
    asked = ["extract", *images, "--atlas", str(atlas), "--out-dir", str(tmp_path / "out")]
    script = called("submit", "--dry-run", "--max-array", "2", "--", *asked).stdout
    assert "--array=1-2\n" in script and '--shard "$SLURM_ARRAY_TASK_ID/2"' in script


def test_the_memory_is_that_of_what_is_asked_of_extract(tmp_path):
    image = str(save(tmp_path / "sub-1_bold.nii.gz", np.zeros((24, 24, 24, 300), "i2")))
    atlas = str(save(tmp_path / "atlas.nii.gz", np.ones((24, 24, 24), "i2")))

    def mebibytes(*options):
        asked = ["extract", image, "--atlas", atlas, "--out-dir", str(tmp_path / "out"), *options]
        done = called("submit", "--dry-run", "--", *asked)
        return int(re.search(r"--mem=(\d+)M", done.stdout)[1])

    plain, series = mebibytes(), mebibytes("--format", "npz")
    assert plain != series
    assert mebibytes("--format", "ptseries.nii") == mebibytes("--format", "pconn.nii") == plain
    cleaned = mebibytes("--detrend")
    assert mebibytes("--denoise-strategy", "simple") == mebibytes("--confounds", "c.tsv") == cleaned > plain
