"""``sharedmask network``: what it writes, its exit codes, and taking up where a kill stopped it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from images import AFFINE
from networks import lesion, mask, reference, series, write, write_split

from sharedmask import FunctionalNetworkMapper
from sharedmask.compute.journal import Failures
from sharedmask.errors import ParameterError
from sharedmask.network import output
from sharedmask.system import files

KEYS = ("rmap", "zmap", "tmap", "pmap", "pfdrmap", "tthresholdmap", "pfdrthresholdmap")


@pytest.fixture
def study(tmp_path):
    """A connectome of three files and nine lesions."""
    write_split(tmp_path / "connectome", series(), [2, 2, 2])
    (tmp_path / "lesions").mkdir()
    for number in range(9):
        nib.save(lesion(number)[0], tmp_path / f"lesions/sub-{number}.nii.gz")
    return tmp_path


def command(study, *options, out="out", lesions="lesions/*.nii.gz"):
    listed = sorted(map(str, study.glob(lesions)))
    given = ["--connectome", "connectome", "--out", out, "--t-threshold", "2", "--batch-size", "2"]
    return [sys.executable, "-W", "error", "-m", "sharedmask", "network", *listed, *given, *options]


def run(study, *options, **kwargs):
    return subprocess.run(
        command(study, *options, **kwargs), cwd=study, capture_output=True, text=True, timeout=120
    )


def contents(folder):
    """Of all files; what is recorded of the work itself is not among them."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def test_each_lesion_has_its_maps_and_its_summary(study):
    done = run(study)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    expected = FunctionalNetworkMapper(t_threshold=2).fit(study / "connectome")
    maps = expected.transform(str(study / "lesions/*.nii.gz"), batch_size=2)
    for name in maps:
        for key in KEYS:
            image = nib.load(study / f"out/{name}_{key}.nii.gz")
            np.testing.assert_array_equal(image.dataobj, maps[name][key].dataobj)
            np.testing.assert_allclose(image.affine, AFFINE, rtol=1e-6)
        said = json.loads((study / f"out/{name}_summary.json").read_text())
        assert said["summary"] == dict(maps[name].summary)
    assert Failures(study / "out/.sharedmask/failed").all() == {}
    table = pd.read_csv(study / "out/summary.tsv", sep="\t")
    assert list(table.lesion) == [f"sub-{number}" for number in range(9)]
    np.testing.assert_allclose(table["max"], [maps[name].summary["max"] for name in maps], rtol=1e-12)
    assert len(contents(study / "out")) == 9 * 8 + 2


def test_a_pattern_may_be_quoted(study):
    done = subprocess.run(
        [*command(study, lesions="none")[:6], "lesions/*.nii.gz", *command(study, lesions="none")[6:]],
        cwd=study, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((study / "out").glob("*_rmap.nii.gz"))) == 9


def test_some_that_fail_are_named_and_the_exit_code_is_1(study):
    outside = nib.Nifti1Image((~mask()).astype("u1"), AFFINE)
    nib.save(outside, study / "lesions/sub-2.nii.gz")
    shifted = AFFINE.copy()
    shifted[0, 3] += 40
    nib.save(lesion(affine=shifted)[0], study / "lesions/sub-3.nii.gz")
    (study / "lesions/sub-8.nii.gz").write_text("not an image")
    done = run(study)
    assert done.returncode == 1
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == ["sub-2", "sub-3", "sub-8"]
    errors = Failures(study / "out/.sharedmask/failed").all()
    assert errors["sub-2"].startswith("EmptyMaskError: ")
    assert errors["sub-3"].startswith("GridMismatchError: ")
    assert "sub-8.nii.gz" in errors["sub-8"]
    assert len(pd.read_csv(study / "out/summary.tsv", sep="\t")) == 6


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--connectome", "nowhere"], 66, "nowhere does not exist"),
        (["--connectome", "lesions/sub-1.nii.gz"], 65, "cannot be read as HDF5"),
        (["--batch-size", "0"], 64, "batch_size=0"),
        (["--fdr-alpha", "3"], 64, "fdr_alpha=3"),
        (["--method", "both"], 64, "both"),
        (["--memory-limit", "10K"], 75, "mapping a lesion"),
        (["--out", "lesions/sub-1.nii.gz/out"], 74, "sub-1.nii.gz"),
    ],
)
def test_exit_codes(options, code, message, study):
    done = run(study, *options)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_killed_and_resumed_the_files_are_those_of_an_undisturbed_run(study):
    """Killed in the second batch, between two files, with one of them half written."""
    assert run(study, "--n-jobs", "2", out="whole").returncode == 0
    child = subprocess.Popen(command(study), cwd=study, start_new_session=True)
    wanted = study / "out/sub-2_zmap.nii.gz"
    deadline = time.monotonic() + 60
    while not wanted.exists():
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.0005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (study / f"out/.sharedmask-{files._here()}-{child.pid}-5-{16 * '0'}.tmp").write_bytes(b"half")
    (study / "out/.notes.tmp").write_text("the user's")
    assert not (study / "out/summary.tsv").exists()
    before = {path.name: path.stat().st_mtime_ns for path in (study / "out").glob("sub-0_*")}
    done = run(study, "--resume")
    assert (done.returncode, done.stderr) == (0, "")
    (study / "out/.notes.tmp").unlink()
    assert contents(study / "out") == contents(study / "whole")
    assert {path.name: path.stat().st_mtime_ns for path in (study / "out").glob("sub-0_*")} == before


