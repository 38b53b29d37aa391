"""Images on a server: the numbers of the same file here, by every way in, and nothing left on a disk."""

import gzip
import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import images
import nibabel as nib
import numpy as np
import pytest
from command import called
from servers import serving

from sharedmask import FrameDataset, SharedImage, extract, extract_many
from sharedmask.errors import DamagedImageError, ImageError, MissingFileError, RemoteError, SourceChangedError
from sharedmask.maskers import SharedLabelsMasker, SharedNiftiMasker
from sharedmask.remote import objects, retries
from sharedmask.sources.opening import open_source

RUN = "sub-01/func/sub-01_task-rest_bold.nii.gz"
LABELS = np.arange(np.prod(images.SHAPE)).reshape(images.SHAPE) % 4


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(retries, "PAUSE", 0.001)
    objects._folders.clear()


@pytest.fixture
def here(tmp_path):
    """The files, as a server has them and as this machine does."""
    folder = tmp_path / "here"
    (folder / RUN).parent.mkdir(parents=True)
    noise = np.random.default_rng(2).integers(0, 2**15, (*images.SHAPE, 500)).astype(np.int16)
    images.save(folder / RUN, noise)
    images.save(folder / "plain.nii", noise)
    images.save(folder / "atlas.nii.gz", LABELS.astype(np.uint8))
    images.save(folder / "mask.nii.gz", (LABELS > 1).astype(np.uint8))
    images.save(folder / "pair.img", noise, kind=nib.Nifti1Pair)
    (folder / "confounds.tsv").write_text("a\n" + "\n".join(map(str, range(500))) + "\n")
    return folder


@pytest.fixture
def server(here):
    with serving() as served:
        for path in filter(lambda one: one.is_file(), here.rglob("*")):
            served.files[path.relative_to(here).as_posix()] = path.read_bytes()
        yield served


def _labels(folder, run):
    return SharedLabelsMasker(f"{folder}/atlas.nii.gz", standardize=None).fit_transform(f"{folder}/{run}")


def _masked(folder, run):
    return SharedNiftiMasker(f"{folder}/mask.nii.gz", standardize=None).fit_transform(f"{folder}/{run}")


def _held(folder, run):
    with SharedImage(f"{folder}/{run}") as image:
        return image.mask_parallel([f"{folder}/mask.nii.gz", LABELS == 3], n_jobs=2)[0]


def _frame(folder, run):
    with FrameDataset(f"{folder}/{run}") as frames:
        return np.array(frames[7][0])


WAYS = {
    "mean": lambda folder, run: extract(f"{folder}/{run}", f"{folder}/atlas.nii.gz", strategy="mean"),
    "voxels": lambda folder, run: extract(f"{folder}/{run}", f"{folder}/mask.nii.gz"),
    "cleaned": lambda folder, run: extract(
        f"{folder}/{run}", f"{folder}/mask.nii.gz", confounds=f"{folder}/confounds.tsv", detrend=True
    ),
    "smoothed": lambda folder, run: extract(f"{folder}/{run}", f"{folder}/mask.nii.gz", smoothing_fwhm=5),
    "held": _held,
    "frame": _frame,
    "labels masker": _labels,
    "masker": _masked,
}


@pytest.mark.some(4)
@pytest.mark.parametrize("run", [RUN, "plain.nii", "pair.img"])
@pytest.mark.parametrize("way", WAYS)
def test_numbers_are_those_of_the_file(here, server, way, run):
    got, expected = WAYS[way](server.url, run), WAYS[way](here, run)
    images.same_bits(np.asarray(got), np.asarray(expected))


