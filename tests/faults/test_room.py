"""No room: refused with numbers before the first byte, or anonymous memory instead."""

import contextlib
import os
import subprocess
import sys
import textwrap

import images
import numpy as np
import pytest
from faults import failing, recorded
from images import bold, save
from owners import STORES

from sharedmask import SharedImage
from sharedmask.errors import SegmentError
from sharedmask.storage import memory_pages
from sharedmask.storage.registry import OwnedSegment


def _may_mount():
    with contextlib.suppress(OSError):
        mount = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(mount, capture_output=True).returncode == 0
    return False


small_shm = pytest.mark.skipif(not _may_mount(), reason="this user may not mount in a namespace of its own")


def in_small_shm(script, *args, registry=None, mount="mount -t tmpfs -o size=16m tmpfs /dev/shm"):
    """Run Python where /dev/shm has 16 MiB; the registry is in it too, unless given."""
    environment = {name: value for name, value in os.environ.items() if name != "SHAREDMASK_DIR"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [os.environ.get("PYTHONPATH", ""), os.path.dirname(images.__file__)]
    )
    if registry:
        environment["SHAREDMASK_DIR"] = str(registry)
    prepare = f'{mount} && exec "$@"'
    run = [sys.executable, "-c", textwrap.dedent(script), *map(str, args)]
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", prepare, "sh", *run],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )


@pytest.fixture
def large(tmp_path):
    """An image of 32 MiB."""
    return save(tmp_path / "large.nii", bold((64, 64, 64, 64)))


@pytest.mark.privileged
@small_shm
def test_space_too_small_is_refused_with_numbers(large, registry_dir):
    script = """
    import os, sys
    from sharedmask import SharedImage
    from sharedmask.errors import SegmentError
    with SharedImage(sys.argv[1], store="shm") as image:
        try:
            image.load()
        except SegmentError as error:
            print(error)
    print(sorted(os.listdir("/dev/shm")))
    """
    done = in_small_shm(script, large, registry=registry_dir)
    assert done.stdout == "/dev/shm is too small: 32 MiB are needed and 16 MiB were free\n[]\n", done
    assert os.listdir(registry_dir) == []


@pytest.mark.long
@pytest.mark.privileged
@small_shm
def test_space_too_small_turns_auto_to_anonymous_memory(large):
    script = """
    import os, sys
    import nibabel as nib, numpy as np
    from sharedmask import SharedImage
    with SharedImage(sys.argv[1]) as image:
        print(image)
        np.testing.assert_array_equal(image.array, nib.load(sys.argv[1]).dataobj)
        print(image.handle.store)
    """
    done = in_small_shm(script, large)
    assert "memfd (/dev/shm has room for 16 MiB only)" in done.stdout, done.stderr
    assert done.stdout.endswith("memfd\n")


FULL = """
    import os, sys
    import numpy as np
    from sharedmask import SharedImage
    from sharedmask.storage import registry
    from sharedmask.storage import memory
    from sharedmask.errors import SegmentError
    registry.entries()
    page = 4096
    image = SharedImage(np and sys.argv[1], store=sys.argv[2])
    spare = int(sys.argv[3])
    fill = memory.free_bytes() - (image.nbytes + page - 1) // page * page - spare * page
    if sys.argv[2] == "memfd":
        fill = memory.free_bytes()
    fd = os.open("/dev/shm/fill", os.O_CREAT | os.O_RDWR)
    os.posix_fallocate(fd, 0, fill)
    try:
        with image:
            image.load()
            print("loaded")
    except SegmentError as error:
        print("refused", error)
    print(sorted(os.listdir("/dev/shm")), os.listdir(registry.directory()))
"""


@pytest.mark.long
@pytest.mark.privileged
@small_shm
@pytest.mark.parametrize("store", ["shm", "auto"])
@pytest.mark.parametrize("spare", [0, 1, 2, 3])
def test_space_of_the_record_is_short(spare, store, tmp_path):
    """The segment fits to the byte, and the records of the registry in the same place do not."""
    path = save(tmp_path / "run.nii", bold((32, 32, 32, 64)))
    done = in_small_shm(FULL, path, store, spare)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("loaded" if store == "auto" and spare else ("loaded", "refused"))
    assert done.stdout.endswith("['fill', 'sharedmask-0'] []\n")


