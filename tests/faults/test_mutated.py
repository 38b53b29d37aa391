"""Mutated inputs of every kind, in a child with little memory: our errors or a right answer, never a hang.

Each kind makes one good input and reads it as its callers do. ``python tests/faults/test_mutated.py KIND SEED
COUNT FOLDER`` reads COUNT of its mutations and prints each one that ended in another way.
"""

import json
import os
import random
import resource
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

COUNT = 60
SLOW_COUNT = 8000
SECONDS = 5.0  # of one input
SLOW = [pytest.mark.slow, pytest.mark.timeout(3600)]
MEMORY = 512 * 2**20  # besides what imports take


# --- kinds: (write a good input, read a mutated one) ----------------------------------------------


def _image(folder):
    from images import bold, save

    return save(folder / "run.nii", bold((6, 5, 4, 7)))


def _packed(folder):
    from images import bold, save

    return save(folder / "run.nii.gz", bold((6, 5, 4, 7)))


def _extract(path):
    import numpy as np

    from sharedmask import extract

    extract(path, np.ones((6, 5, 4)), memory_limit="256M")


def _load(path):
    from sharedmask import SharedImage

    with SharedImage(path, memory_limit="256M") as image:
        image.frame(0).sum()


def _mask(folder):
    import numpy as np
    from images import save

    return save(folder / "mask.nii", (np.arange(120).reshape(6, 5, 4) % 3).astype("u1"))


def _packed_mask(folder):
    import numpy as np
    from images import save

    return save(folder / "mask.nii.gz", (np.arange(120).reshape(6, 5, 4) % 3).astype("u1"))


def _regions(path):
    from images import AFFINE

    from sharedmask import Regions
    from sharedmask.sources.grid import Grid

    grid = Grid((6, 5, 4), AFFINE)
    for make in (Regions.from_any, Regions.from_labels):
        try:
            make(path, grid)
        except ValueError as error:
            failed = error
        else:
            failed = None
    if failed is not None:
        raise failed


def _table(folder):
    path = folder / "labels.tsv"
    path.write_text("index\tname\n" + "".join(f"{i}\tregion {i}\n" for i in range(1, 9)))
    return path


def _lut(path):
    from sharedmask.regions.lut import read_lut

    read_lut(path)


def _confounds(folder):
    path = folder / "confounds.tsv"
    path.write_text("csf\twhite\n" + "".join(f"{i / 7}\t{i}\n" for i in range(7)))
    return path


def _read_confounds(path):
    from sharedmask.compute.confounds import read_confounds

    read_confounds(path)


def _sidecar(folder):
    _image(folder)
    path = folder / "run.json"
    path.write_text(json.dumps({"RepetitionTime": 0.8, "SliceTiming": [0, 0.4], "Nested": {"a": [None]}}))
    return path


def _with_sidecar(path):
    from sharedmask.sources.source import open_source

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert open_source(path.with_suffix(".nii")).shape == (6, 5, 4, 7)


def _toml(folder):
    path = folder / "config.toml"
    path.write_text('memory_limit = "2G"\nuse_disk = true\n')
    return path


def _settings(path):
    from sharedmask.settings import using

    with using(config=path):
        pass


def _frames(folder):
    import numpy as np
    from images import bold, niimg

    from sharedmask import FrameDataset

    path = folder / "frames.h5"
    with FrameDataset(niimg(bold((6, 5, 4, 7))), per_frame={"gradients": np.ones((7, 4))}) as frames:
        frames.to_filename(path)
    return path


def _read_frames(path):
    from sharedmask import FrameDataset

    with FrameDataset(path, memory_limit="256M") as frames:
        for frame in frames:
            frame[0].sum()


def _connectome(folder):
    from networks import mask, series, write

    return write(folder / "connectome.h5", series(3, 8), inside=mask())


def _read_connectome(path):
    from sharedmask.network.connectome import Connectome, share_block

    found = Connectome.open(path)
    for block in found.blocks(2**20):
        if block.n_subjects * found.subject_bytes < 2**26:
            with share_block(found, block) as shared:
                shared.lengths.sum()


def _journal(folder):
    from sharedmask.compute.journal import Entry, Journal

    path = folder / "complete.jsonl"
    for number in range(6):
        Journal(path).add(Entry(f"sub-{number}", "abc", (str(path),), 1.5))
    return path


def _read_journal(path):
    from sharedmask.compute.journal import Journal

    journal = Journal(path)
    journal.has("sub-3", "abc")


