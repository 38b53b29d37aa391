"""Studies: derivatives of a BIDS data set, from the command line down."""

import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import PLAIN, SPACE, atlas, parcellations, signals, text, troubled
from images import SHAPE, save, truth

from sharedmask.errors import (
    DamagedImageError,
    EmptyMaskError,
    ParameterError,
    SharedMaskWarning,
    SourceChangedError,
)
from sharedmask.reports import figures
from sharedmask.sources.source import Source
from sharedmask.study.analysis import Outputs
from sharedmask.study.atlases import find_atlas
from sharedmask.study.bids import find_runs
from sharedmask.study.dataset import analyse
from sharedmask.study.summary import summarise

pytestmark = pytest.mark.usefixtures("blank_pictures")


def test_signals_equal_nilearns(dataset, toy, out):
    from nilearn.maskers import NiftiLabelsMasker

    analyse(dataset, out, [toy], PLAIN)
    for run in find_runs(dataset):
        table = pd.read_csv(signals(out, run.name.entities["sub"]), sep="\t")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            masker = NiftiLabelsMasker(toy.image, mask_img=run.mask, standardize=None, reports=False)
            expected = masker.fit_transform(run.bold)
        assert list(table.columns) == [f"region {i}" for i in range(1, 8)]
        np.testing.assert_allclose(table.to_numpy()[:, :6], expected, rtol=1e-6)
        assert table["region 7"].isna().all()  # of the table of names, without a voxel


def test_a_run_that_changed_while_it_was_read_is_prepared_anew(dataset, toy, out, monkeypatch):
    asked = {"denoise_strategy": "simple", "detrend": True}
    analyse(dataset, out / "whole", [toy], PLAIN, **asked)
    volumes, ended = Source.volumes, set()

    def changing(self):
        name = self.paths[0].name
        if name.endswith("_bold.nii.gz") and name not in ended:
            ended.add(name)
            raise SourceChangedError(f"{self.name} changed")
        return volumes(self)

    monkeypatch.setattr(Source, "volumes", changing)
    study = analyse(dataset, out / "again", [toy], PLAIN, **asked)
    assert len(study.complete) == len(ended) == 2 and study.errors == {}
    for subject in ("01", "02"):
        first, again = (
            signals(out / which, subject, desc="_desc-denoiseSimpleDetrend") for which in ("whole", "again")
        )
        assert first.read_text() == again.read_text()


def test_cleaned_signals_equal_nilearns(dataset, toy, out):
    from nilearn.interfaces.fmriprep import load_confounds_strategy
    from nilearn.maskers import NiftiLabelsMasker

    analyse(dataset, out, [toy], PLAIN, denoise_strategy="simple", detrend=True)
    run = find_runs(dataset)[0]
    confounds, kept = load_confounds_strategy(str(run.bold), "simple")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masker = NiftiLabelsMasker(
            toy.image, mask_img=run.mask, standardize=None, detrend=True, reports=False
        )
        expected = masker.fit_transform(run.bold, confounds=confounds, sample_mask=kept)
    path = signals(out, desc="_desc-denoiseSimpleDetrend")
    np.testing.assert_allclose(pd.read_csv(path, sep="\t").to_numpy()[:, :6], expected, rtol=1e-5, atol=1e-6)
    sidecar = json.loads(path.with_suffix(".json").read_text())
    steps = sidecar["SoftwareFilters"]["nilearn.signal.clean"]
    assert steps == {"detrend": True, "confounds": list(confounds.columns), "dropped_volumes": []}


def test_regions_covered_too_little_are_not_available(dataset, toy, out):
    run = find_runs(dataset)[0]
    inside, labels = truth(run.mask) != 0, truth(toy.image)
    shares = [inside[labels == label].mean() for label in range(1, 7)]
    least = float(np.median(shares))
    analyse(dataset, out, [toy], Outputs(min_coverage=least, reports=False))
    table = pd.read_csv(signals(out), sep="\t")
    for label, share in enumerate(shares, 1):
        assert table[f"region {label}"].isna().all() == (share < least)
    coverage = pd.read_csv(signals(out, stat="coverage").with_name(
        signals(out, stat="coverage").name.replace("timeseries", "bold")), sep="\t")  # fmt: skip
    np.testing.assert_allclose(coverage["coverage"], [*shares, 0], rtol=1e-5)
    assert "n/a" in signals(out).read_text()