@pytest.mark.long
@pytest.mark.privileged
@small_shm
def test_space_of_a_full_shm_is_no_matter_for_anonymous_memory(tmp_path):
    path = save(tmp_path / "run.nii", bold((32, 32, 32, 64)))
    done = in_small_shm(FULL, path, "memfd", 0)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("loaded", "refused"))


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_space_ends_in_the_middle_of_reserving(k, store, monkeypatch, registry_dir, segments_of_this_test):
    monkeypatch.setattr(memory_pages, "_AT_ONCE", 2**20)
    full = pytest.raises(SegmentError, match=r"(too small|short): 4 MiB")
    with recorded("sharedmask-") as calls, failing("posix_fallocate", "ENOSPC", number=k), full:
        OwnedSegment("run", {"rows": ((2**21,), np.dtype("i2"))}, store)
    assert [call.name for call in calls].count("posix_fallocate") == k - 1  # and the one that failed
    assert not segments_of_this_test()
    assert os.listdir(registry_dir) == []


def test_no_space_is_an_error_with_numbers_and_nothing_left(run, registry_dir):
    full = failing("posix_fallocate", "ENOSPC")
    with (
        SharedImage(run) as shared,
        full,
        pytest.raises(OSError, match=r"too small: [\d,]+ [KM]iB are needed"),
    ):
        shared.load()
    assert os.listdir(registry_dir) == []


# --- none at all ---

UNUSABLE = {
    "read-only": "mount -t tmpfs -o ro tmpfs /dev/shm",
    "of another user": "mount -t tmpfs -o mode=0755,uid=12345 tmpfs /dev/shm && set -- setpriv"
    ' --bounding-set=-dac_override --inh-caps=-dac_override "$@"',
    "missing": "mount -t tmpfs tmpfs /mnt && for n in null zero full random urandom; do touch /mnt/$n; "
    "mount --bind /dev/$n /mnt/$n; done; ln -s /proc/self/fd /mnt/fd; mount --rbind /mnt /dev",
}


@pytest.mark.long
@small_shm
@pytest.mark.parametrize("how", UNUSABLE)
def test_without_dev_shm_all_works_but_what_asks_for_it(how, tmp_path):
    """Every call that shares memory: by anonymous memory, or one sentence."""
    script = """
        import sys
        import networks
        import numpy as np
        from images import bold, random_masks, save
        from sharedmask import FrameDataset, FunctionalNetworkMapper, SharedImage, extract, extract_many
        from sharedmask import share
        from sharedmask.errors import SegmentError
        from sharedmask.image.coordinator import Coordinator

        run, masks = save(sys.argv[1] + "/run.nii.gz", bold()), random_masks(3)
        expected = extract(run, masks)
        connectome = networks.write(sys.argv[1] + "/connectome.h5", networks.series(3))
        lesion = networks.lesion()[0]

        def same(found):
            assert all(map(np.array_equal, found, expected))

        for store in ("auto", "memfd", "disk"):
            with SharedImage(run, store=store) as image:
                same(image.mask_parallel(masks, n_jobs=2, prefer="processes"))
            with FrameDataset(run, store=store) as frames:
                frames.map(np.mean, n_jobs=2)
        same(extract(run, masks, n_jobs=2))
        extract_many([run], masks, n_jobs=2, on_error=sys.exit)
        maps = [
            FunctionalNetworkMapper(n_jobs=2, prefer=prefer).fit(connectome).transform([lesion])[0]
            for prefer in ("threads", "processes")
        ]
        for key in ("rmap", "tmap"):
            np.testing.assert_array_equal(maps[0][key].get_fdata(), maps[1][key].get_fdata())
        with Coordinator(), SharedImage.connect(run) as image:
            same(image.mask_parallel(masks))
        with share(np.arange(9)) as shared:
            assert shared.array.sum() == 36
        for refused in (
            lambda: SharedImage(run, store="shm").load(),
            lambda: share(np.arange(9), store="shm"),
            lambda: FrameDataset(run, store="shm")[0],
        ):
            try:
                refused()
            except SegmentError as error:
                print(error)
    """
    done = in_small_shm(script, tmp_path, registry=tmp_path / "registry", mount=UNUSABLE[how])
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 3
    assert all("in /dev/shm" in line and "store='memfd' needs none" in line for line in said), said
