"""Rows in files: made once, found again, in bounded memory and room; nothing of anybody else's goes."""

import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from children import python, running
from command import sharedmask
from faults import failing
from images import bold, niimg, random_masks, same_bits, save, truth

from sharedmask import SharedImage, extract
from sharedmask.errors import AttachError, MemoryLimitError, SegmentError, SourceChangedError
from sharedmask.sources import loader, rechunk
from sharedmask.sources.opening import open_source
from sharedmask.storage import container, disk, segment
from sharedmask.storage import rows as holding
from sharedmask.system import platform
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.settings import using

MASKS = random_masks(3)


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "run.nii.gz", bold())


@pytest.fixture
def folder(tmp_path):
    return tmp_path / f"sharedmask-disk-{platform.user_name()}"


def on_disk(path, **options):
    return SharedImage(path, store="disk", **options)


def written(path, **options):
    """Make the rows, and nothing more; the name of their file."""
    with on_disk(path, **options) as image:
        return Path(image.load()._held.attachment.file.path)


def correct(path, **options):
    with on_disk(path, **options) as image:
        same_bits(image.mask(MASKS[0], dtype=None), truth(path)[MASKS[0]].T)


def ends(folder):
    return sorted(name.rpartition(".")[2] for name in os.listdir(folder))


# ---- made once


def test_rows_are_made_once_and_found_by_the_next(path, monkeypatch):
    first = written(path)
    monkeypatch.setattr(rechunk, "transpose", None)
    assert written(path) == first
    correct(path)


def test_a_file_of_rows_is_private_read_only_and_says_whose_it_is(path, folder):
    facts = os.stat(written(path))
    assert stat.S_IMODE(facts.st_mode) == 0o400
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    (entry,) = disk.entries()
    assert (entry.label, entry.nbytes) == ("run.nii.gz", facts.st_size)


def test_a_changed_source_is_read_again(path):
    first = written(path)
    save(path, bold(seed=1))
    assert written(path) != first
    correct(path)


def test_other_voxels_are_other_rows(path):
    assert len({written(path), written(path, mask_img=MASKS[0]), written(path, mask_img=MASKS[1])}) == 3
    both = np.logical_or(MASKS[0], MASKS[1])
    correct(path, mask_img=both)


def test_an_image_in_memory_is_known_by_its_values():
    data = bold()
    assert written(niimg(data)) == written(niimg(data.copy()))
    assert written(niimg(data)) != written(niimg(data + 1))


def test_a_source_that_changes_while_it_is_read_is_refused(path, folder, monkeypatch):
    load = loader.load

    def changing(*args, **options):
        os.utime(path)
        return load(*args, **options)

    monkeypatch.setattr(loader, "load", changing)
    with pytest.raises(SourceChangedError, match=r"run\.nii\.gz changed"):
        written(path)
    assert os.listdir(folder) == []


