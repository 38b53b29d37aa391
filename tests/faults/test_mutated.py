"""Mutated inputs of every kind, in a child with little memory: our errors or right numbers, never a hang.

Each kind makes one good input, and reads it as its callers do; what is read is what an independent reader
(nibabel, h5py, pandas) finds in the same bytes, or, where there is a checksum, what was there before.
``python tests/faults/test_mutated.py SEED COUNT FOLDER [KIND...]`` reads COUNT mutations of each kind, in a
fork for each, and prints each one that ended in another way. An input that keeps a fork for 5 s ends it.
"""

import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

COUNT = int(os.environ.get("SHAREDMASK_FUZZ_COUNT", "15"))
SLOW = os.environ.get("SHAREDMASK_SLOW_TESTS")
LONG_COUNT = int(os.environ.get("SHAREDMASK_FUZZ_COUNT", "5500" if SLOW else "350"))  # of each of 18 kinds
SECONDS = 5.0  # of one input
MEMORY = 512 * 2**20  # besides what imports take; twice what calls may use
LIMIT = {"memory_limit": "256M"}
SHAPE = (6, 5, 4, 7)
EVERYWHERE = np.ones(SHAPE[:3])


# --- kinds: (write a good input, read a mutated one) ----------------------------------------------


def _same(ours, theirs, path, rtol=0.0):
    """Ours are the values of another reader, if that makes something of the file."""
    try:
        expected = np.asanyarray(theirs(path))
    except Exception:
        return
    np.testing.assert_allclose(np.reshape(ours, expected.shape), expected, rtol, atol=0.0)


def _nibabel(path):
    import nibabel as nib

    return nib.load(path).dataobj


def _by_voxel(path):
    values = np.asanyarray(_nibabel(path))
    return np.reshape(values, (-1, values.shape[3]))


def _image(folder, name="run.nii"):
    from images import bold, save

    return save(folder / name, bold(SHAPE))


def _packed(folder):
    return _image(folder, "run.nii.gz")


def _extract(path):
    from sharedmask import extract

    _same(extract(path, EVERYWHERE, **LIMIT).T, _by_voxel, path)


def _load(path):
    from sharedmask import SharedImage

    with SharedImage(path, **LIMIT) as image:
        _same(image.mask(np.ones(image.shape[:3])).T, _by_voxel, path)


def _labels():
    return (np.arange(120).reshape(SHAPE[:3]) % 3).astype("u1")


def _mask(folder, name="mask.nii"):
    from images import save

    return save(folder / name, _labels())


def _packed_mask(folder):
    return _mask(folder, "mask.nii.gz")


def _regions(path):
    from images import AFFINE

    from sharedmask import Regions
    from sharedmask.spaces.grid import Grid

    grid, failed = Grid(SHAPE[:3], AFFINE), None
    for make, inside in ((Regions.from_any, _inside), (Regions.from_labels, _labelled)):
        try:
            found = make(path, grid)
        except ValueError as error:
            failed = error
        else:
            _same(np.sort(found.indices), inside, path)
    if failed is not None:
        raise failed


def _inside(path):
    values = np.ravel(np.asanyarray(_nibabel(path)), order="F")
    return np.flatnonzero(np.nan_to_num(values))


def _labelled(path):
    values = np.ravel(np.asanyarray(_nibabel(path)), order="F")
    return np.flatnonzero(np.rint(np.nan_to_num(values)))  # labels are whole numbers


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

    _same(read_confounds(path), _table_of_pandas, path)


def _table_of_pandas(path):
    import pandas as pd

    table = pd.read_csv(path, sep="\t", dtype=float)
    assert table.shape == (7, 2)
    return table


def _sidecar(folder):
    _image(folder)
    path = folder / "run.json"
    path.write_text(json.dumps({"RepetitionTime": 0.8, "SliceTiming": [0, 0.4], "Nested": {"a": [None]}}))
    return path


def _with_sidecar(path):
    from sharedmask.sources.opening import open_source

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = open_source(path.with_suffix(".nii"))
    assert found.shape == SHAPE
    if found.t_r_origin == str(path):
        assert found.t_r == json.loads(path.read_bytes())["RepetitionTime"]


def _toml(folder):
    path = folder / "config.toml"
    path.write_text('memory_limit = "2G"\nuse_disk = true\n')
    return path


def _settings(path):
    import tomllib

    from sharedmask.settings import using

    with using(config=path) as found:
        said = tomllib.loads(path.read_text())
        assert {name: getattr(found, name) for name in said} == said


def _frames(folder):
    from images import bold, niimg

    from sharedmask import FrameDataset

    path = folder / "frames.h5"
    with FrameDataset(niimg(bold(SHAPE)), per_frame={"gradients": np.ones((7, 4))}) as frames:
        frames.to_filename(path)
    return path


def _read_frames(path):
    import h5py

    from sharedmask import FrameDataset

    with FrameDataset(path, **LIMIT) as frames:
        found = np.stack([frame[0] for frame in frames], axis=-1)
    _same(found, lambda path: h5py.File(path)["0/dataobj"][()], path)


