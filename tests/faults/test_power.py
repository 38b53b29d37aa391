"""Power failures: what has its final name is whole, and so is what is recorded as complete."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import power
import pytest

N_MOMENTS = (
    100 if os.environ.get("SHAREDMASK_SLOW_TESTS") else 12
)  # of each work, from its first call to its last

pytestmark = [pytest.mark.privileged, pytest.mark.long, pytest.mark.timeout(3000)]


@pytest.mark.parametrize("work", power.WORKS)
def test_after_a_power_failure_what_has_its_name_is_whole(tmp_path, work):
    """At 12 moments of each work, in equal steps of its calls; at 100 with ``SHAREDMASK_SLOW_TESTS``."""
    if os.geteuid() or not shutil.which("mkfs.ext4") or not shutil.which("unshare"):
        pytest.skip("needs root, mkfs.ext4 and mount namespaces")
    power.prepare(tmp_path / "data")
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
