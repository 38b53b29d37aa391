"""Manifests: what would be read and written, and what is seen to be wrong before anything is read."""

import gzip
import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from datasets import SPACE, atlas, parcellations, preprocessed, troubled
from images import save, truth
from nilearn.image import resample_to_img

from sharedmask.errors import ParameterError, SharedMaskWarning
from sharedmask.study.analysis import Analysis, Outputs
from sharedmask.study.atlases import find_atlas
from sharedmask.study.bids import find_runs
from sharedmask.study.dataset import analyse, draw_manifests
from sharedmask.study.denoising import Denoise
from sharedmask.study.derivatives import Derivatives
from sharedmask.study.manifest import Manifest, clashes

pytestmark = pytest.mark.usefixtures("blank_pictures")


@pytest.fixture
def root(tmp_path):
    return preprocessed(tmp_path / "in", subjects=("01",))


def drawn(root, toy, strategy=None, **cleaning):
    (run,) = find_runs(root)
    return Manifest.draw(
        run, Analysis((toy,), Outputs(), Denoise.of(strategy), cleaning), Derivatives.at(root / "out", root)
    )


def test_all_that_is_read_is_told_with_where_it_is_from(root, toy):
    rows = drawn(root, toy, "simple").rows
    func = f"sub-01/func/sub-01_task-rest_{SPACE}"
    assert rows["bold"].startswith(f"{func}_desc-preproc_bold.nii.gz: 7 x 6 x 5 voxels, 40 volumes")
    assert rows["mask"] == f"{func}_desc-brain_mask.nii.gz"
    assert rows["repetition time"] == f"2 s, of {func}_desc-preproc_bold.json"
    assert "26 columns of the strategy simple, 40 of 40 volumes kept" in rows["confounds"].replace("28", "26")
    assert rows["space"] == "MNI152NLin2009cAsym"
    assert str(toy.image) in rows["atlas Toy"] and str(toy.lut) in rows["atlas Toy"]


def test_what_is_given_wins(root, toy):
    manifest = drawn(root, toy, t_r=1.25, low_pass=0.1)
    assert (manifest.t_r, manifest.origin) == (1.25, "given") and manifest.problems == []
    assert manifest.facts()["SoftwareFilters"] == {"nilearn.signal.clean": {"low_pass": 0.1, "t_r": 1.25}}


def test_what_is_missing_is_a_note_or_a_problem(root, toy):
    (run,) = find_runs(root)
    run.mask.unlink()
    for path in run.sidecars:
        path.unlink()
    run.confounds.unlink()
    toy.lut.unlink()
    manifest = drawn(root, find_atlas(toy.image), "simple")
    assert manifest.rows["mask"] == manifest.rows["confounds"] == "not found"
    assert [note.split(":")[0] for note in manifest.notes] == [
        "no brain mask was found",
        "no sidecar was found",
    ]
    (problem,) = manifest.problems
    assert "has no ..._desc-confounds_timeseries.tsv beside it" in str(problem)
    with pytest.raises(type(problem)):
        manifest.check()
    assert "no table of names" in manifest.analysis.notes[0]


@pytest.mark.parametrize("filters", [{}, {"low_pass": 0.1}])
def test_two_repetition_times_are_noted(root, toy, filters):
    (run,) = find_runs(root)
    save(run.bold, truth(run.bold), t_r=1.5)
    manifest = drawn(root, toy, **filters)
    assert manifest.t_r == 2.0 and manifest.problems == []
    (note,) = manifest.notes
    assert "1.5 s in its header, 2 s in " in note and note in manifest.table()["note"]


@pytest.mark.parametrize("filters", [{}, {"low_pass": 0.1}])
def test_a_repetition_time_that_is_no_number_is_a_note_or_a_problem(root, toy, filters):
    (run,) = find_runs(root)
    run.sidecars[-1].write_text('{"RepetitionTime": NaN}')
    manifest = drawn(root, toy, **filters)
    said = manifest.problems if filters else manifest.notes
    assert len(manifest.notes + manifest.problems) == 1
    assert f"{run.sidecars[-1]} says RepetitionTime: NaN" in str(said[0])
    assert manifest.rows["repetition time"] == "not known"


