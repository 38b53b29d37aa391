"""What a masker may be given."""

import nibabel as nib
import numpy as np
import pytest
from drop_ins import ATLAS, MAPS, MASK, plain
from images import bold, niimg, save

from sharedmask import (
    SharedImage,
    SharedLabelsMasker,
    SharedMapsMasker,
    SharedMultiMasker,
    SharedNiftiMasker,
    SharedSpheresMasker,
)
from sharedmask.errors import ConfoundsError, MissingFileError
from sharedmask.maskers.inputs import as_niimg, read_tables, require_niimg


def test_analyze_and_pairs_are_accepted(tmp_path):
    masker = plain(SharedNiftiMasker, {"mask_img": MASK}).fit()
    expected = masker.transform(niimg(bold()))
    save(tmp_path / "pair.img", bold(), kind=nib.Nifti1Pair)
    for name in ("pair.img", "pair.hdr"):
        np.testing.assert_array_equal(masker.transform(tmp_path / name), expected)


READ = {
    "path": lambda image, path: path,
    "niimg": lambda image, path: nib.load(path),
    "image": lambda image, path: image,
    "handle": lambda image, path: image.handle,
}


@pytest.mark.parametrize("kind", ["path", "niimg", "image", pytest.param("handle", marks=pytest.mark.shares)])
def test_an_image_of_any_kind_reads_itself(kind, tmp_path):
    path = save(tmp_path / "bold.nii.gz", bold())
    with SharedImage(path) as image:
        found = require_niimg(READ[kind](image, path))
        np.testing.assert_array_equal(np.asarray(found.dataobj), bold())
        assert as_niimg(found) is found


@pytest.mark.parametrize("given", [None, 3, "none.nii", {"a": 1}])
def test_what_is_no_image_is_left_for_nilearn_to_refuse(given):
    assert as_niimg(given) is given


def test_tables_are_read_and_what_is_not_finite_is_refused(tmp_path):
    (tmp_path / "good.tsv").write_text("a\tb\n1\t2\n3\t4\n")
    assert read_tables(None) is None
    assert [table.tolist() for table in read_tables([tmp_path / "good.tsv"])] == [[[1, 2], [3, 4]]]
    with pytest.raises(ConfoundsError):
        read_tables(np.array([[1.0], [np.nan]]))


EVERY = [
    (SharedNiftiMasker, {"mask_img": MASK}),
    (SharedLabelsMasker, {"labels_img": ATLAS}),
    (SharedMapsMasker, {"maps_img": MAPS}),
    (SharedSpheresMasker, {"seeds": [(0, 0, 0)], "radius": 9}),
    (SharedMultiMasker, {"masks": [MASK]}),
]
POINTERS = {
    "annex": lambda path: path.write_text("/annex/objects/MD5E-s12--0.nii.gz\n"),
    "lfs": lambda path: path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{0:064}\n"),
    "link": lambda path: path.symlink_to("nowhere.nii.gz"),
}


@pytest.mark.parametrize("pointer", POINTERS)
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
@pytest.mark.parametrize(("masker", "given"), EVERY)
def test_content_that_is_elsewhere_is_told_as_such(masker, given, name, pointer, tmp_path):
    POINTERS[pointer](path := tmp_path / name)
    with pytest.raises(MissingFileError, match=f"{name} is a (pointer of|link to) .*: get it with `"):
        plain(masker, given).fit_transform(path)
    regions = next(iter(given))
    for wrong in ({"mask_img": str(path)}, {regions: path}):
        if wrong.keys() & {"seeds", "masks"} or (masker is SharedMultiMasker):
            continue
        with pytest.raises(MissingFileError, match=f"{name} is a (pointer of|link to) .*: get it with `"):
            plain(masker, given | wrong).fit()
