"""The container: its steps are the README's, and run in a clean root, for a user unknown there."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

ROOT = Path(__file__).parents[2]
STRANGER = 12345
_PACKAGES = "--include=python3-venv,python-is-python3"
_MOUNTS = "mount -t proc proc {0}/proc && mount -t tmpfs -o size=64m,mode=1777 tmpfs {0}/dev/shm && {1}"
_LARGE = """
import nibabel, numpy
from sharedmask import SharedImage
nibabel.save(nibabel.Nifti1Image(numpy.ones((64, 64, 64, 160), "i2"), numpy.eye(4)), "/tmp/large.nii")
with SharedImage("/tmp/large.nii") as image:
    print(image.load().store)
"""


def steps():
    """What the Dockerfile runs, stage after stage."""
    return re.findall(r"^RUN (.*)$", (ROOT / "Dockerfile").read_text(), re.M)


def environment():
    """What it sets."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return dict(one.split("=", 1) for one in shlex.split(re.search(r"^ENV (.*)$", text, re.M)[1]))


def test_the_containers_install_what_the_readme_installs():
    definition = (ROOT / "apptainer.def").read_text()
    assert [step in definition for step in steps()] == [
        True,
        True,
        False,
    ]  # Apptainer has the user's own name
    exports = dict(re.findall(r"export (\w+)=(.*)", definition))
    assert exports == environment()
    installed = re.sub(r"/opt/sharedmask/bin/| --no-cache-dir", "", steps()[1])
    assert f"\n{installed} && " in (ROOT / "README.md").read_text()


def test_the_container_is_the_bids_app_of_a_user_without_privileges():
    text = (ROOT / "Dockerfile").read_text()
    assert text.rstrip().endswith('ENTRYPOINT ["sharedmask-bids"]')
    assert "\nUSER sharedmask\n" in text
    bases = re.findall(r"^F(?:ROM|rom:) (\S+)", text + (ROOT / "apptainer.def").read_text(), re.M)
    assert len(bases) == 3
    assert len(set(bases)) == 1


@pytest.fixture(scope="module")
def clean_root(tmp_path_factory):
    """Debian's base system with Python, and what the Dockerfile installs, from packages that lie in it."""
    if os.geteuid() or not shutil.which("debootstrap") or not shutil.which("unshare"):
        pytest.skip("needs root, debootstrap and unshare")
    release = platform.freedesktop_os_release()
    root = tmp_path_factory.mktemp("clean") / "root"
    made = ["debootstrap", "--variant=minbase", _PACKAGES, release["VERSION_CODENAME"], str(root)]
    if release["ID"] != "debian" or subprocess.run(made, capture_output=True).returncode:
        pytest.skip("no clean root could be made here")
    own = subprocess.check_output(["chroot", root, "python", "--version"], text=True).split()[1]
    if tuple(own.split(".")[:2]) != platform.python_version_tuple()[:2]:
        pytest.skip(f"Debian's Python is {own}: what is for ours does not fit")
    download = [sys.executable, "-m", "pip", "download", "-q", "-d", root / "wheels", ROOT]
    subprocess.run([*download, "hatchling", "hatch-vcs"], check=True)
    taken = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.M)
    for name in taken:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (root / "src").mkdir(exist_ok=True)
        copy(ROOT / name, root / "src" / name)
    for step in steps():
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "PIP_NO_COMPILE": "1"}  # which takes long
        done = inside(root, "sh", "-c", f"cd /src && {step}", user=0, **pip)
        assert done.returncode == 0, done.stderr
    yield root
    shutil.rmtree(root.parent)


def inside(root, *command, user=STRANGER, **settings):
    """Run there, without a network and with 64 MB of /dev/shm, as Docker would."""
    told = {"HOME": "/", **environment(), **settings}
    if not user:
        told["PATH"] += ":/usr/sbin:/sbin"
    run = [
        "chroot",
        f"--userspec={user}:{user}",
        root,
        "env",
        "-i",
        *(f"{k}={v}" for k, v in told.items()),
        *command,
    ]
    script = _MOUNTS.format(root, "exec " + shlex.join(map(str, run)))
    return subprocess.run(["unshare", "-mn", "sh", "-c", script], capture_output=True, text=True, timeout=500)


@pytest.mark.long
@pytest.mark.privileged
@pytest.mark.timeout(900)
def test_the_app_runs_in_a_clean_root(clean_root):
    datasets.preprocessed(clean_root / "data", subjects=("01",))
    datasets.atlas(clean_root / "atlases")
    (clean_root / "out").mkdir()
    os.chown(clean_root / "out", STRANGER, STRANGER)
    named = ("--atlases", "Toy", "--atlases-dir", "/atlases")
    done = inside(clean_root, "sharedmask-bids", "/data", "/out", "participant", *named)
    assert done.returncode == 0, done.stderr
    written = [path for path in (clean_root / "out").rglob("*") if path.is_file()]
    assert any(path.name.endswith("_timeseries.tsv") for path in written)
    assert {path.stat().st_uid for path in written} == {STRANGER}


@pytest.mark.long
@pytest.mark.privileged
@pytest.mark.timeout(900)
def test_what_does_not_fit_in_64_mb_goes_to_anonymous_memory(clean_root):
    done = inside(clean_root, "python", "-c", _LARGE)
    assert done.stdout.strip() == "('memfd', '/dev/shm has room for 64 MiB only')", done.stderr
