"""The repetition time of an image: from which sidecar or header, where that is none, and by which entry."""

import json
import os
import re
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from command import sharedmask
from images import AFFINE, SHAPE, bold, niimg
from nilearn.image import concat_imgs, math_img
from nilearn.signal import clean

from sharedmask import FrameDataset, SharedImage, extract, extract_many
from sharedmask.cli.info import info
from sharedmask.errors import MemoryLimitError, ParameterError, SharedMaskWarning
from sharedmask.sources.opening import open_source
from sharedmask.sources.sidecar import read_json, sidecars
from sharedmask.system import identity, inputs
from sharedmask.system.budget import within

STEM = "sub-01_task-rest_run-1_space-MNI_desc-preproc_bold"
T_R = 2.0


def run_with(path, t_r=None, unit="sec", kind=nib.Nifti1Image, shape=(*SHAPE, 60)):
    """A run whose header says ``t_r``; None: what nibabel makes of no header."""
    image = kind(bold(shape, "float32"), AFFINE)
    if t_r is not None:
        image.header.set_xyzt_units("mm", unit)
        image.header["pixdim"][4] = t_r
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)
    return path


def tell(path, **facts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts))
    return path


@pytest.fixture
def root(tmp_path):
    tell(tmp_path / "ds" / "dataset_description.json", Name="some")
    run_with(tmp_path / "ds" / "sub-01" / "func" / f"{STEM}.nii.gz", 0)
    return tmp_path / "ds"


def bold_of(root):
    return next(root.rglob(f"{STEM}.nii.gz"))


# --- which sidecar -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "winner"),
    [
        (["sub-01/func/{STEM}.json"], 0),
        (["task-rest_bold.json"], 0),
        (["bold.json"], 0),
        (["sub-01/sub-01_task-rest_bold.json", "task-rest_bold.json"], 0),
        (["task-rest_bold.json", "sub-01/func/sub-01_bold.json"], 1),
        (["bold.json", "task-rest_bold.json", "task-rest_run-01_bold.json"], 2),
        (["sub-01/func/sub-01_task-rest_run-01_bold.json", "sub-01/func/{STEM}.json"], 1),
        (["task-nback_bold.json", "bold.json"], 1),
        (["task-rest_echo-1_bold.json", "task-rest_bold.json"], 1),
        (["task-rest_events.json", "task-rest_run-2_bold.json", "task-rest_boldref.json"], None),
        (["../bold.json", "../task-rest_bold.json"], None),
        (["sub-01/func/sub-02_bold.json", "sub-01/ses-1/task-rest_bold.json"], None),
    ],
)
def test_the_nearest_that_tells_wins(root, told, winner):
    for number, name in enumerate(told):
        tell(root / name.format(STEM=STEM), RepetitionTime=3.0 + number)
    source = open_source(bold_of(root))
    assert source.t_r == (None if winner is None else 3.0 + winner)
    if winner is not None:
        assert source.t_r_origin == os.path.normpath(root / told[winner].format(STEM=STEM))


def test_one_that_tells_something_else_leaves_it_to_the_next(root):
    tell(bold_of(root).with_name(f"{STEM}.json"), EchoTime=0.03)
    tell(root / "task-rest_bold.json", RepetitionTime=T_R)
    assert open_source(bold_of(root)).t_r == T_R


@pytest.mark.parametrize("description", [True, False])
@pytest.mark.parametrize("session", ["", "ses-1"])
def test_the_root_is_where_the_description_or_the_subject_is(tmp_path, description, session):
    root = tmp_path / "a" / "ds"
    path = run_with(root / "sub-01" / session / "func" / f"{STEM}.nii.gz", 0)
    if description:
        tell(root / "dataset_description.json", Name="some")
    tell(root.parent / "task-rest_bold.json", RepetitionTime=9.0)
    assert open_source(path).t_r is None
    tell(root / "task-rest_bold.json", RepetitionTime=T_R)
    assert open_source(path).t_r == T_R


