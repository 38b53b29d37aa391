"""Images as nibabel images: a niimg that stands for a file has that file's header."""

import copy
import pickle

import nibabel as nib
import numpy as np
import pytest
from images import AFFINE, SHAPE, bold
from nilearn.image import index_img, math_img, mean_img

from sharedmask import SharedImage, SharedLabelsMasker
from sharedmask.image.niimg import SourceNifti
from sharedmask.sources.opening import open_source

# Where nibabel itself leaves traces of how the file is stored.
STORAGE = {"magic", "vox_offset", "sizeof_hdr"}


def untold(image):
    return image


def told(image):
    image.header.set_xyzt_units("mm", "msec")
    image.header["pixdim"][4] = 2000
    image.header["descrip"], image.header["aux_file"], image.header["intent_name"] = b"a run", b"x", b"y"
    image.header["cal_max"], image.header["slice_duration"], image.header["toffset"] = 900, 0.1, 3
    return image


def placed(image):
    image.set_sform(AFFINE, code="mni")
    image.set_qform(AFFINE, code="scanner")
    return image


def nowhere(image):
    image.header["sform_code"] = image.header["qform_code"] = 0
    return image


def by_qform(image):
    image.set_qform(AFFINE, code="scanner")
    image.header["sform_code"] = 0
    return image


def scaled(image):
    image.header.set_slope_inter(0.25, -100)
    return image


HEADERS = {made.__name__: made for made in (untold, told, placed, nowhere, by_qform, scaled)}
FILES = {"run.nii": nib.Nifti1Image, "run.nii.gz": nib.Nifti1Image, "run.img": nib.Nifti1Pair}


@pytest.fixture(params=FILES)
def file(request, tmp_path):
    return tmp_path / request.param, FILES[request.param]


def as_source(path):
    yield SourceNifti.of(open_source(path))


def as_shared(path, **options):
    with SharedImage(path, **options) as image:
        yield image.as_nifti()


def as_attached(path):
    with SharedImage(path) as image, SharedImage.attach(image.load().handle) as other:
        yield other.as_nifti()


WAYS = {
    "source": as_source,
    "shared": as_shared,
    "on disk": lambda path: as_shared(path, store="disk"),
    "attached": as_attached,
}


def same_header(got, expected, but=frozenset()):
    names = set(expected.structarr.dtype.names) & set(got.structarr.dtype.names) - STORAGE - but
    for name in names:
        exact = got[name].dtype == expected[name].dtype or got[name].dtype.kind != "f"
        compare = np.testing.assert_array_equal if exact else np.testing.assert_allclose
        compare(got[name], expected[name], err_msg=name)


@pytest.mark.some(24)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("header", HEADERS)
def test_its_header_is_the_files(file, way, header):
    path, kind = file
    made = kind(bold(), AFFINE)
    HEADERS[header](made).to_filename(path)
    reference = nib.load(path)
    for image in WAYS[way](path):
        same_header(image.header, reference.header)
        assert np.array_equal(image.affine, reference.affine)
        assert (image.get_sform(coded=True)[1], image.get_qform(coded=True)[1]) == (
            reference.get_sform(coded=True)[1], reference.get_qform(coded=True)[1])  # fmt: skip
        same_header(index_img(image, 2).header, index_img(reference, 2).header)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["NIfTI-2", "big-endian"])
def test_of_other_encodings_all_that_nifti_says_is_kept(tmp_path, way, kind):
    path = tmp_path / "run.nii"
    header = nib.Nifti1Header(endianness=">" if kind == "big-endian" else "<")
    made = (nib.Nifti2Image if kind == "NIfTI-2" else nib.Nifti1Image)(bold(), AFFINE, header)
    placed(told(made)).to_filename(path)
    for image in WAYS[way](path):
        same_header(image.header, nib.load(path).header)
        np.testing.assert_allclose(image.affine, AFFINE)


@pytest.mark.parametrize("way", WAYS)
def test_what_nobody_told_is_told_by_nobody_afterwards(tmp_path, way):
    path = tmp_path / "run.nii.gz"
    nib.Nifti1Image(bold(), AFFINE).to_filename(path)
    for image in WAYS[way](path):
        assert image.header.get_xyzt_units()[1] == "unknown"
        assert open_source(math_img("img * 2", img=image, copy_header_from="img")).t_r is None
        image.to_filename(tmp_path / "again.nii")
    assert open_source(tmp_path / "again.nii").t_r is None


def test_a_smoothed_image_has_its_own_dtype(tmp_path):
    told(nib.Nifti1Image(bold(), AFFINE)).to_filename(tmp_path / "run.nii")
    for image in as_shared(tmp_path / "run.nii", smoothing_fwhm=5):
        assert image.get_data_dtype() == np.asanyarray(image.dataobj).dtype == np.float32
        same_header(image.header, nib.load(tmp_path / "run.nii").header, {"datatype", "bitpix"})


def test_a_list_has_the_first_ones(tmp_path):
    paths = [tmp_path / f"{number}.nii" for number in range(3)]
    for path in paths:
        told(nib.Nifti1Image(bold(SHAPE), AFFINE)).to_filename(path)
    with SharedImage(paths) as image:
        assert image.as_nifti().header["descrip"] == b"a run" and image.as_nifti().shape == (*SHAPE, 3)
        assert mean_img(image.as_nifti(), copy_header=True).shape == SHAPE


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """More volumes than NIfTI-1 can count."""
    values = bold((2, 2, 2, 2**15), dtype="i2")
    path = tmp_path_factory.mktemp("long") / "run.nii.gz"
    nib.save(nib.Nifti2Image(values, AFFINE), path)
    return path, values


def derived_from_shared(path):
    with SharedImage(path) as image:
        lent = image.as_nifti()
        nib.save(lent, path.with_name("saved.nii"))
        saved = np.asarray(nib.load(path.with_name("saved.nii")).dataobj)
        return [np.array(lent.dataobj), saved, np.array(copy.deepcopy(lent).dataobj)]


def derived_from_source(path):
    lent = SourceNifti.of(open_source(path))
    nib.save(lent, path.with_name("saved.nii"))
    travelled = pickle.loads(pickle.dumps(lent))
    return [np.asarray(one.dataobj) for one in (lent, travelled, copy.deepcopy(lent), lent.slicer[..., :])]


@pytest.mark.parametrize("derived", [derived_from_shared, derived_from_source])
def test_more_volumes_than_nifti_1_counts(long_run, derived):
    path, values = long_run
    for one in derived(path):
        np.testing.assert_array_equal(one, values)


LABELS = nib.Nifti1Image(np.arange(8, dtype="i2").reshape(2, 2, 2) % 3, AFFINE)


def test_maskers_take_as_many(long_run):
    path, values = long_run
    signals = SharedLabelsMasker(LABELS, standardize=None).fit_transform(path)
    kept = np.asarray(LABELS.dataobj) == 1
    np.testing.assert_allclose(signals[:, 0], values[kept].mean(axis=0))
