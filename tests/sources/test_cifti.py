"""CIFTI-2 files: what is read is what nibabel reads, whatever the axes' order, dtype and byte order."""

import gzip

import cifti_files as files
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import same_bits
from nibabel.testing import data_path

from sharedmask.errors import DamagedImageError, ImageError
from sharedmask.sources.by_row import RowSource
from sharedmask.sources.opening import open_source

DTYPES = ["<f4", ">f4", "<i2", ">i2", "<f8", "u1", ">i4"]


def packed(path):
    target = path.with_name(f"{path.name}.gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    return target


@settings(max_examples=15)
@given(
    st.sampled_from(DTYPES),
    st.booleans(),
    st.sampled_from([None, (0.5, 3.0), (2.0, 0.0)]),
    st.booleans(),
    st.lists(st.integers(0, 14), max_size=30),
    st.sampled_from([files.models, files.whole, files.surface]),
)
def test_values_are_nibabel_s(tmp_path, dtype, by_row, scaling, compress, select, places):
    slope, inter = scaling or (None, None)
    how = {"places": places(), "dtype": dtype, "by_row": by_row, "slope": slope, "inter": inter}
    path = files.dtseries(tmp_path / "a.dtseries.nii", 7, **how)
    true = files.truth(path)
    source = open_source(packed(path) if compress else path)
    assert source.shape == true.T.shape
    same_bits(source.read(), true.T.astype(true.dtype.newbyteorder("=")))
    assert isinstance(source, RowSource) == by_row
    if by_row:
        numbers = np.array([one for one in select if one < source.n_voxels], np.intp)
        rows = np.empty((len(numbers), 7), source.dtype)
        source.load(rows, numbers)
        stored = np.empty((source.n_voxels, 7), source.dtype)
        source.load(stored)
        same_bits(rows, stored[numbers])


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("in_memory", [True, False])
def test_nibabel_s_images_are_what_their_files_are(tmp_path, by_row, in_memory):
    path = files.dtseries(tmp_path / "a.dtseries.nii", by_row=by_row)
    image = nib.load(path)
    if in_memory:
        image = nib.Cifti2Image(np.asarray(image.dataobj), image.header)
    source = open_source(image)
    same_bits(source.read(), open_source(path).read())
    assert source.grid.matches(open_source(path).grid)
    assert bool(source.files) != in_memory


def test_facts_are_those_of_the_axes(tmp_path):
    source = open_source(files.dtseries(tmp_path / "a.dtseries.nii", t_r := 20))
    axis = files.models()
    assert (source.n_voxels, source.n_timepoints, source.ndim, source.t_r) == (15, t_r, 2, 0.8)
    assert source.grid.parts == "CORTEX_LEFT, CORTEX_RIGHT, THALAMUS_LEFT, BRAIN_STEM"
    assert np.array_equal(source.affine, files.AFFINE)
    for (name, where, part), one in zip(axis.iter_structures(), source.grid.structures, strict=True):
        assert one.name == name
        assert one.n_vertices == part.nvertices.get(name)
        if one.n_vertices is None:
            assert np.array_equal(np.array(np.unravel_index(one.numbers, files.BOX, order="F")).T, part.voxel)
        else:
            assert np.array_equal(one.numbers, part.vertex)
        assert np.array_equal(source.grid.part(name), np.arange(15)[where])


@pytest.mark.parametrize(("unit", "t_r"), [("SECOND", 0.72), ("HERTZ", None), ("METER", None)])
def test_only_seconds_are_a_repetition_time(tmp_path, unit, t_r):
    path = files.dtseries(tmp_path / "a.dtseries.nii", maps=files.series(20, 0.72, unit))
    assert open_source(path).t_r == t_r


SECONDS = ('SeriesStep="0.8"', 'SeriesUnit="SECOND"', 'SeriesExponent="0"')
VERTICES = "0 1 3 4 7 8 11"


@pytest.mark.parametrize(
    ("changes", "t_r"),
    [
        ([(SECONDS[0], 'SeriesStep="800"'), (SECONDS[2], 'SeriesExponent="-3"')], 0.8),
        ([(SECONDS[0], 'SeriesStep="800000"'), (SECONDS[2], 'SeriesExponent="-6"')], 0.8),
        ([(SECONDS[0], 'SeriesStep="0.08"'), (SECONDS[2], 'SeriesExponent="1"')], 0.8),
        ([(SECONDS[0], 'SeriesStep="8e-1"')], 0.8),
        ([(SECONDS[0], 'SeriesStep="0"')], None),
        ([(SECONDS[0], 'SeriesStep="-1"')], None),
        ([(SECONDS[0], 'SeriesStep="nan"')], None),
        ([(SECONDS[1], 'SeriesUnit="RADIAN"')], None),
        ([("<CIFTI ", '<CIFTI xmlns="http://www.nitrc.org/projects/cifti" ')], 0.8),
        ([("<CIFTI ", '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE CIFTI>\n<CIFTI ')], 0.8),
        ([("<Matrix>", "<Matrix><MetaData><MD><Name>é</Name><Value>&lt;a&gt;</Value></MD></MetaData>")], 0.8),
        ([(VERTICES, "\n0\n1\n3\n4\t7 8 11\n")], 0.8),
        ([(' MeterExponent="-3"', "")], 0.8),
    ],
)
def test_headers_are_read_however_they_are_written(tmp_path, changes, t_r):
    path = files.dtseries(tmp_path / "a.dtseries.nii")
    true = files.truth(path)
    source = open_source(files.rewritten(path, *changes))
    assert source.t_r == t_r
    same_bits(source.read(), true.T)
    assert source.models.matches(open_source(files.dtseries(tmp_path / "b.dtseries.nii")).models)


def test_long_lists_of_places_are_read_and_told_of_where_they_break_off(tmp_path):
    inside = np.zeros((9, 10, 11), bool)
    inside.reshape(-1)[::3] = True
    places = files.surface(vertices=np.arange(0, 2000, 3), n_vertices=2000)
    places += nib.cifti2.BrainModelAxis.from_mask(inside, affine=files.AFFINE, name="BrainStem")
    path = files.dtseries(tmp_path / "a.dtseries.nii", places=places)
    surface, voxels = open_source(path).grid.structures
    np.testing.assert_array_equal(surface.numbers, np.arange(0, 2000, 3))
    expected = np.ravel_multi_index(np.argwhere(inside).T, inside.shape, order="F")
    np.testing.assert_array_equal(voxels.numbers, expected)
    path.write_bytes(path.read_bytes().replace(b"\n0 0 6\n", b"\n0 0<6\n", 1))
    with pytest.raises(DamagedImageError, match="not well formed, at line 6, column"):
        open_source(path)


def test_vertices_go_by_their_numbers_in_whatever_order(tmp_path):
    source = open_source(
        files.rewritten(files.dtseries(tmp_path / "a.dtseries.nii"), (VERTICES, "11 1 3 4 7 8 0"))
    )
    own = open_source(files.dtseries(tmp_path / "b.dtseries.nii")).models
    assert source.models.numbers_of(own, np.arange(7)).tolist() == [6, 1, 2, 3, 4, 5, 0]


def test_the_sidecar_tells_the_repetition_time(tmp_path):
    path = files.dtseries(tmp_path / "sub-1_task-rest_space-fsLR_den-91k_bold.dtseries.nii")
    path.with_name("sub-1_task-rest_space-fsLR_den-91k_bold.json").write_text('{"RepetitionTime": 0.8}')
    assert open_source(path).t_r_origin.endswith("_bold.json")


def saved(path, maps, places, **how):
    return files.save(path, files.values(len(places), len(maps)), maps, places, **how)


def refusals(folder):
    matrix = nib.Cifti2Image(np.ones((15, 15), "f4"), (files.models(), files.models()))
    matrix.to_filename(folder / "a.dconn.nii")
    yield folder / "a.dconn.nii", "dense matrix"
    scalars = files.scalars("a", "b")
    yield (
        saved(folder / "b.dtseries.nii", scalars, files.models()),
        "no axis of time: it holds maps by elements",
    )
    parcel = nib.cifti2.ParcelsAxis.from_brain_models([("one", files.surface()), ("two", files.voxels())])
    yield saved(folder / "c.pconn.nii", parcel, parcel), "parcels by parcels"
    yield saved(folder / "d.dscalar.nii", files.series(), scalars), "no values of elements"


def test_what_is_no_series_of_elements_is_refused(tmp_path):
    for path, said in refusals(tmp_path):
        for given_as in (path, nib.load(path)):
            with pytest.raises(ImageError, match=said) as caught:
                open_source(given_as)
            assert path.name in str(caught.value)
    with pytest.raises(ImageError, match="dense matrix"):
        open_source(f"{data_path}/row_major.dconn.nii")


def test_a_label_table_without_names_is_refused(tmp_path):
    path = saved(tmp_path / "a.dlabel.nii", files.labels(), files.surface())
    whole = path.read_bytes()
    for old, new, said in ((b">V1<", b">  <", "no name to 1"), (b'Key="2"', b'Key="1"', "gives 1 two names")):
        path.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(ImageError, match=rf"a\.dlabel\.nii.*{said}"):
            open_source(path)


def test_axes_that_are_not_there_are_told_of(tmp_path):
    path = files.dtseries(tmp_path / "a.dtseries.nii")
    whole = bytearray(path.read_bytes())
    whole[544 + 4 : 544 + 8] = np.array([6], "<i4").tobytes()  # the code of the extension: a comment
    path.write_bytes(whole)
    with pytest.raises(DamagedImageError, match=r"a\.dtseries\.nii .*has no axes"):
        open_source(path)


def test_a_damaged_header_is_refused(tmp_path):
    whole = files.dtseries(tmp_path / "a.dtseries.nii").read_bytes()
    path = tmp_path / "b.dtseries.nii"
    path.write_bytes(whole[:1500])
    with pytest.raises(ImageError, match=r"b\.dtseries\.nii"):
        open_source(path)
    path.write_bytes(whole.replace(b"<Matrix>", b"<Matrjx>", 1))
    with pytest.raises(ImageError, match=r"b\.dtseries\.nii.*XML"):
        open_source(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'IndexCount="7"', b'IndexCount="6"'),
        (b'IndexOffset="7"', b'IndexOffset="6"'),
        (b"0 1 3 4 7 8 11", b"0 1 3 4 7 8 12"),
        (b'SurfaceNumberOfVertices="12"', b'SurfaceNumberOfVertices="999999999999"'),
        (b'VolumeDimensions="4,3,2"', b'VolumeDimensions="4000,3000,2000"'),
        (b'VolumeDimensions="4,3,2"', b'VolumeDimensions="4,3,1"'),
        (b'VolumeDimensions="4,3,2"', b'VolumeDimensions="4,3"'),
        (b'AppliesToMatrixDimension="1"', b'AppliesToMatrixDimension="2"'),
        (b'NumberOfSeriesPoints="20"', b'SeriesUnit="20"'),
        (b'NumberOfSeriesPoints="20"', b'NumberOfSeriesPoints="19"'),
        (b"0 1 3 4 7 8 11", b"0 1 3 4 7 8  8"),
        (b"0 1 3 4 7 8 11", b"0 1 x 4 7 8 11"),
        (b"CIFTI_STRUCTURE_CORTEX_RIGHT", b"CIFTI_STRUCTURE_CORTEX_LEFT "),
    ],
)
def test_axes_that_do_not_fit_are_refused(tmp_path, old, new):
    path = files.dtseries(tmp_path / "a.dtseries.nii")
    whole = path.read_bytes()
    assert old in whole
    path.write_bytes(whole.replace(old, new, 1))
    with pytest.raises(ImageError, match=r"a\.dtseries\.nii"):
        open_source(path)


@pytest.mark.parametrize("compress", [True, False])
def test_truncated_files_are_refused(tmp_path, compress):
    path = files.dtseries(tmp_path / "a.dtseries.nii")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DamagedImageError, match="truncated"):
        open_source(packed(path) if compress else path).read()
