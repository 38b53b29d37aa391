"""A disk that fills up while an output is written: an error that names the file, and nothing half written."""

import errno

import pytest
from children import python

SCRIPT = """
    import resource, sys
    import nibabel as nib, numpy as np
    from pathlib import Path
    from sharedmask import FrameDataset
    from sharedmask.study.tables import write_series, write_table

    out, values = Path(sys.argv[1]), np.random.default_rng(0).random((40, 50, 30, 6))
    series = values.reshape(-1, 6)
    write = {
        ".tsv": lambda: write_table(out, series, list("abcdef")),
        ".npz": lambda: write_series(out, {"a": series, "b": series}),
        ".hdf5": lambda: write_series(out, {"a": series, "b": series}),
        ".h5": lambda: ds.to_filename(out, *sys.argv[3:]),
        ".nii": lambda: ds.to_nifti(out),
        ".gz": lambda: ds.to_nifti(out),
    }[out.suffix]
    with FrameDataset(nib.Nifti1Image(values, np.eye(4))) as ds:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        try:
            write()
        except OSError as error:
            print(error.errno, error.filename)
"""


@pytest.mark.long
@pytest.mark.parametrize("limit", [0, 1_000_000])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("frames.h5", ()),
        ("frames.h5", ("gzip",)),
        ("frames.nii", ()),
        ("frames.nii.gz", ()),
        ("table.tsv", ()),
        ("series.npz", ()),
        ("series.hdf5", ()),
    ],
)
def test_a_file_that_cannot_grow_is_an_error_that_names_it(name, options, limit, tmp_path):
    out = tmp_path / "out" / name
    out.parent.mkdir()
    out.write_text("old")
    done = python(SCRIPT, out, limit, *options)
    assert (done.returncode, done.stdout) == (0, f"{errno.EFBIG} {out}\n"), done.stderr
    assert out.read_text() == "old"
    assert [path.name for path in out.parent.iterdir()] == [name]
