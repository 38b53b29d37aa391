"""A power failure: a file system of its own, shut down in the middle of a program without its log.

``python power.py FOLDER WORK MOMENTS`` in a mount namespace of its own (``unshare -m``, as root) does the
work on a fresh ext4 file system as many times, each time in a fork of one process that has imported all;
shuts the file system down before one of the calls, mounts it again, does the work once more, and prints what
it finds that is not whole.
"""

import fcntl
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN
_WITHOUT_LOG = 2
_WAS_CUT = 9


# --- what is done ---


def prepare(data):
    """Runs, an atlas, a preprocessed data set, lesions, a connectome."""
    import networks
    import numpy as np
    from datasets import atlas, preprocessed
    from images import SHAPE, bold, save

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


def tables(data, out):
    from sharedmask.study.output import extract_to

    images = sorted(map(str, (data / "runs").glob("*.nii.gz")))
    study = extract_to(out, images, str(data / "atlas.nii.gz"), n_jobs=1)
    assert not study.errors, study.errors


def network(data, out):
    from sharedmask.network.mapper import FunctionalNetworkMapper
    from sharedmask.network.output import map_to

    mapper = FunctionalNetworkMapper().fit(data / "connectome.h5")
    report = map_to(str(data / "lesions/*.nii.gz"), mapper, out, batch_size=1, resume=True)
    assert not report.errors, report.errors


def bids(data, out):
    """Its pages have blanks for pictures, which take most of its time."""
    import study_runs

    from sharedmask.study.analysis import Outputs
    from sharedmask.study.atlases import find_atlas
    from sharedmask.study.dataset import analyse

    (label,) = (data / "atlases").glob("*.nii.gz")
    outputs = Outputs(min_coverage=0.0, reports=True)
    with pytest.MonkeyPatch.context() as patch:
        study_runs.blank(patch)
        study = analyse(data / "bids", out, [find_atlas(str(label))], outputs, detrend=True)
    assert not study.errors, study.errors


def disk(data, out):
    import numpy as np

    from sharedmask import SharedImage
    from sharedmask.system import settings

    out.mkdir(exist_ok=True)
    path = min((data / "runs").glob("*.nii.gz"))
    with settings.using(spill_dir=out), SharedImage(path, store="disk") as image:
        got = image.mask(np.ones(image.shape[:3], bool))
        with SharedImage(path, store="memfd") as other:
            assert np.array_equal(got, other.mask(np.ones(image.shape[:3], bool)))


def frames(data, out):
    from sharedmask.frames.convert import convert

    out.mkdir(exist_ok=True)
    convert(min((data / "runs").glob("*.nii.gz")), out / "run.h5", compression="gzip")


SUMMARY = "group_qc.tsv"
WORKS = {work.__name__: work for work in (tables, bids, network, disk, frames)}


# --- whether it is whole ---


def faults_of(work, out, reference):
    """What is under its final name and not what it should be; and what is recorded, and is not there."""
    if work == "disk" or not out.exists():
        return []  # rows are compared when they are found again
    found = [path for path in out.rglob("*") if path.is_file() and ".sharedmask" not in path.parts]
    wrong = [str(path) for path in found if not _is_whole(path, reference / path.relative_to(out))]
    return wrong + _records(out)


def _is_whole(path, other):
    """Whether it says what the other one does; of pages and files with the time in them, whether they end."""
    if path.suffix == ".html":
        return path.read_text().rstrip().endswith("</html>")
    if path.suffix == ".json":
        return json.loads(path.read_text()).keys() == json.loads(other.read_text()).keys()
    if path.name == SUMMARY:  # of the runs that are done so far
        return path.read_text().endswith("\n") and _lines(path) <= _lines(other)
    if path.suffix != ".h5":
        return path.read_bytes() == other.read_bytes()
    import numpy as np

    from sharedmask import FrameDataset

    with FrameDataset(path) as one, FrameDataset(other) as two:
        return np.array_equal(one.dataobj, two.dataobj)


def _lines(path):
    return set(path.read_text().splitlines())


def _records(out):
    from sharedmask.compute.journal import Journal

    entries = Journal(out / ".sharedmask/complete.jsonl").entries
    return [f"recorded as complete: {entry.key}" for entry in entries if not entry.is_there]


def missing(out, reference):
    """What a whole run leaves and this one did not."""
    names = [{path.relative_to(top) for path in top.rglob("*.*")} for top in (reference, out)]
    found = [f"missing: {name}" for name in names[0] - names[1]]
    rows = [_lines(top / SUMMARY) if (top / SUMMARY).exists() else set() for top in (reference, out)]
    return found + [f"missing in {SUMMARY}: {line}" for line in rows[0] - rows[1]]


# --- the power goes ---


def cut_at(moment, mount, work):
    """``work()``, with the end of the file system before its call of that number there; their number.

    The number of all calls is the moment at which the work has just ended; of more, too: files of runs that
    end at about the same time go to the disk by fewer.
    """
    from faults import intercepted

    made, lock = itertools.count(), threading.Lock()

    def around(call, function, args, options):
        with lock:
            number = next(made) if call.target.startswith(str(mount)) else -1
        if number == moment and moment >= 0:
            _cut(mount)
        return function(*args, **options)

    with intercepted(around):
        work()
    n_calls = next(made)
    if moment >= n_calls:
        _cut(mount)
    return n_calls


def _cut(mount):
    """Names are on the disk, as the log has them when it is written, whether or not bytes are."""
    commit = os.open(mount / "commit", os.O_CREAT | os.O_WRONLY)
    os.fsync(commit)
    fcntl.ioctl(commit, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG))
    os._exit(_WAS_CUT)


def _forked(call):
    """How a fork that makes the call ends, and what it gives or raises, as text."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            said, code = json.dumps(call()), 0
        except BaseException:
            said = traceback.format_exc()
        os.write(theirs, said.encode()[-4000:])
        os._exit(code)
    os.close(theirs)
    with open(ours) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def _mount(image, mount):
    options = "loop,commit=1,noauto_da_alloc"
    done = subprocess.run(["mount", "-o", options, image, mount], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"skip: {done.stderr}")


def drive(folder, work, moments):
    data, reference, mount, image = (folder / name for name in ("data", "reference", "mount", "disk.img"))
    mount.mkdir(exist_ok=True)
    blank = folder / "blank.img"
    with open(blank, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", blank], check=True)
    WORKS[work](data, reference)

    def begun(moment):
        shutil.copyfile(blank, image)
        _mount(image, mount)
        code, said = _forked(lambda: cut_at(moment, mount, lambda: WORKS[work](data, mount / "out")))
        assert code == (_WAS_CUT if moment >= 0 else 0), (moment, code, said)
        subprocess.run(["umount", mount], check=True)
        return said

    def looked_at():
        wrong = faults_of(work, mount / "out", reference)
        WORKS[work](data, mount / "out")
        wrong += [f"after resuming: {one}" for one in faults_of(work, mount / "out", reference)]
        return wrong + (missing(mount / "out", reference) if work != "disk" else [])

    n_calls, n_wrong = int(begun(-1)), 0
    chosen = sorted({n_calls * number // (moments - 1) for number in range(moments)})
    for moment in chosen:
        begun(moment)
        _mount(image, mount)
        code, said = _forked(looked_at)
        subprocess.run(["umount", mount], check=True)
        for one in [said] if code else json.loads(said):
            n_wrong += 1
            print(f"call {moment}: {one}")
    print(f"{len(chosen)} moments of {n_calls} calls: {n_wrong} faults")


if __name__ == "__main__":
    drive(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
