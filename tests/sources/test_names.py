"""Names of BIDS files."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedmask.errors import ParameterError
from sharedmask.sources.names import ENTITIES, Name, camel, image_stem, is_as, label, same, state_of

values = st.text("abcXYZ019", min_size=1, max_size=5)


@given(st.dictionaries(st.sampled_from(ENTITIES), values, min_size=1), st.sampled_from([".nii.gz", ".tsv"]))
def test_names_survive_a_round_trip_in_the_standards_order(entities, extension):
    written = str(Name(entities, "bold", extension))
    assert Name.parse(written) == Name(entities, "bold", extension)
    keys = [part.split("-")[0] for part in written.split("_")[:-1]]
    assert keys == sorted(entities, key=ENTITIES.index)


@pytest.mark.parametrize(
    "name",
    [
        "bold.nii.gz",
        "sub-01",
        "sub_01_bold.nii",
        "sub-01_task_bold.nii",
        "_bold.nii",
        "sub-01_desc-1.2_bold.nii",
        "sub-01_sub-01_bold.nii",
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(ParameterError, match=r"no BIDS name"):
        Name.parse(name)


def test_labels_have_letters_and_digits_only():
    assert label("Schaefer 2018_400-parcels") == "Schaefer2018400parcels"


def test_numbers_are_the_same_with_zeros_before_them():
    assert same("run", "1", "01") and not same("run", "1", "11")
    assert not same("task", "1", "01") and not same("run", None, "0")


def test_words_become_one():
    assert camel("standard_deviation") == "standardDeviation" and camel("") == ""
    assert image_stem("a/atlas.v1.nii.gz") == "atlas.v1" and image_stem("b.nii") == "b"
    assert image_stem("a/b_dseg.dlabel.nii") == "b_dseg" and image_stem("lh.Toy.annot") == "lh.Toy"
    assert image_stem("a/b.label.gii") == "b" and image_stem("https://host/c.nii.gz?key=d.nii") == "c"


def test_a_folder_is_as_it_was_while_it_has_the_names_that_tell_of_runs(tmp_path):
    (tmp_path / "task-rest_bold.json").write_text("{}")
    os.utime(tmp_path, (1e9, 1e9))  # long ago: another change has another time
    before = state_of(str(tmp_path))
    (tmp_path / "notes.txt").write_text("")
    assert is_as(str(tmp_path), before)
    (tmp_path / "task-rest_bold.json").rename(tmp_path / "bold.json")
    os.utime(tmp_path, (1e9, 1e9))
    assert not is_as(str(tmp_path), before)
    assert not is_as(str(tmp_path / "gone"), before)
