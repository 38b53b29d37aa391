"""BIDS trees: which images are runs, and what lies beside them."""

import json
import os
from pathlib import Path

import pytest
from datasets import MNI, mask_of, preprocessed, run_of

from sharedmask.errors import DatasetError, MissingFileError, NoInputError, ParameterError
from sharedmask.sources.opening import open_source
from sharedmask.study.bids import NATIVE, find_runs, look_through


def test_a_run_comes_with_what_lies_beside_it(tmp_path):
    root = preprocessed(tmp_path / "in", tasks=("rest", "nback"))
    runs = find_runs(root)
    assert [str(run.name) for run in runs] == sorted(str(run.name) for run in runs) and len(runs) == 4
    for run in runs:
        assert run.mask.name.endswith("_desc-brain_mask.nii.gz") and run.mask.exists()
        assert run.confounds.name.endswith("_desc-confounds_timeseries.tsv") and run.confounds.exists()
        assert "space" not in run.confounds.name
        assert run.sidecar["RepetitionTime"] == 2.0 and run.sidecar["StartTime"] == 1.0
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
    assert (run.mask, run.confounds, run.sidecars) == (None, None, ())


@pytest.mark.parametrize("where", ["task-rest_bold.json", "sub-01/sub-01_task-rest_bold.json"])
def test_sidecars_are_inherited_and_the_nearest_wins(tmp_path, where):
    root = preprocessed(tmp_path / "in", subjects=("01",))
    (root / where).write_text(json.dumps({"RepetitionTime": 9.0, "EchoTime": 0.03}))
    (root / "task-other_bold.json").write_text(json.dumps({"EchoTime": 7}))
    (run,) = find_runs(root)
    assert run.sidecar["RepetitionTime"] == 2.0 and run.sidecar["EchoTime"] == 0.03


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


# --- found by entities ---------------------------------------------------------------------------


def described(root):
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "some"}')
    return root


STEM = "sub-01_task-rest_run-1"


@pytest.mark.parametrize(
    ("bold", "masks", "found"),
    [
        ("", [f"{STEM}_{MNI}"], f"{STEM}_{MNI}"),
        ("_echo-2", [f"{STEM}_{MNI}"], f"{STEM}_{MNI}"),
        ("_echo-2", [f"{STEM}_echo-1_{MNI}"], f"{STEM}_echo-1_{MNI}"),
        ("_echo-2", [f"{STEM}_echo-1_{MNI}", f"{STEM}_echo-2_{MNI}"], f"{STEM}_echo-2_{MNI}"),
        ("_echo-2", [f"{STEM}_echo-1_{MNI}", f"{STEM}_{MNI}"], f"{STEM}_{MNI}"),
        ("_part-mag", [f"{STEM}_part-phase_{MNI}"], f"{STEM}_part-phase_{MNI}"),
        ("", [f"{STEM}_echo-1_{MNI}"], f"{STEM}_echo-1_{MNI}"),
        ("", [f"sub-01_task-rest_run-01_{MNI}"], f"sub-01_task-rest_run-01_{MNI}"),
        ("", [f"sub-01_task-rest_{MNI}"], f"sub-01_task-rest_{MNI}"),
        ("", [f"sub-01_task-rest_{MNI}", f"{STEM}_{MNI}"], f"{STEM}_{MNI}"),
        ("", [f"sub-01_task-rest_run-2_{MNI}"], None),
        ("", [STEM], None),
        ("", [f"{STEM}_space-T1w"], None),
        ("", [f"{STEM}_{MNI}_res-2"], None),
        ("", [f"sub-01_task-nback_{MNI}"], None),
    ],
)
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_masks_are_found_by_entities(tmp_path, bold, masks, found, extension):
    root = described(tmp_path / "in")
    path = run_of(root, f"{STEM}{bold}")
    for name in masks:
        mask_of(path, name, extension=extension)
    (run,) = find_runs(root)
    assert run.mask == (found and path.with_name(f"{found}_desc-brain_mask{extension}"))


def test_of_a_mask_with_and_without_compression_the_one_like_the_run_is_taken(tmp_path):
    root = described(tmp_path / "in")
    path = run_of(root, STEM)
    for extension in (".nii", ".nii.gz"):
        mask_of(path, f"{STEM}_{MNI}", extension=extension)
    assert find_runs(root)[0].mask.name.endswith(".nii.gz")


def test_several_masks_that_could_be_meant_are_named(tmp_path):
    root = described(tmp_path / "in")
    path = run_of(root, f"{STEM}_echo-3")
    for echo in (1, 2):
        mask_of(path, f"{STEM}_echo-{echo}_{MNI}")
    with pytest.raises(DatasetError, match=r"has several files of one kind: .*echo-1.*, .*echo-2"):
        _ = find_runs(root)[0].mask