@pytest.mark.parametrize("link", ["file", "func", "sub-01", "ds", "content"])
def test_trees_of_links(root, tmp_path, link):
    inherited = tell(root / "task-rest_bold.json", RepetitionTime=T_R)
    path = bold_of(root)
    if link == "content":  # as DataLad keeps it
        stored = root / ".git" / "annex" / "objects" / "MD5E-s1.nii.gz"
        stored.parent.mkdir(parents=True)
        path.rename(stored)
        path.symlink_to(os.path.relpath(stored, path.parent))
    else:
        targets = {"file": path, "func": path.parent, "sub-01": path.parents[1], "ds": root}
        found = tmp_path / "elsewhere" / ("x.nii.gz" if link == "file" else "folder")
        found.parent.mkdir()
        found.symlink_to(targets[link])
        path = found if link == "file" else found / path.relative_to(targets[link])
    source = open_source(path)
    assert source.t_r == T_R and Path(source.t_r_origin).samefile(inherited)


def test_a_tree_is_read_as_it_is_named_first(root, tmp_path):
    tell(root / "task-rest_bold.json", RepetitionTime=9.0)
    other = tmp_path / "other"
    tell(other / "dataset_description.json", Name="other")
    tell(other / "task-rest_bold.json", RepetitionTime=T_R)
    (other / "sub-01").symlink_to(root / "sub-01")
    assert open_source(bold_of(other / "sub-01" / "func")).t_r == T_R


def test_each_is_named_once(root):
    tell(bold_of(root).with_name(f"{STEM}.json"))
    tell(root / "bold.json")
    (root / "sub-01" / "task-rest_bold.json").symlink_to(root / "bold.json")
    assert [path.name for path in sidecars(bold_of(root))] == [f"{STEM}.json", "task-rest_bold.json"]


@pytest.mark.parametrize("name", ["run.nii", "run.nii.gz", "run.NII.GZ", "run.nii.bz2", "run.img", "a.b.nii"])
@pytest.mark.parametrize("given", [Path, str, nib.load, lambda path: [path]])
def test_beside_an_image_of_any_name(tmp_path, name, given):
    kind = nib.Nifti1Pair if name == "run.img" else nib.Nifti1Image
    shape = (*SHAPE, 1) if "lambda" in given.__name__ else (*SHAPE, 5)
    path = run_with(tmp_path / name, T_R, kind=kind, shape=shape)
    assert open_source(given(path)).t_r == T_R
    stem = re.sub(r"\.(nii|img)(\.gz|\.bz2)?$", "", name, flags=re.IGNORECASE)
    sidecar = tell(tmp_path / f"{stem}.json", RepetitionTime=T_R / 2)
    source = open_source(given(path))
    assert (source.t_r, source.t_r_origin) == (T_R / 2, str(sidecar))


def test_an_image_in_memory_has_no_sidecar(tmp_path, monkeypatch):
    tell(tmp_path / ".json", RepetitionTime=9)
    monkeypatch.chdir(tmp_path)
    assert open_source(niimg(bold(), t_r=2.5)).t_r == 2.5


def test_one_volume_has_none(tmp_path):
    tell(tmp_path / "a.json", RepetitionTime=2)
    assert open_source(run_with(tmp_path / "a.nii", shape=SHAPE)).t_r is None


# --- header and sidecar --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "stored", "t_r"),
    [
        ("sec", 0.8, 0.8),
        ("sec", 1.0, 1.0),
        ("msec", 2000, 2.0),
        ("usec", 720_000, 0.72),
        ("unknown", 1.16, 1.16),
        ("unknown", 1.0, None),
        ("hz", 3, None),
        ("sec", 0, None),
        ("sec", np.nan, None),
    ],
)
def test_of_the_header(tmp_path, unit, stored, t_r):
    source = open_source(run_with(tmp_path / "run.nii", stored, unit))
    assert source.t_r == (None if t_r is None else pytest.approx(t_r, rel=1e-12))
    assert source.t_r_origin == "its header" or t_r is None


