"""A power failure: a file system of its own, shut down in the middle of a program without its log.

``python power.py drive FOLDER WORK MOMENTS`` in a mount namespace of its own (``unshare -m``, as root) does
``WORK`` on a fresh ext4 file system as many times, shuts that down before one of its calls, mounts it again,
and prints what it finds that is not whole.
"""

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN
_WITHOUT_LOG = 2


# --- what is done ---


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


WORKS = {work.__name__: work for work in (tables, network, disk, frames)}


# --- whether it is whole ---


def faults_of(work, data, out, reference):
    """What is under its final name and not what it should be."""
    if work == "disk" or not out.exists():
        return []  # rows are compared when they are found again
    found = [path for path in out.rglob("*") if path.is_file() and ".sharedmask" not in path.parts]
    wrong = [str(path) for path in found if not _is_same(path, reference / path.relative_to(out))]
    return wrong + _records(out)


def _is_same(path, other):
    if path.suffix != ".h5":
        return path.read_bytes() == other.read_bytes()
    import numpy as np

    from sharedmask import FrameDataset

    with FrameDataset(path) as one, FrameDataset(other) as two:
        return np.array_equal(one.dataobj, two.dataobj)


def _records(out):
    from sharedmask.compute.journal import Journal

    entries = Journal(out / ".sharedmask/complete.jsonl").entries
    return [f"recorded as complete: {entry.key}" for entry in entries if not entry.is_there]


# --- the power goes ---


def cut_at(moment, mount, work):
    """``work()``, with the end of the file system before its call of that number there; their number."""
    from faults import intercepted

    made, lock = iter(range(1 << 30)), threading.Lock()

    def around(call, function, args, options):
        with lock:
            number = next(made) if call.target.startswith(str(mount)) else -1
        if number == moment and moment >= 0:
            time.sleep(1.5)  # names are in the log by now, whether or not bytes are
            folder = os.open(mount, os.O_RDONLY)
            fcntl.ioctl(folder, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG))
            os._exit(9)
        return function(*args, **options)

    with intercepted(around):
        work()
    return next(made)


def _child(*args):
    command = [sys.executable, __file__, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250)


def drive(folder, work, moments):
    folder, data = Path(folder), Path(folder) / "data"
    reference, mount, image = folder / "reference", folder / "mount", folder / "disk.img"
    mount.mkdir(exist_ok=True)
    WORKS[work](data, reference)
    blank = folder / "blank.img"
    with open(blank, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", blank], check=True)

    def mounted():
        done = subprocess.run(
            ["mount", "-o", "loop,commit=1,noauto_da_alloc", image, mount], capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"skip: {done.stderr}")

    def fresh():
        shutil.copyfile(blank, image)
        mounted()

    fresh()
    done = _child("work", data, mount, work, -1)
    subprocess.run(["umount", mount], check=True)
    assert done.returncode == 0, done.stderr
    n_calls = int(done.stdout)
    for moment in sorted({n_calls * number // int(moments) for number in range(int(moments))}):
        fresh()
        done = _child("work", data, mount, work, moment)
        assert done.returncode == 9, (moment, done.stdout, done.stderr)
        subprocess.run(["umount", mount], check=True)
        mounted()
        wrong = faults_of(work, data, mount / "out", reference)
        again = _child("work", data, mount, work, -1)
        if again.returncode:
            wrong.append(again.stderr)
        wrong += [f"after resuming: {one}" for one in faults_of(work, data, mount / "out", reference)]
        if work != "disk":
            names = [
                {path.relative_to(top) for path in top.rglob("*.*")} for top in (reference, mount / "out")
            ]
            wrong += [f"missing: {name}" for name in names[0] - names[1]]
        subprocess.run(["umount", mount], check=True)
        for one in wrong:
            print(f"call {moment}: {one}")
    print(f"done: {n_calls} calls")


if __name__ == "__main__":
    _, verb, *args = sys.argv
    if verb == "drive":
        drive(*args)
    else:
        data, mount, work, moment = Path(args[0]), Path(args[1]), args[2], int(args[3])
        print(cut_at(moment, mount, lambda: WORKS[work](data, mount / "out")))