@pytest.fixture
def mapper(study):
    return FunctionalNetworkMapper().fit(study / "connectome")


def lesions_of(study):
    return sorted((study / "lesions").glob("*.nii.gz"))


def test_resuming_does_what_is_missing_changed_or_failed_before(study, mapper):
    (study / "lesions/sub-5.nii.gz").write_text("not an image")
    first = output.map_to(lesions_of(study), mapper, study / "out", batch_size=4)
    assert list(first.errors) == ["sub-5"]
    nib.save(lesion(5)[0], study / "lesions/sub-5.nii.gz")
    nib.save(lesion(77)[0], study / "lesions/sub-0.nii.gz")
    (study / "out/sub-8_summary.json").unlink()
    again = output.map_to(lesions_of(study), mapper, study / "out", resume=True)
    assert again.done == ("sub-0", "sub-5", "sub-8")
    assert len(again.skipped) == 6
    assert again.errors == Failures(study / "out/.sharedmask/failed").all() == {}
    chosen = lesion(77)[1]
    found = np.asarray(nib.load(study / "out/sub-0_zmap.nii.gz").dataobj)[mask()]
    np.testing.assert_allclose(found, reference(series(), chosen)[1], atol=1e-6)


def test_what_is_complete_is_not_read_again(study, mapper, monkeypatch):
    output.map_to(lesions_of(study), mapper, study / "out")
    monkeypatch.setattr("sharedmask.network.mapper.share_block", None)
    assert len(output.map_to(lesions_of(study), mapper, study / "out", resume=True).skipped) == 9


def test_lesions_whose_maps_are_gone_are_done_again(study, mapper):
    output.map_to(lesions_of(study), mapper, study / "out", batch_size=2)
    (study / "out").rename(study / "moved")
    (study / "moved/sub-4_zmap.nii.gz").unlink()
    again = output.map_to(lesions_of(study), mapper, study / "moved", resume=True)
    assert again.done == ("sub-4",)


def test_done_again_without_resume_nothing_of_before_is_complete(study, mapper, monkeypatch):
    output.map_to(lesions_of(study), mapper, study / "out", batch_size=2)
    monkeypatch.setattr(output, "write_maps", _full)
    with pytest.raises(OSError, match="No space left"):
        output.map_to(lesions_of(study), mapper, study / "out", batch_size=2)
    monkeypatch.undo()
    assert len(output.map_to(lesions_of(study), mapper, study / "out", resume=True).done) == 9


def _full(folder, maps):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("changed", [{"method": "pini"}, {"fdr_alpha": 0.01}, {"t_threshold": 3}])
def test_other_settings_are_not_mixed_in(changed, study, mapper):
    output.map_to(lesions_of(study), mapper, study / "out")
    other = FunctionalNetworkMapper(**changed).fit(study / "connectome")
    with pytest.raises(ParameterError, match=next(iter(changed))):
        output.map_to(lesions_of(study), other, study / "out", resume=True)


def test_another_connectome_is_not_mixed_in(study, mapper):
    output.map_to(lesions_of(study), mapper, study / "out")
    other = FunctionalNetworkMapper().fit(write(study / "other.h5", series(seed=8)))
    with pytest.raises(ParameterError, match="another connectome"):
        output.map_to(lesions_of(study), other, study / "out", resume=True)


def test_without_resume_all_is_done_again_and_nothing_else_is_touched(study, mapper):
    with_threshold = FunctionalNetworkMapper(t_threshold=1).fit(study / "connectome")
    output.map_to(lesions_of(study), with_threshold, study / "out")
    (study / "out/my_summary.json").write_text("the user's")
    report = output.map_to(lesions_of(study), mapper, study / "out")
    assert len(report.done) == 9
    assert (study / "out/my_summary.json").read_text() == "the user's"
    assert not list((study / "out").glob("*_tthresholdmap.nii.gz"))


def test_a_full_disk_ends_the_run_and_leaves_it_resumable(study, mapper, monkeypatch):
    write_maps = output.write_maps

    def full(folder, maps):
        if maps.name == "sub-3":
            raise OSError(28, "No space left on device")
        return write_maps(folder, maps)

    monkeypatch.setattr(output, "write_maps", full)
    with pytest.raises(OSError, match="No space left"):
        output.map_to(lesions_of(study), mapper, study / "out", batch_size=2)
    monkeypatch.undo()
    output.map_to(lesions_of(study), mapper, study / "out", resume=True)
    output.map_to(lesions_of(study), mapper, study / "whole", batch_size=2)
    assert contents(study / "out") == contents(study / "whole")


def test_progress_counts_lesions(study, mapper):
    told = []
    output.map_to(lesions_of(study), mapper, study / "out", batch_size=4, progress=lambda *n: told.append(n))
    assert told[-1] == (9, 9)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert any(done not in (4, 8, 9) for done, _ in told)  # within a batch, too
