"""A BIDS data set on a server: the outputs of the same one here, found by one walk, done again if changed."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from datasets import preprocessed, signals
from servers import serving

from sharedmask.errors import MissingFileError, NoInputError, ParameterError, RemoteError
from sharedmask.remote import objects, retries, trees
from sharedmask.study.analysis import Outputs
from sharedmask.study.atlases import find_atlas
from sharedmask.study.bids import find_runs
from sharedmask.study.dataset import analyse, draw_manifests

PLAIN = Outputs(reports=False, connectivity="correlation")
RUN = "sub-01/func/sub-01_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
# TaskName is told above, for all runs; a page lies where subjects do.
ABOVE = {"task-rest_bold.json": b'{"RepetitionTime": 2.0, "TaskName": "above"}', "sub-01.html": b"<html>"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(retries, "PAUSE", 0.001)
    monkeypatch.setattr(retries, "TRIES", 2)
    yield
    objects._folders.clear()
    trees.forget()


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def here(tmp_path):
    root = preprocessed(tmp_path / "here")
    (
        root / "sub-02" / "func" / RUN.rpartition("/")[2].replace(".nii.gz", ".json").replace("01", "02")
    ).unlink()
    for name, content in ABOVE.items():
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def web(here):
    with serving() as served:
        served.listing = True
        served.files = {f"derivatives/{name}": path.read_bytes() for name, path in files_of(here).items()}
        yield served


@pytest.fixture
def bucket(here):
    """Of fsspec's file system in memory; that of S3 is below."""
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for name, path in files_of(here).items():
        memory.pipe(f"/bucket/derivatives/{name}", path.read_bytes())
    yield memory
    memory.store.clear()


@pytest.fixture(params=["web", "bucket"])
def url(request, web, bucket):
    return f"{web.url}/derivatives" if request.param == "web" else "memory://bucket/derivatives"


def written(folder):
    """All tables and sidecars by name."""
    below = folder.glob("sub-*/func/*")
    return {path.name: path.read_bytes() for path in below}


@pytest.mark.some(2)
@pytest.mark.parametrize("denoise", [None, "simple"], ids=["as it is", "by nilearn"])
def test_outputs_are_those_of_the_data_set_here(here, url, toy, tmp_path, denoise):
    asked = {"outputs": PLAIN, "denoise_strategy": denoise, "n_jobs": 1, "shard": "1/1"}
    assert len(analyse(here, tmp_path / "of here", [toy], **asked).complete) == 2
    done = analyse(f"{url}/", tmp_path / "of there", [toy], **asked)
    assert len(done.complete) == 2, done.errors
    expected = written(tmp_path / "of here")
    assert written(tmp_path / "of there") == expected
    description = json.loads((tmp_path / "of there" / "dataset_description.json").read_text())
    assert description["SourceDatasets"] == [{"URL": url}]
    assert description["DatasetLinks"] == {"preprocessed": url}


@pytest.mark.some(1)
def test_pages_and_dry_runs(url, toy, out):
    manifests = list(draw_manifests(url, out, [toy]))
    assert [len(one.problems) for one in manifests] == [0, 0]
    assert "boldref" in str(manifests[0].run.reference)
    assert f"  bold             {RUN}: " in "\n".join(manifests[0].lines())


def test_filters_and_what_is_beside_a_run(url, toy):
    (run,) = find_runs(url, {"sub": "02"})
    assert run.sidecar == {"RepetitionTime": 2.0, "TaskName": "above"}
    assert [path.name.rpartition("_")[2] for path in (run.mask, run.confounds, run.reference)] == [
        "mask.nii.gz", "timeseries.tsv", "boldref.nii.gz"]  # fmt: skip
    with pytest.raises(NoInputError, match=rf"no run of {url} has task-nback; there are: rest"):
        find_runs(url, {"task": "nback"})


def test_one_walk_finds_all(web, here):
    find_runs(f"{web.url}/derivatives")
    asked = [path for path, _ in web.requests]
    assert len(asked) == 6  # the root, two subjects, two folders of runs, the description
    assert not any(path.endswith(".nii.gz") for path in asked)


def test_complete_runs_are_not_read_again(web, toy, out):
    asked = f"{web.url}/derivatives", out, [toy], PLAIN
    assert len(analyse(*asked, n_jobs=1, shard="1/1").complete) == 2
    read = before = web.bytes_sent
    assert len(analyse(*asked, n_jobs=1, shard="1/1").skipped) == 2
    assert web.bytes_sent - before < read / 2  # heads, which of files as small are whole
    web.files[f"derivatives/{RUN}"] = web.files[f"derivatives/{RUN.replace('01', '02')}"]
    again = analyse(*asked, n_jobs=1, shard="1/1")
    assert (len(again.complete), len(again.skipped)) == (1, 1)
    assert RUN.rpartition("/")[2].removesuffix("_bold.nii.gz") in again.complete[0]