def test_many_who_want_it_at_once_make_it_once(path, monkeypatch):
    made, transpose = [], rechunk.transpose
    monkeypatch.setattr(rechunk, "transpose", lambda *args: made.append(1) or transpose(*args))
    threads = [threading.Thread(target=correct, args=(path,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


@pytest.mark.long
def test_many_processes_that_want_it_at_once_make_it_once(path):
    script = """
        import sys
        from sharedmask import SharedImage
        from sharedmask.sources import rechunk as banding
        transpose = banding.transpose
        banding.transpose = lambda *args: print("made") or transpose(*args)
        with SharedImage(sys.argv[1], store="disk") as image:
            print(int(image.array.sum()))
    """
    command = [sys.executable, "-c", "\n".join(line.strip() for line in script.splitlines()), str(path)]
    command[2] = command[2].replace("print(int", "    print(int")
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = "".join(child.communicate(timeout=120)[0] for child in children).split()
    assert sorted(said) == sorted([str(int(truth(path).sum()))] * 3 + ["made"])


# ---- never half made

KILLED = """
    import os, signal, sys
    from sharedmask import SharedImage

    left = int(sys.argv[2])

    def dying(call):
        def wrapped(*args, **options):
            global left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)
        return wrapped

    for name in ("open", "pwrite", "posix_fallocate", "fdatasync", "fchmod", "replace", "unlink"):
        setattr(os, name, dying(getattr(os, name)))
    with SharedImage(sys.argv[1], store="disk", memory_limit="64M") as image:
        image.load()
    print("survived")
"""


@pytest.mark.long
def test_a_builder_killed_at_any_call_leaves_no_file_that_is_used(path, folder):
    for calls in range(0, 200, 4):
        done = python(KILLED, path, calls)
        if "survived" in done.stdout:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        correct(path)
        assert ends(folder) == ["rows"]
        disk.remove_unused()
        assert os.listdir(folder) == []
    assert calls > 20
    assert "survived" in done.stdout


def test_what_a_killed_builder_left_is_swept(path, folder, tmp_path):
    folder.mkdir(mode=0o700)
    lock = folder / f"sharedmask-{'0' * 32}.lock"
    lock.touch()
    done = sharedmask("gc")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"removed {lock.name}" in done.stdout
    assert os.listdir(folder) == []


def test_an_unfinished_file_under_the_final_name_is_made_again(path):
    name = written(path)
    os.chmod(name, 0o600)
    for spoil in (
        lambda file: file.write(container.OURS + b"unfinished"),
        lambda file: file.truncate(5000),
        lambda file: file.truncate(0),
        lambda file: file.write(container.header({"meta": {}}, 4096)),
        lambda file: file.write(container.header([], 4096)),
    ):
        with open(name, "r+b") as file:
            spoil(file)
        correct(path)
        os.chmod(name, 0o600)


def test_a_header_with_any_byte_changed_is_said_and_made_again(path, caplog):
    name = written(path)
    whole = name.read_bytes()
    os.chmod(name, 0o600)
    for position in range(len(container.OURS), 4096, 409):  # before that it is a file of anybody's
        name.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with caplog.at_level("WARNING"):
            correct(path)
        assert name.read_bytes() == whole
        assert f"{name} is damaged, and is made again" in caplog.text
        caplog.clear()
        os.chmod(name, 0o600)


def test_what_is_being_built_is_not_swept(path, folder, monkeypatch):
    load = loader.load

    def sweeping(*args, **options):
        assert disk.sweep() == []
        assert ends(folder) == ["lock"]
        return load(*args, **options)

    monkeypatch.setattr(loader, "load", sweeping)
    correct(path)


# ---- room


def three_runs(tmp_path):
    return [save(tmp_path / f"run{i}.nii", bold(seed=i)) for i in range(3)]


def test_the_least_recently_used_goes_when_room_is_needed(tmp_path):
    runs = three_runs(tmp_path)
    first, second = written(runs[0]), written(runs[1])
    os.utime(first, (1e9, 1e9))
    os.utime(second, (1e9 + 5, 1e9 + 5))
    correct(runs[0])
    with using(spill_limit=2 * first.stat().st_size):
        third = written(runs[2])
    assert (first.exists(), second.exists(), third.exists()) == (True, False, True)


def test_what_is_in_use_never_goes(tmp_path):
    runs = three_runs(tmp_path)
    with on_disk(runs[0]) as image:
        view = image.load().array[1]
        held = Path(image._held.attachment.file.path)
        with (
            using(spill_limit=held.stat().st_size),
            pytest.raises(SegmentError, match="images and frames in use there"),
        ):
            written(runs[1])
    assert disk.remove_unused() == []  # a view is use
    del view
    assert disk.remove_unused() == [held.name]


def test_an_attached_process_is_use(path):
    script = """
        import sys
        from sharedmask import SharedImage
        image = SharedImage.attach(sys.argv[1])
        total = image.array.sum()
        print("ready", int(total), image.store[0], flush=True)
        sys.stdin.read()
    """
    with on_disk(path) as image:
        handle = image.handle.to_json()
        with running(script, handle, stdin=subprocess.PIPE) as child:
            assert child.said == [str(int(truth(path).sum())), "disk"]
            image.close()
            assert disk.remove_unused() == []
    assert len(disk.remove_unused()) == 1


def test_a_full_disk_is_an_error_with_numbers(path, folder):
    message = r"no room for run\.nii\.gz: .* are needed, .* MiB are free"
    with failing("posix_fallocate", "ENOSPC"), pytest.raises(SegmentError, match=message):
        written(path)
    assert os.listdir(folder) == []


def test_too_little_room_is_an_error_before_anything_is_written(path, folder, monkeypatch):
    monkeypatch.setattr(disk, "_free", lambda: 1000)
    with pytest.raises(SegmentError, match="iB are needed, 1 KiB are free"):
        written(path)
    assert os.listdir(folder) == []


def test_files_of_the_user_stay(tmp_path, folder):
    runs = three_runs(tmp_path)
    name = written(runs[0])
    mine = [tmp_path / "thesis.txt", folder / "notes.rows", folder / f"sharedmask-{'a' * 32}.rows"]
    mine += [folder / f"sharedmask-{'c' * 32}.lock"]
    for file in mine:
        file.write_text("a user's work")
    os.symlink(tmp_path / "thesis.txt", folder / f"sharedmask-{'d' * 32}.rows")
    with using(spill_limit=name.stat().st_size):
        written(runs[1])
    disk.sweep()
    disk.remove_unused()
    assert not name.exists()
    assert [file.read_text() for file in mine] == ["a user's work"] * len(mine)


def test_a_users_file_under_our_name_is_refused(path):
    name = written(path)
    name.unlink()
    name.write_text("a user's work")
    with pytest.raises(SegmentError, match="no file of sharedmask: move it away"):
        written(path)
    assert name.read_text() == "a user's work"


def test_a_directory_that_others_can_use_is_refused(path, folder):
    folder.mkdir(mode=0o755)
    with pytest.raises(SegmentError, match="must be private"):
        written(path)


def test_a_directory_that_is_not_there_is_named(path, tmp_path):
    with using(spill_dir=tmp_path / "nowhere"), pytest.raises(SegmentError, match="nowhere does not exist"):
        written(path)


def test_rows_go_with_the_image_where_they_are_not_to_be_kept(path, folder):
    with using(keep_disk=False):
        written(path)
    assert os.listdir(folder) == []


# ---- larger than memory


@pytest.fixture(params=["run.nii.gz", "run.nii"])
def large(tmp_path, request):
    return save(tmp_path / request.param, bold((48, 48, 32, 100), "float32"))


@pytest.mark.long
def test_an_image_four_times_the_limit_works_by_both_ways(large):
    shape = (48, 48, 32)
    masks = random_masks(5, shape, density=0.005)
    source = open_source(large)
    limit, mib = source.nbytes // 4, round(holding.projected(source, None) / 2**20)
    expected = [truth(large)[mask].T for mask in masks]
    with SharedImage(large, memory_limit=limit) as image:
        assert image.store[0] == "disk"
        said = f"{mib} MiB are more than the 7 MiB that may be used (memory_limit={limit})"
        assert image.store[1] == said
        for got in (image.mask_parallel(masks), extract(large, masks, memory_limit=limit)):
            for signals, right in zip(got, expected, strict=True):
                same_bits(signals, right)
        with pytest.raises(MemoryLimitError, match="masking"):
            image.mask(np.ones(shape, bool))
    with pytest.raises(MemoryLimitError, match=rf"loading run\.nii.* needs {mib} MiB and 7 MiB may be used"):
        SharedImage(large, store="shm", memory_limit=limit).load()


def test_auto_takes_the_disk_above_the_threshold_and_never_if_it_may_not(path):
    with using(disk_threshold=1000):
        assert SharedImage(path).store == ("disk", "9 KiB are more than disk_threshold, 1 KiB")
    with using(disk_threshold=1000, use_disk=False):
        assert SharedImage(path).store[0] == "shm"
    with using(use_disk=False), pytest.raises(MemoryLimitError):
        SharedImage(path, memory_limit=1000).load()


def test_the_choice_is_a_function_of_what_may_be_used(path):
    source = open_source(path)
    needed = holding.projected(source, None)
    assert holding.choose("auto", source, None, MemoryBudget(needed, "test"))[0] != "disk"
    assert holding.choose("auto", source, None, MemoryBudget(needed - 1, "test"))[0] == "disk"
    assert holding.choose("shm", source, None, MemoryBudget(0, "test")) == ("shm", "asked for")


LIMITED = """
    import json, resource, sys
    import numpy as np
    from sharedmask import SharedImage, extract
    from sharedmask.errors import MemoryLimitError

    run, masks, store = sys.argv[1], list(np.load(sys.argv[2])), sys.argv[3]
    extract(sys.argv[4], masks[:1])  # what is imported and started once is not what is limited
    SharedImage(sys.argv[4], store="disk").load().close()
    limit, data = int(sys.argv[5]), int(sys.argv[6])
    if not data:
        data = limit + 1024 * next(
            int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")
        )
        data += 48 * 2**20  # stacks of threads
    resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    if store == "extract":
        found = extract(run, masks, memory_limit=limit)
    else:
        with SharedImage(run, store=store, memory_limit=limit) as image:
            found = image.mask_parallel(masks)
    np.save(sys.argv[7], np.hstack(found))
"""


def limited(run, masks, how, small, limit, data, tmp_path):
    """The signals that a process makes that may not have more than ``data`` bytes of its own.

    0 is ``limit`` more than it has already.
    """
    np.save(tmp_path / "masks.npy", masks)
    arguments = [run, tmp_path / "masks.npy", how, small, limit, data, tmp_path / "found.npy"]
    done = python(LIMITED, *arguments, fresh=True)
    return done, np.load(tmp_path / "found.npy") if done.returncode == 0 else None


@pytest.mark.long
@pytest.mark.parametrize("how", ["extract", "auto", "shm"])
def test_a_limit_of_the_kernel_is_kept(how, tmp_path):
    shape = (64, 64, 48, 200)
    data = np.empty(shape, "float32", order="F")
    for t in range(shape[3]):
        data[..., t] = np.arange(np.prod(shape[:3])).reshape(shape[:3], order="F") + t
    run = save(tmp_path / "run.nii", data)
    small = save(tmp_path / "small.nii", data[..., :2])
    masks = random_masks(20, shape[:3], density=0.002)
    done, found = limited(run, masks, how, small, data.nbytes // 4, 0, tmp_path)
    if how == "shm":
        assert "MemoryLimitError: loading run.nii needs " in done.stderr
    else:
        assert done.stderr == ""
        same_bits(found, np.hstack([data[mask].T for mask in masks]))


SLOW_SHAPE = (64, 76, 64, 1200)


def volume(t):
    """Values that can be told apart, and known again without keeping 1.5 GB."""
    return np.arange(np.prod(SLOW_SHAPE[:3]), dtype="float32") * np.float32(0.5) + np.float32(t % 977)


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    """1.5 GB of float32, plain and compressed."""
    from isal import igzip

    folder = tmp_path_factory.mktemp("huge")
    header = save(folder / "header.nii", np.zeros((1, 1, 1, 1), "float32")).read_bytes()[:352]
    import nibabel as nib

    made = nib.Nifti1Header(header[:348])
    made.set_data_shape(SLOW_SHAPE)
    plain, packed = folder / "run.nii", folder / "run.nii.gz"
    with open(plain, "wb") as one, igzip.open(packed, "wb", compresslevel=1) as other:
        for file in (one, other):
            file.write(made.binaryblock.ljust(352, b"\0"))
            for t in range(SLOW_SHAPE[3]):
                file.write(volume(t).tobytes())
    yield {"run.nii": plain, "run.nii.gz": packed}
    plain.unlink()
    packed.unlink()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["run.nii", "run.nii.gz"])
@pytest.mark.parametrize("how", ["extract", "auto", "shm"])
def test_a_run_of_1500_mb_under_256_mb(huge, name, how, tmp_path):
    rng = np.random.default_rng(0)
    masks = np.zeros((20, *SLOW_SHAPE[:3]), bool)
    for mask in masks:
        mask.reshape(-1)[rng.choice(mask.size, 500, replace=False)] = True
    small = save(tmp_path / "small.nii", bold((*SLOW_SHAPE[:3], 2), "float32"))
    done, found = limited(huge[name], masks, how, small, 256 * 2**20, 256 * 2**20, tmp_path)
    if how == "shm":
        assert re.search(r"loading run\.nii\S* needs 1,\d\d\d MiB and \d+ MiB may be used", done.stderr)
        return
    assert done.stderr == ""
    columns = [np.ravel_multi_index(np.nonzero(mask), mask.shape, order="F") for mask in masks]
    expected = np.stack([volume(t)[np.concatenate(columns)] for t in range(SLOW_SHAPE[3])])
    same_bits(found, expected)


# ---- handles


def test_views_travel_and_outlive_the_file(path):
    with on_disk(path) as image:
        view = image.array[2:, ::2]
        sent = pickle.dumps(view)
        assert len(sent) < 1000
        same_bits(np.asarray(pickle.loads(sent)), truth(path)[2:, ::2])
        name = image._held.attachment.file.path
    os.unlink(name)
    same_bits(np.asarray(view), truth(path)[2:, ::2])


@pytest.mark.parametrize("spoil", ["remove", "replace", "open"])
def test_a_file_that_is_another_one_now_is_refused(path, spoil):
    with on_disk(path) as image:
        handle, name = image.handle, image._held.attachment.file.path
        content = Path(name).read_bytes()
        if spoil == "open":
            os.chmod(name, 0o644)
        else:
            os.unlink(name)
        if spoil == "replace":
            Path(name).write_bytes(content)
            os.chmod(name, 0o400)
        segment._attached.clear()
        with pytest.raises(AttachError, match=r"cannot be opened|another file now|other users"):
            segment.attach(handle)


def test_workers_attach_to_the_file(path):
    with on_disk(path) as image:
        got = image.map(np.sum, MASKS, n_jobs=2)
    assert got == [truth(path)[mask].sum() for mask in MASKS]


def test_ls_tells_where_an_image_is(path):
    with on_disk(path) as image:
        image.load()
        done = sharedmask("ls")
    assert done.stderr == ""
    assert any("disk" in line and "run.nii.gz" in line for line in done.stdout.splitlines())