def test_nothing_is_written(here, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    extract(f"{server.url}/{RUN}", f"{server.url}/atlas.nii.gz", strategy="mean")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_line_cut_while_it_is_decoded(here, server):
    expected = WAYS["mean"](here, RUN)
    server.cuts = [70_000 + 977 * n for n in range(20)]
    np.testing.assert_array_equal(WAYS["mean"](server.url, RUN), expected)


@pytest.mark.parametrize("at", [0, 80_000])
def test_another_image_in_its_place_is_an_error(here, server, at):
    opened, other = open_source(f"{server.url}/{RUN}"), images.bold((*images.SHAPE, 500), seed=9)
    images.save(here / "other.nii.gz", other)
    if at:
        server.cuts = [at]
        server.after = lambda name, sent: (
            sent == at and server.files.update({RUN: (here / "other.nii.gz").read_bytes()})
        )
    else:
        server.files[RUN] = (here / "other.nii.gz").read_bytes()
    with pytest.raises(SourceChangedError):
        extract(opened, LABELS == 1)


def test_one_that_is_too_short(here, server):
    server.files[RUN] = server.files[RUN][:-100_000]
    with pytest.raises(DamagedImageError, match="is truncated"):
        extract(f"{server.url}/{RUN}", LABELS == 1)


def test_refusals(server):
    with pytest.raises(MissingFileError, match=r"none\.nii\.gz does not exist"):
        extract(f"{server.url}/none.nii.gz", LABELS == 1)
    server.answers = [(403, {})] * 8  # of the image and what may lie beside it
    with pytest.raises(RemoteError, match="the server answered 403"):
        extract(f"{server.url}/{RUN}", LABELS == 1)
    server.answers.clear()
    with pytest.raises(ImageError, match="lies on a server"):
        called_index(f"{server.url}/{RUN}")
    with pytest.raises(RemoteError, match="nosuch"):
        extract("nosuch://bucket/a.nii.gz", LABELS == 1)


def called_index(url):
    from sharedmask.storage import indexes

    indexes.make(open_source(url))


@pytest.mark.parametrize("listing", [True, False])
@pytest.mark.parametrize("told", [f"{RUN[:-7]}.json", "task-rest_bold.json"])
def test_sidecars_beside_it(server, told, listing):
    server.listing = listing
    server.files[told] = b'{"RepetitionTime": 2.0004}'
    source = open_source(f"{server.url}/{RUN}")
    assert (source.t_r, source.t_r_origin) == (2.0004, f"{server.url}/{told}")


@pytest.mark.parametrize("end", [b"not gzip", b"\0" * 100, gzip.compress(b"another member")])
def test_what_follows_the_image(here, server, end):
    server.files[RUN] += end
    np.testing.assert_array_equal(WAYS["mean"](server.url, RUN), WAYS["mean"](here, RUN))


@pytest.mark.parametrize("told", [None, f"{RUN[:-7]}.json", "task-rest_bold.json"])
def test_what_is_waited_for(server, told):
    """All that tells of an image at once, then its bytes, then whether it is the same still."""
    if told:
        server.files[told] = b'{"RepetitionTime": 2.0004}'
    folders, names = 3, 1
    server.meeting = threading.Barrier(2 + folders * (1 + names), timeout=20)
    source = open_source(f"{server.url}/{RUN}")
    server.meeting = None
    n_opening = len(server.requests)
    assert n_opening == 2 + folders * (1 + names)
    extract(source, LABELS == 1)
    assert len(server.requests) == n_opening + 2
    with SharedImage(source) as image:
        image.load()
    assert len(server.requests) == n_opening + 4


def test_paths_and_protocols_in_capitals(here, server):
    expected = WAYS["mean"](here, RUN)
    for url in (Path(f"{server.url}/{RUN}"), f"HTTP{server.url[4:]}/{RUN}"):
        np.testing.assert_array_equal(extract(url, here / "atlas.nii.gz", strategy="mean"), expected)


def test_a_few_volumes_are_of_one_version(here, server):
    asked = {"masks": LABELS == 1, "sample_mask": np.arange(3)}
    expected = extract(here / RUN, **asked)
    np.testing.assert_array_equal(extract(f"{server.url}/{RUN}", **asked), expected)
    source = open_source(f"{server.url}/{RUN}")
    server.after = lambda *_: server.files.update({RUN: server.files[RUN][::-1]})
    with pytest.raises(SourceChangedError):
        extract(source, **asked)


def test_shell(here, server, tmp_path):
    out = tmp_path / "out.tsv"
    assert (
        called(
            "extract", f"{server.url}/{RUN}", "--atlas", f"{server.url}/atlas.nii.gz", "-o", out
        ).returncode
        == 0
    )
    here_out = tmp_path / "here.tsv"
    called("extract", here / RUN, "--atlas", here / "atlas.nii.gz", "-o", here_out)
    assert out.read_bytes() == here_out.read_bytes()
    told = called("info", f"{server.url}/{RUN}")
    assert "7 x 6 x 5 x 500" in told.stdout
    assert (
        called("extract", f"{server.url}/none.nii.gz", "--atlas", here / "atlas.nii.gz", "-o", out).returncode
        == 66
    )


def test_a_cohort_is_resumed_without_reading_it_again(here, server, tmp_path):
    names = [f"sub-{n:02}_bold.nii.gz" for n in range(6)]
    for n, name in enumerate(names):
        images.save(here / name, images.bold((*images.SHAPE, 400), seed=n))
        server.files[name] = (here / name).read_bytes()
    urls = {
        f"{server.url}/{name}?signature=secret": f"{server.url}/{name}?signature=secret" for name in names
    }
    kept = {}

    def keep(key, result):
        kept[key] = result
        if len(kept) == 4:
            raise KeyboardInterrupt

    asked = {"masks": here / "atlas.nii.gz", "strategy": "mean", "resume": tmp_path / "done.jsonl"}
    with pytest.raises(KeyboardInterrupt):
        extract_many(urls, on_result=keep, **asked)
    complete = list(kept)[:3]
    assert "secret" not in (tmp_path / "done.jsonl").read_text()
    kept.clear()
    before = len(server.requests)  # what is still sent of those that were interrupted is of others
    extract_many(urls, on_result=kept.__setitem__, **asked)
    assert set(kept) == set(urls) - set(complete)
    left = [name for name in names if f"{server.url}/{name}?signature=secret" not in complete]  # in any order
    whole = {path for path, headers in server.requests[before:] if headers.get("Range", "-").endswith("-")}
    assert {f"/{name}?signature=secret" for name in left} == {one for one in whole if "signature" in one}
    for name in left:
        expected = extract(here / name, here / "atlas.nii.gz", strategy="mean")
        np.testing.assert_array_equal(kept[f"{server.url}/{name}?signature=secret"], expected)


def test_cached_results_are_of_the_version(here, server, tmp_path):
    asked = {"masks": LABELS == 1, "memory": tmp_path / "cache"}
    first = extract(f"{server.url}/{RUN}", **asked)
    sent = server.bytes_sent
    np.testing.assert_array_equal(extract(f"{server.url}/{RUN}", **asked), first)
    assert server.bytes_sent - sent < len(server.files[RUN])
    images.save(here / RUN, images.bold((*images.SHAPE, 500), seed=4))
    server.files[RUN] = (here / RUN).read_bytes()
    assert not np.array_equal(extract(f"{server.url}/{RUN}", **asked), first)


def test_file_systems_of_fsspec(here):
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for path in filter(lambda one: one.is_file(), here.rglob("*")):
        files.pipe(f"/data/{path.relative_to(here).as_posix()}", path.read_bytes())
    files.pipe("/data/task-rest_bold.json", b'{"RepetitionTime": 2.0004}')
    try:
        for way in ("mean", "voxels", "held"):
            images.same_bits(np.asarray(WAYS[way]("memory://data", RUN)), np.asarray(WAYS[way](here, RUN)))
        source = open_source(f"memory://data/{RUN}")
        assert source.t_r == 2.0004
        with pytest.raises(MissingFileError, match=r"memory://data/none\.nii\.gz does not exist"):
            open_source("memory://data/none.nii.gz")
        files.pipe(f"/data/{RUN}", (here / "plain.nii").read_bytes())
        with pytest.raises(SourceChangedError):
            extract(source, LABELS == 1)
    finally:
        files.store.clear()


_BUCKETS = """
import os, sys
from pathlib import Path

import boto3
import numpy as np
from moto.server import ThreadedMotoServer

from sharedmask import SharedImage, extract
from sharedmask.errors import MissingFileError, SourceChangedError
from sharedmask.sources.opening import open_source

here, run = Path(sys.argv[1]), sys.argv[2]
server = ThreadedMotoServer(port=0, verbose=False)
server.start()
os.environ["AWS_ENDPOINT_URL"] = "http://{}:{}".format(*server.get_host_and_port())
os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
made = boto3.client("s3", aws_access_key_id="a", aws_secret_access_key="b")
made.create_bucket(Bucket="openneuro", ACL="public-read")
for path in filter(Path.is_file, here.rglob("*")):
    key = path.relative_to(here).as_posix()
    made.put_object(Bucket="openneuro", Key=key, Body=path.read_bytes(), ACL="public-read")
made.put_object(Bucket="openneuro", Key="task-rest_bold.json", Body=b'{"RepetitionTime": 2.0004}')

def signals(folder, **asked):
    if "confounds" in asked:
        asked["confounds"] = f"{folder}/confounds.tsv"
    return extract(f"{folder}/{run}", f"{folder}/mask.nii.gz", **asked)

for asked in ({"strategy": "mean"}, {}, {"confounds": "confounds.tsv"}):
    assert np.array_equal(signals("s3://openneuro", **asked), signals(here, **asked)), asked
with SharedImage(f"s3://openneuro/{run}") as image:
    assert image.t_r == 2.0004, image.t_r_origin
opened = open_source(f"s3://openneuro/{run}")
made.put_object(Bucket="openneuro", Key=run, Body=(here / "plain.nii").read_bytes(), ACL="public-read")
try:
    extract(opened, here / "mask.nii.gz")
except SourceChangedError:
    print("changed")
try:
    open_source("s3://openneuro/none.nii.gz")
except MissingFileError as error:
    print(error)
server.stop()
"""


@pytest.mark.long
@pytest.mark.parametrize("account", [{}, {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}])
def test_buckets(here, account):
    """In a process of its own: s3fs keeps its connections."""
    for library in ("s3fs", "moto", "flask_cors"):
        if find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    home = {"HOME": str(here), "PATH": os.environ["PATH"], "AWS_EC2_METADATA_DISABLED": "true"}
    known = {"PYTHONPATH": os.pathsep.join(sys.path), **home, **account}
    call = [sys.executable, "-c", _BUCKETS, here, RUN]
    done = subprocess.run(call, env=known, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["changed", "s3://openneuro/none.nii.gz does not exist"]
