"""Two users of one folder that anybody may write to: nothing of either is overwritten or believed."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from children import python
from images import bold, random_masks, save

ONE, OTHER = 65533, 65534

WORK = """
    import os, sys, warnings
    import numpy as np
    uid, shared, own = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    from sharedmask import SharedImage, extract
    from sharedmask.system.files import atomic_write
    warnings.simplefilter("ignore")
    run, mask = shared + "/run.nii.gz", np.load(shared + "/mask.npy")
    # Python itself may lie where only root can read: what is needed is imported now.
    os.environ.update(SHAREDMASK_DIR=own + "/first", SHAREDMASK_TMPDIR=own)
    for store in ("shm", "disk"):
        with SharedImage(run, store=store) as image:
            image.mask(mask, memory=own + "/first-cache")
    extract(run, mask)
    os.setgroups([]), os.setresgid(uid, uid, uid), os.setresuid(uid, uid, uid)
    os.environ.update(SHAREDMASK_DIR=own + "/registry", SHAREDMASK_TMPDIR=shared, HOME=own)
    for store in ("shm", "disk"):
        with SharedImage(run, store=store) as image:
            np.save(f"{own}/{store}.npy", image.mask(mask, memory=shared + "/cache"))
    np.save(own + "/extract.npy", extract(run, mask, memory=shared + "/cache"))
    for name in ("theirs.txt", "link.txt", "new.txt"):
        try:
            with atomic_write(f"{shared}/{name}") as temporary:
                temporary.write_text(f"of {uid}")
        except OSError as error:
            print(name, type(error).__name__)
"""


@pytest.fixture
def shared(request):
    """A folder in a place that every user reaches, with an image and a mask."""
    with tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o755)
        folder = Path(parent, "shared")
        folder.mkdir()
        folder.chmod(request.param)
        save(folder / "run.nii.gz", bold())
        np.save(folder / "mask.npy", random_masks(1)[0])
        for uid in (ONE, OTHER):
            own = Path(parent, str(uid))
            own.mkdir(mode=0o700)
            os.chown(own, uid, uid)
        yield folder
        shutil.rmtree(parent, ignore_errors=True)
        os.mkdir(parent)


def work(uid, shared):
    done = python(WORK, uid, shared, shared.parent / str(uid))
    assert done.returncode == 0, done.stderr
    found = shared.parent / str(uid)
    return {name: np.load(found / f"{name}.npy") for name in ("shm", "disk", "extract")}


@pytest.mark.long
@pytest.mark.privileged
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("shared", [0o1777, 0o777], ids=["sticky", "not sticky"], indirect=True)
def test_two_users_of_one_folder_have_their_own(shared):
    victim = shared.parent / str(ONE) / "victim.txt"
    victim.write_text("private")
    (shared / "link.txt").symlink_to(victim)
    first = work(ONE, shared)
    assert victim.read_text() == "private"
    second = work(OTHER, shared)
    assert victim.read_text() == "private"
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    cached = [path for path in (shared / "cache").rglob("*") if path.is_file()]
    assert {path.stat().st_uid for path in cached} == {ONE}
    assert not [path for path in shared.iterdir() if path.name.endswith(".tmp")]