@pytest.mark.parametrize("what", ["mask", "confounds", "sidecar"])
def test_links_to_nothing_are_named_with_how_to_get_them(tmp_path, what):
    root = preprocessed(tmp_path / "in", subjects=("01",))
    (run,) = find_runs(root)
    path = {"mask": run.mask, "confounds": run.confounds, "sidecar": run.sidecars[-1]}[what]
    path.unlink()
    path.symlink_to("../../.git/annex/objects/gone")
    (run,) = find_runs(root)
    with pytest.raises(MissingFileError, match=rf"{path.name} is a link to .*gone, .*`datalad get "):
        getattr(run, what)


@pytest.mark.parametrize("target", ["gone", "a/b/gone"])
def test_an_image_that_is_a_link_to_nothing_is_named_with_how_to_get_it(tmp_path, target):
    """git-annex has a folder for each content, which is not there either."""
    root = preprocessed(tmp_path / "in", subjects=("01",))
    (run,) = find_runs(root)
    (root / ".git" / "annex" / "objects").mkdir(parents=True)
    run.bold.unlink()
    run.bold.symlink_to(f"../../.git/annex/objects/{target}")
    (again,) = find_runs(root)
    assert again.sidecars == run.sidecars
    with pytest.raises(MissingFileError, match=rf"{run.bold.name} is a link to .*gone, .*`datalad get "):
        open_source(str(again.bold), again.sidecars)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "Expecting value"),
        ('{"a": "\u00fc"}'.encode("latin-1"), "it is not UTF-8"),
        (b"[1]", "a JSON object was expected, not list"),
    ],
)
def test_what_is_wrong_with_a_sidecar_is_the_runs_alone(tmp_path, content, what):
    root = preprocessed(tmp_path / "in")
    find_runs(root)[0].sidecars[-1].write_bytes(content)
    bad, good = find_runs(root)
    with pytest.raises(DatasetError, match=what):
        _ = bad.sidecar
    assert good.sidecar["RepetitionTime"] == 2.0


def test_marks_of_byte_order_and_numbers_that_are_none_are_read_past(tmp_path):
    root = preprocessed(tmp_path / "in", subjects=("01",))
    (run,) = find_runs(root)
    run.sidecars[-1].write_bytes(b'\xef\xbb\xbf{"RepetitionTime": 1.5, "StartTime": NaN}')
    (run,) = find_runs(root)
    assert run.start_time is None and run.sidecar["RepetitionTime"] == 1.5


@pytest.mark.parametrize(
    "name",
    ["tmp_bold.nii.gz", "bold.nii.gz", f"sub-01_task-rest_{MNI}_desc-preproc (copy)_bold.nii.gz",
     f"sub-01_task-n-back_{MNI}_desc-preproc_bold.nii.gz", "sub-01_task-rest_task-rest_bold.nii.gz",
     f"sub-02_task-rest_{MNI}_desc-preproc_bold.nii.gz", "sub-01_ses-1_task-rest_desc-preproc_bold.nii.gz",
     f"sub-01_task-rest_{MNI}:res-2_desc-preproc_bold.nii.gz", "sub-01_desc-v1.2_bold.nii.gz"],
)  # fmt: skip
def test_stray_images_are_left_out_and_named(tmp_path, name):
    root = preprocessed(tmp_path / "in", subjects=("01",))
    (run,) = find_runs(root)
    run.bold.with_name(name).write_bytes(b"")
    assert [found.bold for found in find_runs(root)] == [run.bold]
    ((path, why),) = look_through(root, None)[1].items()
    assert path.name == name and name in why


@pytest.mark.parametrize("what", ["sub-02", "sub-01/ses-9", "sub-03/func"])
@pytest.mark.parametrize("to", ["nothing", "itself"])
def test_folders_that_are_links_to_nothing_are_named(tmp_path, what, to):
    root = preprocessed(tmp_path / "in", subjects=("01",))
    (root / what).parent.mkdir(exist_ok=True)
    (root / what).symlink_to("gone" if to == "nothing" else (root / what).name)
    assert len(find_runs(root)) == 1
    ((path, why),) = look_through(root, None)[1].items()
    assert path == root / what and ("datalad get" if to == "nothing" else "leads back to itself") in why


def test_hidden_files_are_nobodys(tmp_path):
    root = preprocessed(tmp_path / "in", subjects=("01",))
    (run,) = find_runs(root)
    run.bold.with_name(f"._{run.bold.name}").write_bytes(b"")
    assert len(find_runs(root)) == 1 and look_through(root, None)[1] == {}


