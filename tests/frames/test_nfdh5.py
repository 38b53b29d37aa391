"""The HDF5 file: exact both ways, whole or not at all; and the NIfTI files that frames are written to."""

import h5py
import nibabel as nib
import numpy as np
import pytest
from children import python
from frame_cases import N, left_in
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from images import AFFINE, SHAPE, bold, niimg, same_bits, save, truth
from nfdh5_files import nifreezes

from sharedmask import FrameDataset
from sharedmask.errors import DamagedImageError, ImageError, MissingFileError, ParameterError
from sharedmask.frames import nfdh5
from sharedmask.frames.convert import convert
from sharedmask.sources import hdf5

KNOWN = {
    *("dataobj", "affine", "brainmask", "motion_affines", "datahdr", "gradients", "bzero", "eddy_xfms"),
    *("midframe", "total_duration", "uptake"),
}
COMPRESSIONS = [(), ("gzip", 1), ("gzip", 6), ("lzf",)]


# --- round trip ----------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    data=st.sampled_from(["i2", "u1", "f4", "f8", "i4", "u2"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=4, max_dims=4, max_side=4))
    ),
    compression=st.sampled_from(COMPRESSIONS),
    facts=st.integers(0, 15),
    version=st.sampled_from([1, 2]),
)
def test_what_is_written_is_read_bit_for_bit(tmp_path, data, compression, facts, version):
    n = data.shape[3]
    rng = np.random.default_rng(facts)
    per_frame = {"gradients": rng.normal(size=(n, 4)), "censored": rng.random(n) < 0.5}
    options = {
        "affines": rng.normal(size=(n, 4, 4)) if facts & 1 else None,
        "per_frame": per_frame if facts & 2 else None,
        "overall": {"bzero": rng.normal(size=data.shape[:3]), "echo": np.float32(0.03)}
        if facts & 4
        else None,
        "mask_img": np.ones(data.shape[:3], bool) if facts & 8 else None,
    }
    with FrameDataset(niimg(data), **options) as ds:
        path = ds.to_filename(tmp_path / "run.h5", *compression, version=version)
        with FrameDataset(path) as back:
            same_bits(back[:][0], data)
            same_bits(back.affine, ds.affine)
            assert (back.motion_affines is None) == (ds.motion_affines is None)
            assert list(ds.per_frame) == list(back.per_frame)
            for ours, theirs in ((ds.per_frame, back.per_frame), (ds.overall, back.overall)):
                assert set(ours) == set(theirs)
                for name, values in ours.items():
                    same_bits(theirs[name], values)
            np.testing.assert_array_equal(ds.brainmask, back.brainmask)
            assert back.datahdr == ds.datahdr
            assert back.t_r == ds.t_r
            assert back == ds
    assert left_in(tmp_path) == ["run.h5"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_scaled_images_are_written_as_true_values(tmp_path, compression):
    path = save(tmp_path / "run.nii", bold(), slope=0.5, inter=3.0)
    with FrameDataset(path) as ds:
        ds.to_filename(tmp_path / "run.h5", *compression)
    with FrameDataset(tmp_path / "run.h5") as back:
        same_bits(back[:][0], truth(path))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_the_header_is_carried_along(tmp_path, kind):
    image = kind(bold(), AFFINE)
    image.header["descrip"] = b"somebody's brain"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a word"))
    image.header.set_xyzt_units("mm", "msec")
    nib.save(image, tmp_path / "run.nii")
    convert(tmp_path / "run.nii", tmp_path / "run.h5")
    convert(tmp_path / "run.h5", tmp_path / "back.nii.gz")
    back, given = nib.load(tmp_path / "back.nii.gz"), nib.load(tmp_path / "run.nii")
    assert type(back) is kind
    same_bits(np.asanyarray(back.dataobj), bold())
    for field in ("descrip", "xyzt_units", "pixdim", "srow_x", "sform_code", "qform_code"):
        np.testing.assert_array_equal(back.header[field], given.header[field])
    assert [one.get_content() for one in back.header.extensions] == [b"a word"]


@pytest.mark.parametrize("way", ["convert", "to_nifti"])
@pytest.mark.parametrize("between", ["", "between.h5"])
def test_the_repetition_time_of_a_sidecar_goes_to_the_new_file(tmp_path, way, between):
    path = tmp_path / "sub-01_task-rest_bold.nii"
    nib.Nifti1Image(bold(), AFFINE).to_filename(path)
    (tmp_path / "dataset_description.json").write_text("{}")
    (tmp_path / "task-rest_bold.json").write_text('{"RepetitionTime": 0.8}')
    if between:
        convert(path, tmp_path / between)
        path = tmp_path / between
    (tmp_path / "out").mkdir()
    if way == "convert":
        convert(path, tmp_path / "out" / "back.nii.gz")
    else:
        with FrameDataset(path) as ds:
            ds.to_nifti(tmp_path / "out" / "back.nii.gz")
    with FrameDataset(tmp_path / "out" / "back.nii.gz") as back:
        assert back.t_r == 0.8
    assert nib.load(tmp_path / "out" / "back.nii.gz").header.get_xyzt_units()[1] == "sec"


def test_numbers_of_frames_survive_files(tmp_path):
    with FrameDataset(niimg(bold())) as ds:
        ds.select([2, 3, 9]).to_filename(tmp_path / "some")
    with FrameDataset(tmp_path / "some.h5") as back:
        assert [back.original_index(i) for i in range(3)] == [2, 3, 9]
        same_bits(back.original(2), bold()[..., 9])


def test_transformed_frames_are_written_as_they_are(tmp_path):
    affine = np.eye(4)
    affine[:3, 3] = 2.0
    with FrameDataset(niimg(bold(dtype="float32"))) as ds:
        ds.set_transform(3, affine)
        ds.to_filename(tmp_path / "run.h5")
        ds.to_nifti(tmp_path / "run.nii.gz")
        with FrameDataset(tmp_path / "run.h5") as back:
            assert back == ds
        same_bits(truth(tmp_path / "run.nii.gz"), ds[:][0])


# --- the layout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_frames_lie_in_the_file_one_after_the_other(tmp_path, version):
    with FrameDataset(niimg(bold())) as ds:
        ds.to_filename(tmp_path / "plain.h5", version=version)
        ds.to_filename(tmp_path / "packed.h5", "gzip", 1, version=version)
    chunk = (*SHAPE, 1) if version == 1 else (1, *SHAPE)
    for name, chunks in (("plain", chunk if version == 1 else None), ("packed", chunk)):
        with h5py.File(tmp_path / f"{name}.h5") as file:
            assert (file.attrs["Format"], file.attrs["Version"]) == ("NFDH5", version)
            frames = file["0/dataobj"]
            assert frames.attrs.get("volume_axis", 3) == (3 if version == 1 else 0)
            assert frames.chunks == chunks
            same_bits(frames[...] if version == 1 else np.moveaxis(frames[...], 0, 3), bold())
    with FrameDataset(tmp_path / "plain.h5") as ds:
        assert ds.store[0] == "file"
        assert np.shares_memory(ds[2][0], ds.dataobj)
        assert ds.dataobj.ctypes.data % 4096 == 0
        same_bits(ds[:][0], bold())


def test_an_unknown_version_is_refused(tmp_path):
    with FrameDataset(niimg(bold())) as ds, pytest.raises(ParameterError, match="version=3"):
        ds.to_filename(tmp_path / "run.h5", version=3)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("per_frame", "told"),
    [
        ({"gradients": np.ones((N, 4))}, ("NFDH5", "dmri", "base dataset")),
        ({"midframe": np.arange(N)}, ("EMC/PET", None, "pet")),
        ({"mine": np.arange(N)}, ("NFDH5", None, "base dataset")),
    ],
)
def test_nifreeze_finds_what_it_knows_and_nothing_else(tmp_path, per_frame, told):
    overall = {"total_duration": 30.0, "note": 1}
    with FrameDataset(niimg(bold()), per_frame=per_frame, overall=overall) as ds:
        ds.to_filename(tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5") as file:
        root = file["/0"]
        read = {name: np.asanyarray(value) for name, value in root.items() if not name.startswith("_")}
        assert (file.attrs["Format"], file.attrs.get("Type"), root.attrs["Type"]) == told
    assert set(read) == {"dataobj", "affine", "total_duration"} | (set(per_frame) & KNOWN)


@pytest.mark.some(8)
@pytest.mark.parametrize("dtype", ["i2", "u1", "f4", "f8", ">f4"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True},
        {"compression": "gzip", "chunks": True, "fletcher32": True},
        {"chunks": True},
        {"maxshape": (None,) * 4},
        {"chunks": "first axis"},
        {"chunks": "last axis"},
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_nifreezes_files_are_read(tmp_path, version, dtype, options):
    data = (bold() % 200).astype(dtype)
    gradients = np.arange(N * 4.0).reshape(N, 4)
    brain = bold()[..., 0] > 1000
    fields = {"gradients": gradients, "bzero": data[..., 0], "brainmask": brain}
    path = nifreezes(tmp_path / "run.h5", data, version, options=options, **fields)
    for store in ("auto", "disk"):
        with FrameDataset.from_filename(path, store=store) as ds:
            same_bits(ds[:][0], data)
            _, affine, gradient = ds[5]
            np.testing.assert_array_equal(gradient, gradients[5])
            assert affine is None
            np.testing.assert_array_equal(ds.brainmask, brain)
            same_bits(ds.overall["bzero"], data[..., 0])
    convert(path, tmp_path / "run.nii")
    same_bits(truth(tmp_path / "run.nii"), data)


def test_blocks_of_interleaved_frames_fit_together(tmp_path, monkeypatch):
    monkeypatch.setattr(nfdh5, "_BLOCK_BYTES", 5 * bold()[..., 0].nbytes)
    path = nifreezes(tmp_path / "run.h5", bold())
    with FrameDataset(path) as ds:
        same_bits(ds[:][0], bold())


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("version", [1, 2])
def test_slabs_of_frames_fit_together(tmp_path, monkeypatch, compression, version):
    monkeypatch.setattr(hdf5, "_SLAB_BYTES", 3 * bold()[0, ..., 0].nbytes)
    with FrameDataset(niimg(bold())) as ds:
        path = ds.to_filename(tmp_path / "run.h5", *compression, version=version)
    for store in ("auto", "disk"):
        with FrameDataset(path, store=store) as back:
            same_bits(back[:][0], bold())


def test_frames_after_a_user_block_are_mapped(tmp_path):
    path = nifreezes(tmp_path / "run.h5", bold(), version=2, userblock=4096)
    with FrameDataset(path, store="file") as ds:
        same_bits(ds[:][0], bold())


def test_a_pet_file_is_read(tmp_path):
    fields = {"Format": "EMC/PET", "midframe": np.arange(N) + 0.5, "total_duration": 12.0}
    path = nifreezes(tmp_path / "pet.h5", bold(dtype="f4"), **fields)
    with FrameDataset(path) as ds:
        assert [float(when) for _, _, when in ds] == fields["midframe"].tolist()
        assert float(ds.overall["total_duration"]) == 12.0


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (lambda f: f.attrs.__setitem__("Format", "other"), ImageError, "its Format is 'other'"),
        (lambda f: f.attrs.__delitem__("Format"), ImageError, "its Format is None"),
        (lambda f: f.attrs.__setitem__("Version", 3), ImageError, "version 3; versions"),
        (lambda f: f.__delitem__("0/dataobj"), DamagedImageError, "has no dataobj"),
        (lambda f: f.__delitem__("0/affine"), DamagedImageError, "has no affine"),
        (lambda f: f["0/dataobj"].attrs.__setitem__("volume_axis", 1), ImageError, "volume_axis=1"),
        (lambda f: f.__setitem__("0/gradients", np.ones((3, 4))), DamagedImageError, "the 12 frames"),
        (lambda f: f.__setitem__("0/brainmask", np.ones((3, 4))), DamagedImageError, "brainmask has shape"),
    ],
)
def test_another_layout_is_refused(tmp_path, change, kind, said):
    path = nifreezes(tmp_path / "run.h5", bold())
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(kind, match=said) as raised:
        FrameDataset(path)
    assert "run.h5" in str(raised.value)