def _failure(folder):
    from sharedmask.compute.journal import Failures

    Failures(folder).add("sub-01", ValueError("cut short"))
    return next(folder.glob("*.json"))


def _failures(path):
    from sharedmask.compute.journal import Failures

    assert len(Failures(path.parent).all()) == 1


def _record(folder):
    from sharedmask import SharedImage

    path = folder / "record.json"
    with SharedImage(_image(folder)) as image:
        path.write_text(image.handle.to_json())
    return path


def _attach(path):
    from sharedmask.storage.segment import Handle

    Handle.from_json(path.read_text(errors="replace"))


def _message(folder):
    path = folder / "message"
    body = json.dumps({"version": 1, "verb": "list"}).encode()
    path.write_bytes(struct.pack(">I", len(body)) + body)
    return path


def _receive(path):
    import socket

    from sharedmask.image import protocol

    here, there = socket.socketpair()
    with here, there:
        there.sendall(path.read_bytes()[:100_000])
        there.shutdown(socket.SHUT_WR)
        protocol.receive(here)


KINDS = {
    "header": (_image, _extract),
    "stored": (_image, _load),
    "stream": (_packed, _extract),
    "mask": (_mask, _regions),
    "packed mask": (_packed_mask, _regions),
    "look-up table": (_table, _lut),
    "confounds": (_confounds, _read_confounds),
    "sidecar": (_sidecar, _with_sidecar),
    "configuration": (_toml, _settings),
    "frames": (_frames, _read_frames),
    "connectome": (_connectome, _read_connectome),
    "journal": (_journal, _read_journal),
    "failure": (_failure, _failures),
    "handle": (_record, _attach),
    "message": (_message, _receive),
}


NUMBERS = (-1, 0, 2**31 - 1, 32767, -(2**31), 10**9)
PIECES = (b"[" * 50_000, b"\0" * 9, b"\xff\xfe", b'"', b"\n", b"1e999", b"NaN")


# --- mutations ------------------------------------------------------------------------------------


def mutated(good, rng):
    """The bytes with some of them changed, cut out, doubled, or made large numbers; near the start mostly."""
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        place = rng.randrange(min(len(data), rng.choice((64, 400, 4000, len(data))))) if data else 0
        what = rng.randrange(7)
        if what == 0:
            data[place : place + 1] = bytes([rng.randrange(256)])
        elif what == 1:
            data[place : place + 1] = bytes([(data[place] if data else 0) ^ (1 << rng.randrange(8))])
        elif what == 2:
            del data[place:]
        elif what == 3:
            del data[place : place + rng.randrange(1, 50)]
        elif what == 4:
            data[place:place] = data[place : place + rng.randrange(1, 200)] * rng.randrange(1, 20)
        elif what == 5:
            data[place : place + 4] = struct.pack("<i", rng.choice(NUMBERS))
        else:
            data[place:place] = rng.choice(PIECES)
    return bytes(data)


def main(kind, seed, count, folder):
    from sharedmask.errors import SharedMaskError

    make, read = KINDS[kind]
    warnings.simplefilter("ignore")
    path = make(folder)
    good, rng = path.read_bytes(), random.Random(f"{kind} {seed}")
    read(path)  # all that it imports
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, held + MEMORY))
    for number in range(count):
        path.write_bytes(mutated(good, rng))
        print(number, end="\r", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            read(path)
        except SharedMaskError:
            pass
        except Exception as error:
            keep = folder / f"failed-{number}"
            keep.write_bytes(path.read_bytes())
            print(f"{kind} {seed} {number}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        if time.monotonic() - began > SECONDS:
            print(f"{kind} {seed} {number}: took {time.monotonic() - began:.1f} s", flush=True)


# HDF5 itself never comes back from some frames in some ten thousand, in C, where nothing ends it.
CASES = [(kind, COUNT) for kind in KINDS]
CASES += [pytest.param(kind, SLOW_COUNT, marks=SLOW) for kind in KINDS if kind != "frames"]


@pytest.mark.parametrize(("kind", "count"), CASES)
def test_a_mutated_input_is_refused_or_read(kind, count, tmp_path):
    seed = os.environ.get("SHAREDMASK_FUZZ_SEED", "0")
    arguments = map(str, (__file__, kind, seed, count, tmp_path / "inputs"))
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr[-2000:]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
    folder = Path(sys.argv[4])
    folder.mkdir(parents=True, exist_ok=True)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), folder)