@pytest.mark.parametrize("move", [1e-7, 1e-4, 0.3])
def test_a_brain_mask_off_by_more_than_rounding_is_resampled_and_noted(root, toy, move):
    (run,) = find_runs(root)
    affine = nib.load(run.mask).affine.copy()
    affine[0, 3] += move * 3.5
    inside = np.asanyarray(nib.load(run.mask).dataobj)
    save(run.mask, inside, affine)
    manifest = drawn(root, toy)
    assert manifest.problems == []
    assert manifest.notes == (
        ["the brain mask lies on another grid: it is resampled, nearest neighbour"] if move == 0.3 else []
    )
    there = resample_to_img(
        nib.load(run.mask), nib.load(run.bold), interpolation="nearest", force_resample=True, copy_header=True
    )
    kept = np.asanyarray(there.dataobj) if move == 0.3 else inside
    np.testing.assert_array_equal(manifest._brain, np.flatnonzero(kept.ravel(order="F")))


def test_one_volume_has_no_matrix(tmp_path, toy):
    root = preprocessed(tmp_path / "short", subjects=("01",), n_timepoints=1)
    (run,) = find_runs(root)
    asked = Analysis((toy,), Outputs(connectivity=["correlation"]))
    (problem,) = Manifest.draw(run, asked, Derivatives.at(root / "out", root)).problems
    assert str(problem).startswith("connectivity needs several volumes")


@pytest.mark.parametrize("asked", [{"low_pass": 0.1}, {"high_pass": 0.01, "low_pass": 0.1}])
def test_a_run_too_short_for_a_filter_is_seen_beforehand(tmp_path, toy, asked):
    root = preprocessed(tmp_path / "short", subjects=("01",), n_timepoints=18)
    (problem,) = drawn(root, toy, **asked).problems
    assert "volumes: " in str(problem) and str(problem).endswith("has 18")


def test_all_problems_are_seen_at_once(root, toy):
    (run,) = find_runs(root)
    for path in (run.mask, run.sidecars[-1], run.confounds):
        path.unlink()
        path.symlink_to("gone")
    other = find_atlas(toy.image.rename(toy.image.with_name("tpl-MNI152NLin6Asym_atlas-Toy_dseg.nii.gz")))
    manifest = drawn(root, other, "simple")
    texts = "\n".join(str(problem) for problem in manifest.problems)
    assert texts.count("datalad get") == 3 and "is in the space MNI152NLin6Asym" in texts
    assert sum(line.startswith("  problem") for line in manifest.lines()) == len(manifest.problems)


@pytest.mark.some(1)
@pytest.mark.parametrize("strategy", [None, "scrubbing"])
@pytest.mark.filterwarnings("ignore::sharedmask.errors.SharedMaskWarning")
def test_a_dry_run_tells_what_the_run_does(tmp_path, strategy):
    data, out = tmp_path / "in", tmp_path / "out"
    troubled(data)
    atlases = [find_atlas(path) for path in parcellations(tmp_path / "atlases")]
    given = {"denoise_strategy": strategy, "low_pass": 0.1}
    manifests = {m.analysis.key(m.run): m for m in draw_manifests(data, out, atlases, **given)}
    assert not out.exists()
    study = analyse(data, out, atlases, **given)
    assert {key for key, manifest in manifests.items() if not manifest.problems} >= set(study.complete)
    assert all(manifests[key].problems for key in study.errors)
    for key in study.complete:
        assert all(path.is_file() for path in manifests[key].written)
        page = (out / f"{key}.html").read_text()
        for value in manifests[key].rows.values():
            assert value.split(":")[0] in page


def test_no_two_runs_are_written_to_one_file(tmp_path, root, toy):
    (run,) = find_runs(root)
    twin = run.bold.with_name(run.bold.name.removesuffix(".gz"))
    twin.write_bytes(gzip.decompress(run.bold.read_bytes()))
    study = analyse(root, tmp_path / "out", [toy])
    assert sorted(study.errors) == [twin.name, run.bold.name]
    assert all("would both be written to" in str(error) for error in study.errors.values())
    assert list((tmp_path / "out").rglob("*.tsv")) == []


def test_files_that_share_an_output_are_named():
    assert clashes({"a": ["x", "y"], "b": ["z"], "c": ["y"]}) == dict.fromkeys(
        "ac", "a and c would both be written to y"
    )


@pytest.mark.parametrize(
    "names", [("one/a", "two/a"), ("a_b", "a-b"), ("atlas-A_res-1_dseg", "atlas-A_res-2_dseg")]
)
def test_no_two_atlases_are_written_to_one_file(tmp_path, root, names):
    atlases = []
    for name in names:
        path = tmp_path / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        atlases.append(find_atlas(atlas(tmp_path / "made").rename(path)))
    with pytest.raises(ParameterError, match=r"would both be written to \.\.\._atlas-"):
        analyse(root, tmp_path / "out", atlases)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::sharedmask.errors.SharedMaskWarning")
