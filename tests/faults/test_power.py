"""Power failures: what has its final name is whole, and so is what is recorded as complete."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import networks
import numpy as np
import power
import pytest
from datasets import atlas, preprocessed
from images import SHAPE, bold, save

N_MOMENTS = int(os.environ.get("SHAREDMASK_POWER_MOMENTS", "100"))

pytestmark = [pytest.mark.privileged, pytest.mark.long]


@pytest.fixture
def data(tmp_path):
    """Runs, an atlas, a preprocessed data set, lesions, a connectome."""
    data = tmp_path / "data"
    (data / "runs").mkdir(parents=True)
    for number in range(3):
        save(data / "runs" / f"sub-{number}_bold.nii.gz", bold(seed=number))
    save(data / "atlas.nii.gz", np.random.default_rng(0).integers(0, 4, SHAPE).astype("i2"))
    preprocessed(data / "bids")
    atlas(data / "atlases")
    networks.write(data / "connectome.h5", networks.series(3))
    (data / "lesions").mkdir()
    for number in range(2):
        lesion = networks.mask(seed=number + 1, density=0.1) & networks.mask()
        save(data / "lesions" / f"{number}.nii.gz", lesion.astype("u1"))
    return data


@pytest.mark.parametrize("work", power.WORKS)
def test_after_a_power_failure_what_has_its_name_is_whole(tmp_path, data, work):
    if os.geteuid() or not shutil.which("mkfs.ext4") or not shutil.which("unshare"):
        pytest.skip("needs root, mkfs.ext4 and mount namespaces")
    script = Path(power.__file__)
    drive = f"{sys.executable} {script} {tmp_path} {work} {N_MOMENTS}"
    command = f"mount --make-rprivate / && exec {drive}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, timeout=3000
    )
    if done.stderr.startswith("skip"):
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(": 0 faults\n"), done.stdout