@pytest.mark.parametrize(
    ("space", "sidecar", "expected"),
    [
        (MNI, {}, "MNI152NLin2009cAsym"),
        ("space-MNIInfant_cohort-2", {}, "MNIInfant+2"),
        ("acq-x", {}, NATIVE),
        ("acq-x", {"SpatialReference": "MNI152NLin6Asym"}, "MNI152NLin6Asym"),
        (
            "acq-x",
            {"SpatialReference": "https://x.org/tpl-MNI152NLin6Asym_res-02_T1w.nii.gz"},
            "MNI152NLin6Asym",
        ),
        ("acq-x", {"SpatialReference": {"VolumeReference": "MNI305"}}, "MNI305"),
        *(
            ("acq-x", {"SpatialReference": f"{place}tpl-MNIInfant_cohort-2_T1w.nii.gz{query}"}, "MNIInfant+2")
            for place, query in [
                ("bids:mni:", ""),
                ("bids::", ""),
                ("bids:tpl:tpl-MNIInfant/cohort-2/", ""),
                ("sourcedata/", ""),
                ("file:///data/", ""),
                ("https://x.org/", "?download=1"),
                ("s3://bucket/", ""),
            ]
        ),
        ("acq-x", {"SpatialReference": {"VolumeReference": "bids:mni:tpl-MNI305_T1w.nii.gz"}}, "MNI305"),
        ("acq-x", {"SpatialReference": "bids::sub-01/anat/T1w.nii.gz"}, "bids::sub-01/anat/T1w.nii.gz"),
    ],
)
def test_a_run_has_a_space(tmp_path, space, sidecar, expected):
    root = described(tmp_path / "in")
    path = run_of(root, STEM, space=space)
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))
    assert find_runs(root)[0].space == expected


@pytest.mark.parametrize("wanted", [{"run": 1}, {"run": "01"}, {"run": ["1"]}, {"echo": None}])
def test_filters_take_numbers_and_what_is_not_there(tmp_path, wanted):
    root = described(tmp_path / "in")
    run_of(root, STEM)
    run_of(root, "sub-01_task-rest_run-2_echo-1")
    (run,) = find_runs(root, wanted)
    assert run.name.entities["run"] == "1"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("closed", ["sub-02", "sub-02/func"])
def test_a_folder_that_may_not_be_looked_into_is_left_out_and_said(tmp_path, closed):
    root = preprocessed(tmp_path / "in")
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    (root / closed).chmod(0)
    os.seteuid(65534)
    try:
        runs, strays = find_runs(root), look_through(root, None)[1]
    finally:
        os.seteuid(0)
    assert [run.name.entities["sub"] for run in runs] == ["01"]
    assert strays == {root / closed: f"{root / closed} may not be looked into"}


@pytest.mark.parametrize(
    ("session", "space", "names", "expected"),
    [
        ("", MNI, ["anat/sub-01_{space}_dseg", "func/sub-01_task-rest_{space}_desc-aparcaseg_dseg"], 1),
        ("", MNI, ["func/sub-01_task-rest_{space}_desc-aparcaseg_dseg",
                   "func/sub-01_task-rest_{space}_desc-aseg_dseg"], 1),
        ("", MNI, ["func/sub-01_task-rest_space-T1w_desc-aseg_dseg", "anat/sub-01_dseg",
                   "anat/sub-01_{space}_label-GM_dseg", "anat/sub-01_{space}_res-1_dseg"], 3),
        ("", MNI, ["anat/sub-01_dseg", "anat/sub-01_space-MNI152NLin6Asym_dseg"], None),
        ("", "space-T1w", ["anat/sub-01_{space}_desc-x_dseg", "anat/sub-01_dseg"], 1),
        ("ses-a", MNI, ["anat/sub-01_{space}_dseg"], 0),
        ("ses-a", MNI, ["anat/sub-01_{space}_dseg", "ses-a/anat/sub-01_ses-a_{space}_dseg"], 1),
    ],
)  # fmt: skip
def test_a_segmentation_is_that_of_the_runs_space(tmp_path, session, space, names, expected):
    root = preprocessed(tmp_path / "in", subjects=("02",))
    run_of(root, f"sub-01_{session}_task-rest".replace("__", "_"), space=space)
    paths = [root / "sub-01" / f"{name.format(space=space)}.nii.gz" for name in names]
    for path in paths:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"")
    (run,) = find_runs(root, {"sub": "01"})
    assert run.segmentation == (None if expected is None else paths[expected])


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ({"datatype": "func", "suffix": "bold", "extension": [".nii.gz", ".nii"]}, 3),
        ({"extension": "nii.gz", "session": None}, 2),
        ({"session": "Query.NONE", "echo": "Query.OPTIONAL"}, 2),
        ({"ses": "*"}, 1),
        ({"session": ["a", None], "acquisition": "Query.NONE", "task": "rest"}, 2),
        ({"acquisition": "Query.ANY"}, 1),
        ({"suffix": "T1w"}, "no run of .* has suffix-T1w; there are: bold"),
        ({"datatype": ["anat"]}, "has datatype-anat; there are: func"),
        ({"space": None}, "no run of .* is without space; there are: MNI"),
        ({"task": ["Query.NONE", "x"]}, "has task-x or is without task; there are: nback, rest"),
        ({"session": "Query.ANY", "task": "nback"}, "has task-nback; there are: rest"),
    ],
)
def test_filters_are_those_of_fmriprep_too(tmp_path, filters, left):
    root = preprocessed(tmp_path / "in", subjects=("02",))
    for stem in ("sub-01_ses-a_task-rest", "sub-01_task-nback_acq-x"):
        run_of(root, stem)
    if isinstance(left, int):
        assert len(find_runs(root, filters)) == left
    else:
        with pytest.raises(NoInputError, match=left):
            find_runs(root, filters)
