"""The masker of labels, beyond nilearn's: functions, the principal course, the table, missing labels."""

import contextlib
import warnings

import numpy as np
import pandas as pd
import pytest
from drop_ins import ATLAS, T, plain
from images import SHAPE, bold, niimg, save, truth
from sklearn.base import clone

from sharedmask import (
    SharedImage,
    SharedLabelsMasker,
)
from sharedmask.errors import (
    ParameterError,
)


def by_label(label, path):
    return truth(path)[np.asarray(ATLAS.dataobj) == label].T.astype("f4")


def test_the_strategy_may_be_a_function(path):
    spread = plain(SharedLabelsMasker, {"labels_img": ATLAS}, strategy=lambda voxels: np.ptp(voxels, axis=1))
    expected = np.stack([np.ptp(by_label(label, path), axis=1) for label in range(1, 6)], axis=1)
    with SharedImage(path) as image:
        for given in (path, image):
            np.testing.assert_array_equal(spread.fit_transform(given), expected)


def test_a_function_that_gives_no_series_is_refused(path):
    masker = plain(SharedLabelsMasker, {"labels_img": ATLAS}, strategy=lambda voxels: voxels.mean(axis=0))
    with pytest.raises(ParameterError, match="for region 1, not"):
        masker.fit_transform(path)


def test_the_first_principal_course(path):
    got = plain(SharedLabelsMasker, {"labels_img": ATLAS}, strategy="pc1").fit_transform(path)
    with SharedImage(path) as image:
        expected = image.reduce(ATLAS, "pc1")
    np.testing.assert_array_equal(got, expected)
    with pytest.raises(ValueError, match="'strategy' must be one of"):
        plain(SharedLabelsMasker, {"labels_img": ATLAS}, strategy="pc2").fit()


@pytest.mark.parametrize("strategy", ["mean", "median", "sum", "minimum", "maximum", "variance"])
def test_streamed_and_held_reductions_have_the_same_bits(strategy, tmp_path):
    path = save(tmp_path / "scaled.nii", bold(), slope=0.3, inter=-7.0)
    masker = plain(SharedLabelsMasker, {"labels_img": ATLAS}, strategy=strategy).fit()
    with SharedImage(path) as image:
        np.testing.assert_array_equal(masker.transform(path), masker.transform(image))


def half():
    """A mask without label 3, and with half of the rest."""
    data = np.asarray(ATLAS.dataobj)
    return niimg(((data != 3) & (np.arange(SHAPE[0]) % 2 == 0)[:, None, None]).astype("u1"))


def test_the_table_tells_how_much_there_was_of_each_region(path):
    masker = plain(SharedLabelsMasker, {"labels_img": ATLAS, "mask_img": half()})
    with pytest.warns(UserWarning, match=r"labels were removed: \{3\}"):
        masker.fit_transform(path)
    table = masker.region_table_.set_index("index")
    labels, inside = np.asarray(ATLAS.dataobj), np.asarray(half().dataobj) > 0
    for label in range(1, 6):
        row = table.loc[label]
        assert row["n_voxels"] == (labels == label).sum()
        assert row["n_voxels_used"] == ((labels == label) & inside).sum()
        assert row["coverage"] == pytest.approx(row["n_voxels_used"] / row["n_voxels"])
    assert table["column"].tolist() == [0, 1, pd.NA, 2, 3]


def test_missing_labels_keep_their_column(path):
    masker = plain(SharedLabelsMasker, {"labels_img": ATLAS, "mask_img": half()}, keep_missing_labels=True)
    with pytest.warns(UserWarning, match="labels were removed"):
        signals = masker.fit_transform(path)
    assert np.isnan(signals).all(axis=0).tolist() == [False, False, True, False, False]
    assert masker.region_ids_ == {"background": 0, 0: 1, 1: 2, 2: 3, 3: 4, 4: 5}
    assert masker.n_elements_ == 5 and len(masker.get_feature_names_out()) == 5
    assert masker.region_table_["column"].tolist() == [0, 1, 2, 3, 4]
    without = plain(SharedLabelsMasker, {"labels_img": ATLAS, "mask_img": half()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(without.fit_transform(path), signals[:, [0, 1, 3, 4]])
        back, expected = (
            masker.inverse_transform(signals),
            without.inverse_transform(signals[:, [0, 1, 3, 4]]),
        )
    np.testing.assert_array_equal(back.get_fdata(), expected.get_fdata())
    with pytest.raises(ParameterError, match="needs NaN"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clone(masker).set_params(dtype="i4").fit_transform(path)


def test_labels_beyond_the_images_are_told_of(path):
    wide = np.zeros((SHAPE[0] + 4, *SHAPE[1:]), "i2")
    wide[: SHAPE[0]] = np.asarray(ATLAS.dataobj)
    wide[SHAPE[0] + 1 :] = 9
    atlas = niimg(wide)
    masker = plain(SharedLabelsMasker, {"labels_img": atlas}, keep_missing_labels=True)
    with pytest.warns(UserWarning, match="removed: {np.int16\\(9\\)}"):
        signals = masker.fit_transform(path)
    assert np.isnan(signals[:, 5]).all() and signals.shape == (T, 6)
    coverage = masker.region_table_.set_index("index")["coverage"]
    assert coverage[9] == 0 and (coverage.drop(9) > 0.7).all()


LARGE = [(f"{kind}8", 2**power + 1) for kind in "iu" for power in (31, 53, 62)]


@pytest.mark.parametrize(("dtype", "first"), [*LARGE, ("u8", 2**63 + 1)])
@pytest.mark.parametrize("hidden", [False, True])
def test_labels_are_named_to_the_last_digit(path, dtype, first, hidden):
    labels = [first, first + 1, first + 3]
    values = np.zeros(SHAPE, dtype)
    for place, label in enumerate(labels):
        values[place] = label
    mask = np.ones(SHAPE, "u1")
    mask[1] = not hidden
    masker = plain(SharedLabelsMasker, {"labels_img": niimg(values), "mask_img": niimg(mask)})
    with pytest.warns(UserWarning, match="were removed") if hidden else contextlib.nullcontext():
        signals = masker.fit_transform(path)
    there = [label for label in labels if not (hidden and label == labels[1])]
    assert list(masker.region_names_.values()) == list(map(str, there)) and signals.shape[1] == len(there)
    assert list(masker.region_ids_.values())[1:] == there
    assert masker.region_table_["column"].dropna().tolist() == list(range(len(there)))