def test_a_bucket_is_resumed_by_its_listing(bucket, toy, out, monkeypatch):
    asked = "memory://bucket/derivatives", out, [toy], PLAIN
    analyse(*asked, n_jobs=1, shard="1/1")
    read = []
    fetch = type(bucket).cat_file
    monkeypatch.setattr(
        type(bucket), "cat_file", lambda self, path, **how: read.append(path) or fetch(self, path, **how)
    )
    assert len(analyse(*asked, n_jobs=1, shard="1/1").skipped) == 2
    assert read == ["/bucket/derivatives/dataset_description.json"]
    bucket.pipe(f"/bucket/derivatives/{RUN}", bucket.cat(f"/bucket/derivatives/{RUN.replace('01', '02')}"))
    assert len(analyse(*asked, n_jobs=1, shard="1/1").complete) == 1


def test_atlases_on_a_server(web, here, toy, tmp_path):
    for path in toy.image.parent.iterdir():
        web.files[f"atlases/{path.name}"] = path.read_bytes()
    there = find_atlas(f"{web.url}/atlases/{toy.image.name}")
    assert (there.entities, there.digest, there.space) == (toy.entities, toy.digest, toy.space)
    for name, atlas in (("a", toy), ("b", there)):
        analyse(here, tmp_path / name, [atlas], PLAIN, n_jobs=1, shard="1/1")
    assert signals(tmp_path / "a", "01").read_bytes() == signals(tmp_path / "b", "01").read_bytes()


def test_what_cannot_be_searched(web, bucket, out, toy, here):
    web.listing = False
    with pytest.raises(RemoteError, match=r"the server answered 403"):
        find_runs(f"{web.url}/derivatives")
    with pytest.raises(RemoteError, match=r"cannot be read: .*refused"):
        find_runs("http://127.0.0.1:9/derivatives")
    with pytest.raises(MissingFileError, match=r"memory://none does not exist"):
        find_runs("memory://none")
    with pytest.raises(ParameterError, match=r"outputs go to a folder of this machine, not to s3://b/out"):
        analyse(here, "s3://b/out", [toy])


_BUCKETS = """
import os, sys
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from sharedmask.cli import bids

here, out, atlas, run = map(Path, sys.argv[1:])
server = ThreadedMotoServer(port=0, verbose=False)
server.start()
os.environ["AWS_ENDPOINT_URL"] = "http://{}:{}".format(*server.get_host_and_port())
os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
made = boto3.client("s3", aws_access_key_id="a", aws_secret_access_key="b")
made.create_bucket(Bucket="openneuro", ACL="public-read")
for path in filter(Path.is_file, here.rglob("*")):
    key = "derivatives/" + path.relative_to(here).as_posix()
    made.put_object(Bucket="openneuro", Key=key, Body=path.read_bytes(), ACL="public-read")

def app(url):
    sys.argv = ["sharedmask-bids", url, str(out), "participant", "--atlases", str(atlas), "--no-reports"]
    try:
        bids.main()
    except SystemExit as stop:
        print(stop.code or 0, flush=True)

app("s3://openneuro/derivatives")
app("s3://openneuro/derivatives")
other = str(run).replace("01", "02")
body = (here / other).read_bytes()
made.put_object(Bucket="openneuro", Key=f"derivatives/{run}", Body=body, ACL="public-read")
app("s3://openneuro/derivatives")
app("s3://none/derivatives")
server.stop()
app("s3://openneuro/derivatives")
"""


@pytest.mark.long
def test_buckets(here, toy, out):
    """In a process of its own: s3fs keeps its connections."""
    for library in ("s3fs", "moto", "flask_cors"):
        if find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    home = {
        "HOME": str(here),
        "PATH": os.environ["PATH"],
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }
    known = {"PYTHONPATH": os.pathsep.join(sys.path), **home}
    call = [sys.executable, "-c", _BUCKETS, here, out, toy.image, RUN]
    done = subprocess.run(call, env=known, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line for line in done.stdout.splitlines() if line]
    assert [line for line in said if line.isdigit()] == ["0", "0", "0", "66", "65"], (said, done.stderr)
    assert "s3://none/derivatives does not exist" in done.stderr