@pytest.mark.parametrize(("header", "sidecar"), [(0.8, 0.8), (2000.0, 2.0), (0, 2.0), (None, 2.0)])
def test_two_that_agree_or_of_which_one_is_none(tmp_path, header, sidecar):
    path = run_with(tmp_path / "run.nii", header, "msec" if header == 2000 else "sec")
    tell(tmp_path / "run.json", RepetitionTime=sidecar)
    source = open_source(path)
    assert (source.t_r, source.t_r_doubt) == (sidecar, "")


@pytest.mark.parametrize(
    ("facts", "t_r", "doubt"),
    [
        ({"VolumeTiming": [0, 2.5, 5, 7.5]}, 2.5, ""),
        ({"VolumeTiming": [1, 4.0, 7.0005]}, 3.00025, "two repetition times: 2.5 s in its header, 3.00025 s"),
        ({"RepetitionTime": 2500}, 2500, "sidecar's is taken: it may be in milliseconds, t_r gives another"),
        ({"VolumeTiming": [0, 2.5], "RepetitionTime": 2.5}, 2.5, ""),
        ({"VolumeTiming": [0, 2.5, 5, 9]}, None, "VolumeTiming, by which its volumes are not evenly spaced"),
        ({"VolumeTiming": [0]}, None, "not evenly spaced"),
        ({"VolumeTiming": "2.5"}, None, "not evenly spaced"),
        ({"VolumeTiming": [5, 2.5, 0]}, None, "not evenly spaced"),
        ({"RepetitionTime": "2.5"}, None, "no positive number"),
    ],
)
def test_the_times_of_volumes_tell_it_too(tmp_path, facts, t_r, doubt):
    path = run_with(tmp_path / "run.nii", 2.5)
    tell(tmp_path / "run.json", **facts)
    source = open_source(path)
    assert (
        source.t_r == pytest.approx(t_r)
        and doubt in source.t_r_doubt
        and bool(doubt) == bool(source.t_r_doubt)
    )


@pytest.mark.parametrize(
    "given", [Path, nib.load, lambda path: nib.Nifti1Image.from_bytes(path.read_bytes())]
)
@pytest.mark.parametrize("place", ["header", "sidecar"])
def test_milliseconds_without_a_word_are_doubted(tmp_path, given, place):
    path = run_with(tmp_path / "run.nii", 720 if place == "header" else 0)
    if place == "sidecar":
        tell(tmp_path / "run.json", RepetitionTime=720)
    source = open_source(given(path))
    if source.paths or place == "header":
        assert source.t_r == 720 and "720 s, of" in source.t_r_doubt and "milliseconds" in source.t_r_doubt
    else:
        assert source.t_r is None


BROKEN = {
    "empty": (b"", "cannot be read"),
    "no JSON": (b"{not json", "cannot be read"),
    "no object": (b"[]", "a JSON object was expected"),
    "Latin-1": ('{"Name": "M\u00fcller"}'.encode("latin-1"), "it is not UTF-8"),
    "a word": (b'{"RepetitionTime": "2.0"}', 'says RepetitionTime: "2.0"'),
    "NaN": (b'{"RepetitionTime": NaN}', "says RepetitionTime: NaN"),
    "infinite": (b'{"RepetitionTime": 1e999}', "says RepetitionTime: Infinity"),
    "huge": (b'{"RepetitionTime": 1' + b"0" * 400 + b"}", "says RepetitionTime: 1000"),
    "zero": (b'{"RepetitionTime": 0}', "says RepetitionTime: 0,"),
    "negative": (b'{"RepetitionTime": -2}', "says RepetitionTime: -2"),
    "null": (b'{"RepetitionTime": null}', "says RepetitionTime: null"),
    "true": (b'{"RepetitionTime": true}', "says RepetitionTime: true"),
    "deep": (b'{"a":' * 100_000, "cannot be read"),
    "dangling": (None, "datalad get"),
}