def test_atlases_are_taken_together(dataset, toy, out, tmp_path):
    other = find_atlas(atlas(tmp_path / "atlases", "Other", n_regions=3, seed=1))
    analyse(dataset, out, [toy, other], PLAIN)
    alone = tmp_path / "alone"
    analyse(dataset, alone, [other], PLAIN)
    assert signals(out, name="Other").read_text() == signals(alone, name="Other").read_text()
    assert signals(out).exists()


def test_a_bad_run_is_named_and_the_others_complete(dataset, toy, out):
    bad = find_runs(dataset)[1].bold
    bad.write_bytes(bad.read_bytes()[:2000])
    study = analyse(dataset, out, [toy], PLAIN)
    assert len(study.complete) == 1 and isinstance(*study.errors.values(), DamagedImageError)
    (failed,) = (out / ".sharedmask" / "failed").iterdir()
    assert json.loads(failed.read_text())["kind"] == "DamagedImageError"
    assert "DamagedImageError" in summarise(out).read_text()
    bad.write_bytes(find_runs(dataset)[0].bold.read_bytes())
    again = analyse(dataset, out, [toy], PLAIN)
    assert len(again.complete) == 1 and len(again.skipped) == 1
    assert list((out / ".sharedmask" / "failed").iterdir()) == []


@pytest.mark.filterwarnings("ignore:the failure of")
def test_what_cannot_be_written_for_one_run_ends_no_other(dataset, toy, out):
    """Not even where the failure cannot be written either, as on a full disk."""
    (out / ".sharedmask").mkdir(parents=True)
    (out / ".sharedmask" / "failed").write_text("no folder")
    (out / "sub-01").write_text("no folder")
    done = analyse(dataset, out, [toy], Outputs(reports=False), n_jobs=1)
    (error,) = done.errors.values()
    assert isinstance(error, OSError) and "sub-01" in error.filename and len(done.complete) == 1


def test_the_first_crash_can_stop_it(dataset, toy, out):
    bad = find_runs(dataset)[0].bold
    bad.write_bytes(bad.read_bytes()[:2000])
    with pytest.raises(DamagedImageError):
        analyse(dataset, out, [toy], PLAIN, stop_on_first_crash=True)


def test_complete_runs_are_skipped_unless_asked(dataset, toy, out):
    assert len(analyse(dataset, out, [toy], PLAIN).complete) == 2
    assert len(analyse(dataset, out, [toy], PLAIN).skipped) == 2
    assert len(analyse(dataset, out, [toy], PLAIN, overwrite=True).complete) == 2
    assert len(analyse(dataset, out, [toy], PLAIN, overwrite=True, shard="2/2").complete) == 1
    assert len(analyse(dataset, out, [toy], PLAIN).skipped) == 2  # the other shard's is still recorded
    signals(out).unlink()
    assert len(analyse(dataset, out, [toy], PLAIN).complete) == 1


def test_changed_coverage_is_another_result(dataset, toy, out):
    analyse(dataset, out, [toy], PLAIN)
    assert len(analyse(dataset, out, [toy], Outputs(min_coverage=0.1, reports=False)).complete) == 2
    assert len(analyse(dataset, out, [toy], Outputs(min_coverage=0.1, reports=True)).complete) == 2