def _connectome(folder):
    from networks import mask, series, write

    return write(folder / "connectome.h5", series(3, 8), inside=mask())


def _read_connectome(path):
    from sharedmask.network.connectome import Connectome, share_block

    found = Connectome.open(path)
    for block in found.blocks(2**20):
        if block.n_subjects * found.subject_bytes < 2**26:
            with share_block(found, block) as shared:
                lengths = np.array(shared.lengths)
            whole = _undamaged()  # what HDF5 itself takes for zeros where a key is damaged
            if lengths.shape != whole.shape or not np.allclose(lengths, whole, rtol=1e-5, atol=0):
                _same(lengths, _lengths, path, rtol=1e-5)


def _undamaged():
    from networks import rows_of, series

    return rows_of(series(3, 8))[1].astype("f4")


def _lengths(path):
    import h5py
    from networks import rows_of

    with np.errstate(all="ignore"):
        return rows_of(h5py.File(path)["timeseries"][()])[1].astype("f4")


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


def _result(folder):
    """The result that was kept of an image."""
    _extract_kept(_image(folder))
    (path,) = folder.rglob("*.result")
    return path


def _extract_kept(run):
    from sharedmask import extract

    return extract(run, [EVERYWHERE], memory=run.parent / "cache", **LIMIT)[0]


def _read_result(path):
    """Whatever the entry holds, the values are those of the image."""
    run = next(folder / "run.nii" for folder in path.parents if (folder / "run.nii").exists())
    _same(_extract_kept(run).T, _by_voxel, run)


def _rows(folder):
    _load_rows(_image(folder))
    (path,) = folder.rglob("*.rows")
    return path


def _load_rows(run):
    from sharedmask import SharedImage
    from sharedmask.settings import using

    with using(spill_dir=run.parent), SharedImage(run, store="disk", **LIMIT) as image:
        return np.array(image.array)


def _read_rows(path):
    """Of what stays on the disk the header has a checksum, and the size is known."""
    path.chmod(0o400)
    run = path.parents[1] / "run.nii"
    _same(_load_rows(run), _nibabel, run)


def _published(folder):
    """The record of an image that this process shares."""
    from sharedmask import SharedImage
    from sharedmask.storage import registry

    os.environ["SHAREDMASK_DIR"] = str(folder / "registry")
    _shared.append(SharedImage(_image(folder), store="shm", name="run").load())
    return registry.directory() / f"{_shared[0].handle.token}.json"


_shared = []


def _find(path):
    from sharedmask import SharedImage
    from sharedmask.storage import registry

    registry.entries()
    with SharedImage.attach("run") as image:
        np.testing.assert_array_equal(image.array, _shared[0].array)


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
    "kept result": (_result, _read_result),
    "rows on disk": (_rows, _read_rows),
    "record": (_published, _find),
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


def read_all(kind, seed, count, folder):
    """Read as many mutated inputs; what is wrong is printed, and kept."""
    from sharedmask.errors import SharedMaskError

    make, read = KINDS[kind]
    path = make(folder)
    good, rng = path.read_bytes(), random.Random(f"{kind} {seed}")
    read(path)  # all that it imports
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, held + MEMORY))
    n_read = 0
    first = 4096 if kind == "rows on disk" else len(good)
    for number in range(count):
        data = mutated(good[:first], rng) + good[first:]
        if kind != "record":  # whose file is locked for as long as its owner lives
            path.unlink(missing_ok=True)
        path.write_bytes(data)
        (folder / "number").write_text(str(number))
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            read(path)
            n_read += 1
        except SharedMaskError:
            pass
        except Exception as error:
            (folder / f"failed-{number}").write_bytes(data)
            print(f"{kind} {seed} {number}: {type(error).__name__}: {str(error)[:200]!r}", flush=True)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    (folder / "read").write_text(str(n_read))


def main(seed, count, folder, kinds):
    import h5py  # noqa: F401
    import images  # noqa: F401
    import networks  # noqa: F401
    import pandas  # noqa: F401

    import sharedmask.image.protocol  # noqa: F401

    warnings.simplefilter("ignore")
    for kind in kinds or KINDS:
        place = folder / kind.replace(" ", "-")
        place.mkdir(parents=True)
        (place / "number").write_text("0")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                read_all(kind, seed, count, place)
                code = 0
            except Exception as error:
                print(f"{kind}: {error!r}")
            finally:
                sys.stdout.flush()
                os._exit(code)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if ended:
            said = "took too long" if ended == -signal.SIGALRM else f"ended with {ended}"
            print(f"{kind} {seed}: number {(place / 'number').read_text()} {said}", flush=True)


LONG = [pytest.mark.long, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("count", [COUNT, pytest.param(LONG_COUNT, marks=LONG)])
def test_a_mutated_input_is_refused_or_read(count, tmp_path):
    """Of each kind 15, or 350 where the long tests run, or 5500 with ``SHAREDMASK_SLOW_TESTS``."""
    seed = os.environ.get("SHAREDMASK_FUZZ_SEED", "0")
    arguments = map(str, (__file__, seed, count, tmp_path))
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr[-2000:]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
