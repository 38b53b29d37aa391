"""BIDS names and trees."""

import json
from pathlib import Path

import pytest
from datasets import SPACE, atlas, preprocessed
from hypothesis import given
from hypothesis import strategies as st

from sharedmask.errors import DatasetError, NoInputError, ParameterError
from sharedmask.study.atlases import find_atlas
from sharedmask.study.bids import find_runs
from sharedmask.study.names import ENTITIES, Name, label

values = st.text("abcXYZ019", min_size=1, max_size=5)


@given(st.dictionaries(st.sampled_from(ENTITIES), values, min_size=1), st.sampled_from([".nii.gz", ".tsv"]))
def test_names_survive_a_round_trip_in_the_standards_order(entities, extension):
    written = str(Name(entities, "bold", extension))
    assert Name.parse(written) == Name(entities, "bold", extension)
    keys = [part.split("-")[0] for part in written.split("_")[:-1]]
    assert keys == sorted(entities, key=ENTITIES.index)


@pytest.mark.parametrize(
    "name", ["bold.nii.gz", "sub-01", "sub_01_bold.nii", "sub-01_task_bold.nii", "_bold.nii"]
)
def test_other_names_are_refused(name):
    with pytest.raises(ParameterError, match=r"no BIDS name"):
        Name.parse(name)


def test_labels_have_letters_and_digits_only():
    assert label("Schaefer 2018_400-parcels") == "Schaefer2018400parcels"


def test_a_run_comes_with_what_lies_beside_it(tmp_path):
    root = preprocessed(tmp_path / "in", tasks=("rest", "nback"))
    runs = find_runs(root)
    assert [str(run.name) for run in runs] == sorted(str(run.name) for run in runs) and len(runs) == 4
    for run in runs:
        assert run.mask.name.endswith("_desc-brain_mask.nii.gz") and run.mask.exists()
        assert run.confounds.name.endswith("_desc-confounds_timeseries.tsv") and run.confounds.exists()
        assert "space" not in run.confounds.name
        assert run.repetition_time[0] == 2.0 and run.sidecar["StartTime"] == 1.0
        assert run.folder == Path(f"sub-{run.name.entities['sub']}", "func")


def test_sessions_are_found(tmp_path):
    root = preprocessed(tmp_path / "in", subjects=("01",))
    (root / "sub-01" / "ses-a").mkdir()
    (root / "sub-01" / "func").rename(root / "sub-01" / "ses-a" / "func")
    for path in (root / "sub-01" / "ses-a" / "func").iterdir():
        path.rename(path.with_name(path.name.replace("sub-01_", "sub-01_ses-a_")))
    (run,) = find_runs(root, {"session": "ses-a"})
    assert run.folder == Path("sub-01/ses-a/func") and run.mask and run.confounds


def test_what_is_missing_is_none(tmp_path):
    root = preprocessed(tmp_path / "in", subjects=("01",))
    for path in (root / "sub-01" / "func").iterdir():
        if "_bold." not in path.name or path.suffix == ".json":
            path.unlink()
    (run,) = find_runs(root)
    assert (run.mask, run.confounds, run.repetition_time) == (None, None, None)


@pytest.mark.parametrize("where", ["task-rest_bold.json", "sub-01/sub-01_task-rest_bold.json"])
def test_sidecars_are_inherited_and_the_nearest_wins(tmp_path, where):
    root = preprocessed(tmp_path / "in", subjects=("01",))
    (root / where).write_text(json.dumps({"RepetitionTime": 9.0, "EchoTime": 0.03}))
    (root / "task-other_bold.json").write_text(json.dumps({"EchoTime": 7}))
    (run,) = find_runs(root)
    assert run.repetition_time[0] == 2.0 and run.sidecar["EchoTime"] == 0.03


@pytest.mark.parametrize("wanted", ["02", "sub-02", ["02"], ["sub-02", "01x"]])
def test_filters_take_labels_with_and_without_their_key(tmp_path, wanted):
    root = preprocessed(tmp_path / "in")
    (run,) = find_runs(root, {"participant": wanted})
    assert run.name.entities["sub"] == "02"


def test_a_filter_that_leaves_nothing_says_what_there_is(tmp_path):
    root = preprocessed(tmp_path / "in")
    with pytest.raises(NoInputError, match=r"has task-nback; there are: rest"):
        find_runs(root, {"task": "nback"})
    with pytest.raises(ParameterError, match=r"subjekt: no BIDS entity"):
        find_runs(root, {"subjekt": "01"})


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"is no folder"):
        find_runs(tmp_path / "none")
    with pytest.raises(DatasetError, match=r"has no dataset_description\.json"):
        find_runs(tmp_path)
    (tmp_path / "dataset_description.json").write_text("{")
    with pytest.raises(DatasetError, match=r"cannot be read"):
        find_runs(tmp_path)
    (tmp_path / "dataset_description.json").write_text('{"Name": "empty"}')
    with pytest.raises(NoInputError, match=r"holds no \.\.\._bold"):
        find_runs(tmp_path)


def test_an_atlas_by_file_and_by_name(tmp_path):
    path = atlas(tmp_path / "atlases")
    for found in (find_atlas(path), find_atlas("Toy", [tmp_path])):
        assert (found.image, found.name) == (path, "Toy")
        assert found.lut.name.endswith("_atlas-Toy_dseg.tsv")
    with pytest.raises(NoInputError, match=r"AAL is neither a file nor an atlas of .*there are: Toy"):
        find_atlas("AAL", [tmp_path])


def test_several_atlases_of_one_name_are_told_apart_by_space(tmp_path):
    path = atlas(tmp_path)
    other = path.with_name(path.name.replace("MNI152NLin2009cAsym", "MNI152NLin6Asym"))
    other.write_bytes(path.read_bytes())
    with pytest.raises(NoInputError, match=r"in several files"):
        find_atlas("Toy", [tmp_path])
    assert find_atlas("Toy", [tmp_path], SPACE.removeprefix("space-")).image == path