@pytest.mark.some(1)
@pytest.mark.parametrize("what", ["data set", "output", "both", "copy", "named from the output"])
def test_a_study_is_known_wherever_it_lies(dataset, toy, out, tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    assert len(analyse("fmriprep", "out", [toy], PLAIN).complete) == 2
    far = tmp_path / "far"
    far.mkdir()
    if what in ("data set", "both"):
        dataset = dataset.rename(far / "renamed")
    if what == "copy":
        dataset = Path(shutil.copytree(dataset, far / "copied"))
    if what in ("output", "both"):
        out = out.rename(far / "results")
    monkeypatch.chdir("/")
    if what == "named from the output":
        monkeypatch.chdir(out)
        dataset, out = "../fmriprep", "."
    again = analyse(dataset, out, [toy], PLAIN)
    assert len(again.skipped) == 2 and again.complete == []


@pytest.mark.some(1)
@pytest.mark.parametrize("what", ["sidecar", "confounds", "mask", "names", "image"])
@pytest.mark.filterwarnings("ignore:.* has two repetition times:sharedmask.errors.SharedMaskWarning")
def test_changed_inputs_are_done_again(dataset, toy, out, what):
    given = {"denoise_strategy": "simple"}
    analyse(dataset, out, [toy], PLAIN, **given)
    run = find_runs(dataset)[0]
    if what == "sidecar":
        run.sidecars[-1].write_text('{"RepetitionTime": 1.5}')
    elif what == "confounds":
        run.confounds.write_text(run.confounds.read_text().replace("0.", "1."))
    elif what == "names":
        toy.lut.write_text(toy.lut.read_text().replace("region 1", "first"))
    else:
        path = run.mask if what == "mask" else run.bold
        save(path, truth(path) * 0 + 1)
    again = analyse(dataset, out, [toy], PLAIN, **given)
    assert len(again.complete) == (2 if what == "names" else 1)
    if what == "sidecar":
        (sidecar,) = out.rglob("sub-01*mean*timeseries.json")
        assert json.loads(sidecar.read_text())["RepetitionTime"] == 1.5


def test_wrong_requests(dataset, toy, out):
    with pytest.raises(ParameterError, match=r"no atlas"):
        analyse(dataset, out, [])
    with pytest.raises(ParameterError, match=r"min_coverage=2"):
        analyse(dataset, out, [toy], Outputs(min_coverage=2), stop_on_first_crash=True)
    for run in find_runs(dataset):
        run.mask.unlink()
    with pytest.warns(SharedMaskWarning, match=r"sub-0[12]_.*: no brain mask was found"):
        study = analyse(dataset, out, [toy], Outputs(min_coverage=1.0))  # without a mask all is covered
    assert len(study.complete) == 2


def test_no_region_covered_is_an_error_of_its_run(dataset, toy, out):
    study = analyse(dataset, out, [toy], Outputs(min_coverage=1.0))
    assert {type(error) for error in study.errors.values()} == {EmptyMaskError}


# --- the command line ----------------------------------------------------------------------------


# --- everything at once --------------------------------------------------------------------------


def reference(facts, atlas, strategy=None, **cleaning):
    """The same signals by nilearn, from the files that the data set was made with."""
    from nilearn.interfaces.fmriprep import load_confounds_strategy
    from nilearn.maskers import NiftiLabelsMasker

    confounds = kept = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if strategy is not None:
            confounds, kept = load_confounds_strategy(str(facts["bold"]), strategy)
        masker = NiftiLabelsMasker(
            atlas,
            mask_img=facts["mask"],
            standardize=None,
            reports=False,
            keep_masked_labels=True,
            **cleaning,
        )
        return np.atleast_2d(masker.fit_transform(facts["bold"], confounds=confounds, sample_mask=kept)), kept


def table_of(out, key, atlas, desc=""):
    """The signals that a study wrote for a run, and their sidecar."""
    entities = key.replace("_desc-preproc_bold", "")
    sub, ses = entities.split("_")[:2]
    parcels = re.search(r"desc-(\w+)_dseg", atlas.name)[1]
    path = out / sub / ses / "func" / f"{entities}_atlas-Toy+{parcels}_stat-mean{desc}_timeseries.tsv"
    return pd.read_csv(path, sep="\t").to_numpy(), json.loads(path.with_suffix(".json").read_text())


@pytest.mark.some(1)
@pytest.mark.parametrize("shard", [None, "1/3"])
@pytest.mark.parametrize(
    ("strategy", "cleaning", "desc"),
    [
        (None, {}, ""),
        (None, {"low_pass": 0.1}, "_desc-lowpass100mHz"),
        ("scrubbing", {"high_pass": 0.02}, "_desc-denoiseScrubbingHighpass20mHz"),
    ],
)
def test_a_troubled_data_set(tmp_path, strategy, cleaning, desc, shard):
    root, out = tmp_path / "in", tmp_path / "out"
    expected = troubled(root)
    atlases = parcellations(tmp_path / "atlases")
    if strategy is not None:
        expected[f"sub-03_ses-2_task-rest_{SPACE}_desc-preproc_bold"] = "has no .*confounds_timeseries.tsv"
    if strategy is not None or cleaning:
        expected[f"sub-03_ses-1_task-nback_{SPACE}_desc-preproc_bold"] = "."
    with pytest.warns(SharedMaskWarning) as said:
        study = analyse(root, out, [find_atlas(atlas) for atlas in atlases], Outputs(min_coverage=0.0),
                        denoise_strategy=strategy, shard=shard, **cleaning)  # fmt: skip
    mine = dict(sorted(expected.items())[:: 3 if shard else 1])
    failing = {key: facts for key, facts in mine.items() if isinstance(facts, str)}
    page_of = {
        key: key.replace("_desc-preproc", f"_desc-preproc{desc[6:7].upper()}{desc[7:]}") for key in mine
    }
    assert set(study.errors) == {page_of[key] for key in failing}
    assert set(study.complete) == {page_of[key] for key in mine} - set(study.errors)
    failures = {json.loads(path.read_text())["run"]: json.loads(path.read_text())["error"]
                for path in (out / ".sharedmask" / "failed").iterdir()}  # fmt: skip
    for key, what in failing.items():
        assert re.search(what, failures[page_of[key]]), failures[page_of[key]]
    for key, facts in mine.items():
        if key in failing:
            continue
        for parcels in atlases:
            t_r = {"t_r": 2.0} if cleaning else {}
            signals, kept = reference(facts, parcels, strategy, **cleaning, **t_r)
            found, sidecar = table_of(out, key, parcels, desc)
            np.testing.assert_allclose(found, signals, rtol=1e-5, atol=1e-6)
            names = [Path(source).name for source in sidecar["Sources"]]
            used = [facts["bold"], facts["mask"], facts["confounds"] if strategy else None]
            assert names == [path.name for path in used if path is not None]
            assert "NaN" not in json.dumps(sidecar)
            if facts["bold"].name.startswith("sub-03_ses-1_task-nback"):
                continue
            assert sidecar["RepetitionTime"] == 2.0 and sidecar["RepetitionTimeSource"].endswith("_bold.json")
            if strategy is not None:
                assert sidecar["KeptVolumes"] == list(kept) and sidecar["NumberOfVolumes"] == 24
                outliers = next(out.rglob(f"{facts['bold'].name.split('_desc')[0]}{desc}_outliers.tsv"))
                dropped = pd.read_csv(outliers, sep="\t")["outlier"].to_numpy()
                assert list(np.flatnonzero(dropped == 0)) == list(kept)
    texts = [str(warning.message) for warning in said]
    assert sum("left out: " in text and "has no BIDS name" in text for text in texts) == 2
    maskless = f"sub-03_ses-2_task-rest_{SPACE}_desc-preproc_bold"
    if maskless in mine and maskless not in failing:
        assert any("no brain mask was found" in text and text.startswith(page_of[maskless]) for text in texts)
        assert table_of(out, maskless, atlases[0], desc)[1]["BrainMask"] is None
        assert "no brain mask was found" in text(out / f"{page_of[maskless]}.html")


@pytest.mark.some(2)
@pytest.mark.parametrize("known", ["tissue", "network", "nothing"])
def test_the_carpet_is_in_the_order_of_what_is_known(dataset, toy, out, monkeypatch, known):
    drawn = []
    monkeypatch.setattr(figures, "brain", lambda quality, groups, t_r: drawn.append(groups) or "data:,")
    anat = dataset / "sub-01" / "anat"
    anat.mkdir()
    tissues = np.random.default_rng(0).integers(1, 3, SHAPE).astype("uint8")
    segmentation = save(anat / f"sub-01_{SPACE}_dseg.nii.gz", tissues)
    if known != "tissue":  # as of a link that is not fetched yet
        segmentation.write_bytes(b"")
    if known == "network":
        rows = [f"{label}\tr{label}\t{'Vis' if label < 3 else 'DMN'}" for label in range(1, 8)]
        toy.lut.write_text("\n".join(["index\tname\tnetwork_label", *rows]) + "\n")
    assert not analyse(dataset, out, [toy], filters={"sub": "01"}, n_jobs=1).errors
    names = {
        "tissue": ["grey matter", "white matter"],
        "network": ["Vis", "DMN", "other"],
        "nothing": ["Toy", "other"],
    }
    assert [name for name, _ in drawn[0]] == names[known]
    page = next(out.glob("sub-01*.html")).read_text()
    assert (segmentation.name in page) == (known == "tissue")