def broken(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        path.symlink_to("../.git/annex/objects/gone")
    else:
        path.write_bytes(content)
    return path


def test_a_mark_of_byte_order_is_read_past(tmp_path):
    path = run_with(tmp_path / "run.nii", 1.0)
    (tmp_path / "run.json").write_bytes(b'\xef\xbb\xbf{"RepetitionTime": 2.0}')
    assert open_source(path).t_r == 2.0


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("place", ["beside", "inherited"])
def test_one_that_cannot_be_read_leaves_it_unknown(root, kind, place):
    content, said = BROKEN[kind]
    names = {"beside": bold_of(root).with_name(f"{STEM}.json"), "inherited": root / "task-rest_bold.json"}
    path = broken(names[place], content)
    source = open_source(bold_of(root))
    assert source.t_r is None
    assert str(path) in source.t_r_doubt and said in source.t_r_doubt


# --- by which entry ------------------------------------------------------------------------------

ATLAS = np.random.default_rng(5).integers(0, 3, SHAPE).astype("i2")


def atlas():
    return nib.Nifti1Image(ATLAS, AFFINE)


def from_many(path, **given):
    study = extract_many({"run": path}, atlas(), strategy="mean", on_error=lambda *_: None, **given)
    for error in study.errors.values():
        raise error
    (found,) = study.results.values()
    return found


def of_an_image(path, **given):
    with SharedImage(path) as image:
        return image.reduce(atlas(), "mean", **given)


def of_voxels(path, **given):
    with SharedImage(path) as image:
        masks = [label == ATLAS for label in (1, 2)]
        return np.stack([signals.mean(1) for signals in image.mask_parallel(masks, **given)], 1)


def of_one_attached(path, **given):
    with SharedImage(path) as image, SharedImage.attach(image.load().handle) as other:
        return other.reduce(atlas(), "mean", **given)


def from_the_command_line(path, **given):
    table = Path(os.environ["SHAREDMASK_TMPDIR"], "table.tsv")
    labels = table.with_name("atlas.nii.gz")
    atlas().to_filename(labels)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    done = sharedmask("extract", path, "--atlas", labels, "-o", table, *flags, strict=False)
    if done.returncode:
        raise ParameterError(done.stderr)
    for line in done.stderr.splitlines():
        warnings.warn(line.removeprefix("sharedmask: "), SharedMaskWarning, stacklevel=2)
    return pd.read_csv(table, sep="\t").to_numpy()


NEEDED = "a filter needs (t_r|--t-r)"
ENTRIES = {
    "extract": lambda path, **given: extract(path, atlas(), strategy="mean", **given),
    "extract_many": from_many,
    "SharedImage": of_an_image,
    "voxels": of_voxels,
    "attached": of_one_attached,
    "command line": from_the_command_line,
}
every_entry = pytest.mark.parametrize(
    "entry", [pytest.param(name, marks=[pytest.mark.shares] * (name == "attached")) for name in ENTRIES]
)


def expected(path, t_r):
    data = np.asanyarray(nib.load(path).dataobj)
    means = np.stack([data[label == ATLAS].astype("f8").mean(0) for label in (1, 2)], 1)
    return clean(means, standardize=None, detrend=False, low_pass=0.1, t_r=t_r)


def warned(call, *args, **given):
    """What a call gives, and what it says."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = call(*args, **given)
    return found, [str(one.message) for one in caught if issubclass(one.category, SharedMaskWarning)]


@pytest.mark.some(6)
@every_entry
@pytest.mark.parametrize("header", [0, 1.0, None])
def test_filters_take_the_sidecars(root, entry, header):
    path = run_with(bold_of(root), header)
    sidecar = tell(root / "task-rest_bold.json", RepetitionTime=T_R)
    found, said = warned(ENTRIES[entry], path, low_pass=0.1)
    np.testing.assert_allclose(found, expected(path, T_R), rtol=1e-4)
    if header == 1.0:
        (one,) = said
        assert all(what in one for what in ("1 s in its header", f"2 s in {sidecar}", str(path)))
    else:
        assert said == []


@every_entry
def test_what_is_given_wins_in_silence(root, entry):
    path = run_with(bold_of(root), 1.0)
    broken(path.with_name(f"{STEM}.json"), None)
    found, said = warned(ENTRIES[entry], path, low_pass=0.1, t_r=2.5)
    np.testing.assert_allclose(found, expected(path, 2.5), rtol=1e-4)
    assert len(said) == (
        entry in ("SharedImage", "voxels", "attached")
    )  # which are opened before it is given


@pytest.mark.some(6)
@every_entry
@pytest.mark.parametrize("kind", ["dangling", "empty", "NaN"])
def test_a_broken_one_is_refused_where_it_is_needed_and_said_elsewhere(root, entry, kind):
    path = run_with(bold_of(root), 1.0)
    sidecar = broken(root / "task-rest_bold.json", BROKEN[kind][0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SharedMaskWarning)
        with pytest.raises(ParameterError) as caught:
            ENTRIES[entry](path, high_pass=0.1)
    assert str(sidecar) in str(caught.value) and re.search(NEEDED, str(caught.value))
    _, said = warned(ENTRIES[entry], path, standardize="psc")
    (one,) = said
    assert str(sidecar) in one and BROKEN[kind][1] in one


def of_memory(tmp_path):
    return nib.Nifti1Image(bold((*SHAPE, 60), "float32"), AFFINE)


def saved(tmp_path):
    return run_with(tmp_path / "plain.nii.gz")


def volumes(tmp_path, shape=SHAPE):
    return [run_with(tmp_path / f"{number:02}.nii", shape=shape) for number in range(60)]


UNTOLD = {
    "in memory": of_memory,
    "saved": saved,
    "math_img": lambda tmp_path: math_img("img * 2", img=of_memory(tmp_path)),
    "concat_imgs": lambda tmp_path: concat_imgs(volumes(tmp_path)),
    "3D files": volumes,
    "files of one volume": lambda tmp_path: volumes(tmp_path, (*SHAPE, 1)),
    "pattern": lambda tmp_path: str(volumes(tmp_path)[0].with_name("*.nii")),
}


@pytest.mark.some(5)
@every_entry
@pytest.mark.parametrize("image", UNTOLD)
def test_one_that_nobody_told_is_refused(tmp_path, entry, image):
    (tmp_path / "images").mkdir()
    given = UNTOLD[image](tmp_path / "images")
    if entry == "command line" and not isinstance(given, str | Path):
        given = saved(tmp_path)
    with pytest.raises(ParameterError, match=NEEDED):
        ENTRIES[entry](given, low_pass=0.1)


@pytest.mark.parametrize("entry", ["info", "frames", "image"])
def test_where_it_is_from_is_told(root, entry, capsys):
    sidecar = tell(root / "task-rest_bold.json", RepetitionTime=T_R)
    if entry == "frames":
        with FrameDataset(bold_of(root)) as frames:
            assert frames.t_r == T_R
    elif entry == "image":
        with SharedImage(bold_of(root)) as image:
            assert (image.t_r, image.t_r_origin) == (T_R, str(sidecar))
    else:
        info([str(bold_of(root))], standalone_mode=False)
        (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("repetition time"))
        assert row.removeprefix("repetition time").strip() == f"2 s: {sidecar}"


def test_a_sidecar_that_does_not_fit_is_not_read(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"RepetitionTime": 2, "Comment": "x" * 2**21}))
    with within("40M"), pytest.raises(MemoryLimitError, match=r"reading .*run\.json needs 48"):
        read_json(tmp_path / "run.json")
    with within("60M"):
        assert read_json(tmp_path / "run.json")["RepetitionTime"] == 2


def test_a_small_sidecar_is_read_once_and_again_when_it_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "_TICK", -1.0)  # it is written just now
    reads, read = [], inputs.read_json
    monkeypatch.setattr(inputs, "read_json", lambda *given: reads.append(1) or read(*given))
    path = tell(tmp_path / "run.json", RepetitionTime=2.0)
    found = [read_json(path) for _ in range(2)]
    found[0]["RepetitionTime"] = 3.0
    assert [one["RepetitionTime"] for one in (found[1], read_json(path))] == [2.0, 2.0] and len(reads) == 1
    os.replace(tell(tmp_path / "other.json", RepetitionTime=4.0), path)
    assert read_json(path)["RepetitionTime"] == 4.0
