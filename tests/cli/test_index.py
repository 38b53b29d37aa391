"""``sharedmask index``."""

import gzip

import pytest
from command import called, sharedmask
from gzip_files import small_pieces
from source_files import save, signal

from sharedmask.decoding import parallel
from sharedmask.sources.opening import open_source
from sharedmask.storage import indexes

pytest.importorskip("rapidgzip")


def test_an_index_of_each_file(tmp_path):
    """What has none is an error that says why, and no end of the others."""
    plain, none = save(tmp_path / "run.nii", signal()), tmp_path / "none.nii.gz"
    run = tmp_path / "run.nii.gz"
    run.write_bytes(gzip.compress(plain.read_bytes()))
    done = sharedmask("index", "--beside", str(none), str(plain), str(run))
    assert done.stdout == f"{run}.gzi\n" and (tmp_path / "run.nii.gz.gzi").exists()
    assert done.returncode == 65
    said = f"{none} does not exist", f"{plain} needs no index: it is no gzip file"
    assert done.stderr == "".join(f"sharedmask: {one}\n" for one in said)


@pytest.mark.parametrize("verb", ["info", "extract"])
def test_how_many_cores_decode(verb, tmp_path, monkeypatch):
    plain, run = save(tmp_path / "run.nii", signal((20, 21, 22, 40))), tmp_path / "run.nii.gz"
    run.write_bytes(gzip.compress(plain.read_bytes(), 1))
    save(tmp_path / "mask.nii", (signal((20, 21, 22)) > 100).astype("u1"))
    small_pieces(monkeypatch)
    indexes.make(open_source(run), beside=True)
    decide, decided = parallel.n_decoders, []
    monkeypatch.setattr(parallel, "n_decoders", lambda points: decided.append(decide(points)) or decided[-1])
    more = ["--mask", tmp_path / "mask.nii", "-o", tmp_path / "out.npz"] if verb == "extract" else []
    for asked, cores in (([], 4), (["--decode-jobs", "1"], 1), (["--decode-jobs", "3"], 3)):
        decided.clear()
        done = called(verb, run, *more, *asked)
        assert done.returncode == 0, done.stderr
        assert set(decided) == {cores}
