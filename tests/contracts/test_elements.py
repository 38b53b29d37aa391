"""The contract of images of elements: every way in gives the values of their files, or the same sentence."""

import os
from functools import partial

import bad_elements as bad
import numpy as np
import pytest
from command import called

from sharedmask import Regions, SharedImage, errors, extract, extract_many
from sharedmask.maskers import (
    SharedCiftiLabelsMasker,
    SharedCiftiMasker,
    SharedSurfaceLabelsMasker,
    SharedSurfaceMapsMasker,
    SharedSurfaceMasker,
)

FOREIGN = ("expat", "nibabel", "reshape", "KeyError", "padding", "literal", "Traceback", "token", "errno")


def of_many(images, masks):
    """The first error of a study."""
    for error in extract_many(images, masks, strategy="mean", on_error=lambda *_: None).errors.values():
        raise error


def held(image, work, **how):
    with SharedImage(image, **how) as opened:
        return work(opened)


def as_an_image(image):
    masks = np.ones(15 if ".nii" in image.name else 10, bool)
    return {
        "extract": partial(extract, image, masks),
        "means": partial(extract, image, masks.astype(int), strategy="mean"),
        "image": partial(held, image, SharedImage.load),
        "file": partial(held, image, SharedImage.load, store="file"),
        "many": partial(of_many, [image], masks),
        "surfaces": partial(SharedSurfaceMasker().fit_transform, image),
        "grayordinates": partial(SharedCiftiMasker().fit_transform, image),
        "maps": partial(SharedSurfaceMapsMasker(np.ones((len(masks), 2))).fit_transform, image),
    }


def as_regions(image, regions):
    return {
        "mask": partial(extract, image, {"a": regions}),
        "atlas": partial(extract, image, regions, strategy="mean"),
        "reduce": partial(held, image, lambda opened: opened.reduce(regions)),
        "from_labels": partial(held, image, lambda opened: Regions.from_labels(regions, opened.space)),
        "mask_img": partial(held, image, SharedImage.load, mask_img=regions),
        "many": partial(of_many, [image], regions),
        "surfaces": partial(SharedSurfaceMasker(regions).fit_transform, image),
        "labels": partial(SharedSurfaceLabelsMasker(regions).fit_transform, image),
        "grayordinates": lambda: SharedCiftiLabelsMasker(regions).fit().transform(image),
    }


def check_sentence(text, path, piece):
    assert os.fspath(path) in text and piece in text
    assert not [word for word in FOREIGN if word in text]


def check_commands(folder, image, given, path, piece, code):
    """Nothing is written but that a run failed, and the exit code is that of what is wrong."""
    folder.mkdir()
    one, each = folder / "one.tsv", folder / "each"
    for args, ends in (
        (["extract", image, *given, "-o", one], code),
        (["extract", image, *given, "--out-dir", each], 1),
        (["run", image, *given, "--output-dir", folder / "run"], 1),
        (["submit", "--dry-run", "--", "extract", image, *given, "--out-dir", each], code),
    ):
        done = called(*args)
        assert done.returncode == ends, done
        check_sentence(done.stderr, path, piece)
        assert done.stderr.count("\n") == 1 and not done.stdout.replace(str(path), "").count(piece)
    assert not bad.left(folder)


@pytest.mark.some(10)
@pytest.mark.parametrize("name", bad.IMAGES)
def test_a_bad_image_is_told_of_in_one_sentence_by_every_way_in(tmp_path, name):
    make, piece = bad.IMAGES[name]
    path = make(tmp_path)
    said = set()
    for call in as_an_image(path).values():
        with pytest.raises(errors.ImageError) as caught:
            call()
        said.add(str(caught.value))
    assert len(said) == 1
    check_sentence(*said, path, piece)
    code = 66 if isinstance(caught.value, errors.MissingFileError) else 65
    assert called("info", path).returncode == code
    (tmp_path / "masks").mkdir()
    check_commands(tmp_path / "out", path, ["--mask", bad.dlabel(tmp_path / "masks")], path, piece, code)


@pytest.mark.some(10)
@pytest.mark.parametrize("name", bad.REGIONS)
def test_bad_regions_are_told_of_in_one_sentence_by_every_way_in(tmp_path, name):
    image, make, piece = bad.REGIONS[name]
    image, path = image(tmp_path), make(tmp_path)
    for call in as_regions(image, path).values():
        with pytest.raises((errors.MaskError, errors.ImageError)) as caught:
            call()
        check_sentence(str(caught.value), path, piece)
    code = 66 if isinstance(caught.value, errors.MissingFileError) else 65
    check_commands(tmp_path / "out", image, ["--atlas", path], path, piece, code)


@pytest.mark.parametrize(
    "given", [np.ones(15), np.ones((14, 2)), np.full((15, 2), np.nan), np.full((15, 2), "a")]
)
def test_maps_that_are_none_are_told_of(tmp_path, given):
    with pytest.raises(errors.MaskError, match=r"maps_img= is an array that has"):
        SharedSurfaceMapsMasker(given).fit(bad.series(tmp_path))