def test_what_is_no_hdf5_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match=r"gone\.h5 does not exist"):
        FrameDataset(tmp_path / "gone.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(DamagedImageError, match=r"text\.h5 cannot be read as HDF5"):
        FrameDataset(tmp_path / "text.h5")


@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "chunks": (1, *SHAPE)}])
def test_a_truncated_or_damaged_file_is_refused(tmp_path, options):
    path = nifreezes(tmp_path / "run.h5", bold(), version=2, options=options)
    with h5py.File(path) as file:
        dataset = file["0/dataobj"]
        offset = dataset.id.get_chunk_info(5).byte_offset if options else None
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedImageError):
        FrameDataset(path)
    if options:
        path.write_bytes(whole[: offset + 40] + b"\xff" * 40 + whole[offset + 80 :])
        with pytest.raises(DamagedImageError, match="at frame 5"):
            FrameDataset(path)


def test_an_unknown_compression_is_refused(tmp_path):
    with FrameDataset(niimg(bold())) as ds:
        for compression in (("zip",), ("gzip", 11)):
            with pytest.raises(ParameterError, match="none that HDF5 has"):
                ds.to_filename(tmp_path / "run.h5", *compression)
    assert left_in(tmp_path) == []


# --- whole or not at all -------------------------------------------------------------------------


def test_without_h5py_it_is_said_what_to_install(tmp_path):
    script = """
        import sys
        sys.modules["h5py"] = None
        from sharedmask import FrameDataset
        try:
            FrameDataset("run.h5")
        except ValueError as error:
            print(error)
    """
    (tmp_path / "run.h5").touch()
    done = python(script, cwd=tmp_path, fresh=True)
    assert done.stdout == "HDF5 files need h5py: pip install 'sharedmask[hdf5]'\n", done.stderr