@pytest.mark.parametrize("names", [("a.v1", "a.v2"), ("atlas-A_scale-1_dseg", "atlas-A_scale-2_dseg"),
                                   ("atlas-A_desc-x_dseg", "atlas-A_desc-y_dseg")])  # fmt: skip
def test_atlases_keep_what_tells_them_apart(tmp_path, root, names):
    atlases = []
    for seed, name in enumerate(names):
        path = tmp_path / f"{name}.nii.gz"
        atlases.append(find_atlas(atlas(tmp_path / "made", seed=seed).rename(path)))
    out = tmp_path / "out"
    analyse(root, out, atlases, Outputs(min_coverage=0.0, reports=False))
    tables = [pd.read_csv(path, sep="\t").to_numpy() for path in out.rglob("*stat-mean_timeseries.tsv")]
    assert len(tables) == 2 and not np.array_equal(*tables)
    files = {json.loads(path.read_text())["AtlasFile"] for path in out.rglob("*_timeseries.json")}
    assert files == {found.image.name for found in atlases}


def test_runs_keep_their_desc(tmp_path, root, toy):
    (run,) = find_runs(root)
    for path in (run.bold, run.sidecars[-1]):
        path.with_name(path.name.replace("preproc", "smoothed")).write_bytes(path.read_bytes())
    analyse(root, tmp_path / "out", [toy], filters={"desc": ["preproc", "smoothed"]})
    stem = f"sub-01_task-rest_{SPACE}_atlas-Toy_stat-mean"
    found = sorted(path.name for path in (tmp_path / "out").rglob("*mean*timeseries.tsv"))
    assert found == [f"{stem}_desc-smoothed_timeseries.tsv", f"{stem}_timeseries.tsv"]


@pytest.mark.usefixtures("blank_pictures")
def test_what_was_done_is_in_the_names(tmp_path, root, toy):
    out = tmp_path / "out"
    simple, psc = {"denoise_strategy": "simple"}, {"standardize": "psc"}
    ways = [{}, simple, {"low_pass": 0.1}, {"low_pass": 0.08}, simple | psc]
    for number, way in enumerate(ways):
        outputs = Outputs(reports=number < 2)
        assert len(analyse(root, out, [toy], outputs, **way).complete) == 1
    assert len(list(out.rglob("*mean*timeseries.tsv"))) == len(ways)
    assert len(list(out.glob("sub*.html"))) == 2
    for number, way in enumerate(ways):
        assert len(analyse(root, out, [toy], Outputs(reports=number < 2), **way).skipped) == 1


@pytest.mark.some(2)
@pytest.mark.parametrize("how", ["folders", "files", "root", "inside"])
def test_files_go_by_the_names_of_the_users_data_set(tmp_path, root, toy, how):
    """Trees of links: of folders, of files, as the root itself, and as git-annex has them within."""
    linked = tmp_path / "linked"
    if how == "root":
        linked.symlink_to(root)
    elif how == "folders":
        linked.mkdir()
        for path in root.iterdir():
            (linked / path.name).symlink_to(path)
    elif how == "files":
        for path in [path for path in root.rglob("*") if path.is_file()]:
            target = linked / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    else:
        linked = root.rename(linked)
        objects = linked / ".git" / "annex" / "objects"
        objects.mkdir(parents=True)
        for number, path in enumerate(sorted(linked.glob("sub-*/func/*"))):
            path.rename(objects / f"MD5E-{number}")
            path.symlink_to(f"../../.git/annex/objects/MD5E-{number}")
    out = tmp_path / "out"
    study = analyse(linked, out, [toy])
    assert study.errors == {}
    (sidecar,) = out.rglob("*mean_timeseries.json")
    said = json.loads(sidecar.read_text())
    stem = f"bids:preprocessed:sub-01/func/sub-01_task-rest_{SPACE}"
    assert said["Sources"] == [f"{stem}_desc-preproc_bold.nii.gz", f"{stem}_desc-brain_mask.nii.gz"]
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    assert links == {"preprocessed": linked.as_uri()}
    assert said["RepetitionTime"] == 2.0


def test_missing_masks_tables_and_spaces_are_said(tmp_path, root, toy):
    (run,) = find_runs(root)
    run.mask.unlink()
    toy.lut.unlink()
    plain = find_atlas(toy.image.rename(tmp_path / "plain.nii.gz"))
    with pytest.warns(SharedMaskWarning) as said:
        analyse(root, tmp_path / "out", [plain])
    texts = "\n".join(str(warning.message) for warning in said)
    for what in ("no brain mask was found", "no table of names", "its space is not known"):
        assert texts.count(what) == 1
    page = (tmp_path / "out" / "study.html").read_text()
    assert "no table of names" in page and "its space is not known" in page and "no brain mask" in page
