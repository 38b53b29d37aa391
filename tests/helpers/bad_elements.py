"""Files of elements that are none, each with what is said of it: as images, and as masks and atlases."""

import gzip
import os
from pathlib import Path

import cifti_files as dense
import nibabel as nib
import numpy as np
import surface_files as surfaces

N = 15  # elements of ``cifti_files.models``


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    return path


def changed(path, old, new):
    whole = path.read_bytes()
    assert old in whole
    path.write_bytes(whole.replace(old, new, 1))
    return path


def series(folder):
    return dense.dtseries(folder / "run.dtseries.nii")


def func(folder, **how):
    return surfaces.func(folder / "lh.func.gii", **how)[0]


def matrix(folder):
    nib.Cifti2Image(np.ones((N, N), "f4"), (dense.models(),) * 2).to_filename(folder / "run.dconn.nii")
    return folder / "run.dconn.nii"


def maps(folder):
    return dense.save(
        folder / "run.dtseries.nii", dense.values(N, 2), dense.scalars("a", "b"), dense.models()
    )


def dlabel(folder, values=None, places=None, **how):
    places = dense.models() if places is None else places
    values = np.ones((1, len(places)), "f4") if values is None else values
    return dense.save(folder / "x.dlabel.nii", values, how.pop("maps", dense.labels()), places)


def packed(folder):
    path = folder / "run.dtseries.nii.gz"
    path.write_bytes(gzip.compress(series(folder).read_bytes())[:-40])
    return path


def empty(name):
    return lambda folder: (folder / name).touch() or folder / name


def directory(name):
    return lambda folder: (folder / name).mkdir() or folder / name


def missing(name):
    return lambda folder: folder / name


def dangling(name):
    return lambda folder: (folder / name).symlink_to("/nowhere/it") or folder / name


def text(name):
    return lambda folder: (folder / name).write_text("hello" * 200) and folder / name


def damaged_array(folder):
    path = func(folder)
    return changed(path, b"<Data>eJ", b"<Data>AA")


def external(folder, nbytes=160):
    """Four maps of ten values, which lie in another file of so many bytes; None: it is not there."""
    arrays = "".join(
        '<DataArray Intent="NIFTI_INTENT_TIME_SERIES" DataType="NIFTI_TYPE_FLOAT32" Dimensionality="1"'
        ' ArrayIndexingOrder="RowMajorOrder" Dim0="10" Encoding="ExternalFileBinary" Endian="LittleEndian"'
        f' ExternalFileName="lh.dat" ExternalFileOffset="{40 * number}"><Data/></DataArray>'
        for number in range(4)
    )
    path = folder / "lh.func.gii"
    path.write_text(f'<?xml version="1.0"?><GIFTI Version="1.0" NumberOfDataArrays="4">{arrays}</GIFTI>')
    if nbytes is not None:
        (folder / "lh.dat").write_bytes(np.arange(40, dtype="<f4").tobytes()[:nbytes])
    return path


def external_folder(folder):
    (folder / "lh.dat").mkdir()
    return external(folder, None)


def overlay(folder, ending="mgh"):
    return surfaces.overlay(folder / f"lh.bold.{ending}", np.ones((10, 7)))


def of_kind_99(folder):
    path = overlay(folder)
    whole = bytearray(path.read_bytes())
    whole[20:24] = (99).to_bytes(4, "big")
    path.write_bytes(whole)
    return path


def annotation(folder, n_vertices=10, name="lh.x.annot"):
    return surfaces.annotation(folder / name, [1] * n_vertices, ["unknown", "a"])


IMAGES = {
    "no-time": (maps, "is called a dense series and has no axis of time: it holds maps by elements"),
    "matrix": (matrix, "is a dense matrix, elements by elements, and no series: give the .dtseries.nii"),
    "labels": (dlabel, "holds labels and no signals: give it as an atlas"),
    "header-cut": (lambda f: cut(series(f), 700), "is truncated: its header says that data begin at 2064"),
    "xml-broken": (lambda f: changed(series(f), b"<BrainModel ", b"<BrainModel<"), "at line 1, column 334"),
    "xml-number": (lambda f: changed(series(f), b"0 1 3", b"0 x 3"), "what should be numbers is not"),
    "xml-attribute": (lambda f: changed(series(f), b"IndexCount", b"IndexKount"), "there is no IndexCount"),
    "xml-count": (
        lambda f: changed(series(f), b'IndexCount="7"', b'IndexCount="8"'),
        "the 8 elements of CIFTI_STRUCTURE_CORTEX_LEFT do not fit from 0 on",
    ),
    "xml-exponent": (
        lambda f: dense.rewritten(series(f), ('Exponent="0"', 'Exponent="400"')),
        "what should be numbers is not",
    ),
    "xml-points": (lambda f: dense.rewritten(series(f), ('Points="20"', 'Points="19"')), "by a series of 19"),
    "version-1": (
        lambda f: dense.rewritten(series(f), ('Version="2.0"', 'Version="1.0"')),
        "is of version 1.0 of CIFTI, and 2 is read; convert it: wb_command -file-convert",
    ),
    "data-cut": (lambda f: cut(series(f), -100), "promises 1200 bytes of image data, 1100 were found"),
    "empty": (empty("run.dtseries.nii"), "is empty (0 bytes)"),
    "directory": (directory("run.dtseries.nii"), "is a directory"),
    "missing": (missing("run.dtseries.nii"), "does not exist"),
    "dangling": (dangling("run.dtseries.nii"), "is a link to /nowhere/it, which is not there"),
    "text": (text("run.dtseries.nii"), "is not an image"),
    "gifti-cut": (lambda f: cut(func(f), 600), "is no complete GIFTI file: it breaks off"),
    "gifti-text": (text("lh.func.gii"), "is no complete GIFTI file"),
    "gifti-other-xml": (lambda f: (f / "a.gii").write_text("<html/>") and f / "a.gii", "is no GIFTI file"),
    "gifti-empty": (empty("lh.func.gii"), "is empty (0 bytes)"),
    "gifti-dangling": (dangling("lh.func.gii"), "is a link to /nowhere/it, which is not there"),
    "gifti-array": (damaged_array, "has a damaged array 1"),
    "gifti-type": (lambda f: changed(func(f), b"_FLOAT32", b"_FLOAT99"), "has NIFTI_TYPE_FLOAT99, which"),
    "gifti-count": (lambda f: changed(func(f), b'Arrays="12"', b'Arrays="13"'), "has 13 arrays, and has 12"),
    "gifti-labels": (lambda f: func(f, intent="NIFTI_INTENT_LABEL"), "holds labels and no signals"),
    "external-missing": (lambda f: external(f, None), "lh.dat, which is no file, or not there"),
    "external-folder": (external_folder, "lh.dat, which is no file, or not there"),
    "external-short": (lambda f: external(f, 150), "160 bytes are needed, 150 were found"),
    "mgh-cut": (lambda f: cut(overlay(f), -60), "promises 280 bytes of values, 240 were found"),
    "mgh-type": (of_kind_99, "holds values of MGH's type 99, which is not known"),
    "mgz-cut": (lambda f: cut(overlay(f, "mgz"), -60), "bytes cannot be decompressed"),
    "annotation": (annotation, "holds labels and no signals"),
}
"""Each with a piece of the sentence that is said of it, besides its name."""

REGIONS = {
    "no-names": (series, lambda f: changed(dlabel(f), b">V1<", b">  <"), "gives no name to 1"),
    "164k": (series, lambda f: dlabel(f, places=dense.surface(n_vertices=20)), "7 of 20 vertices"),
    "structure": (series, lambda f: dlabel(f, places=dense.surface("Cerebellum")), "CEREBELLUM 7 of 12"),
    "two-maps": (
        series,
        lambda f: dlabel(f, np.ones((2, N), "f4"), maps=dense.labels("a", "b")),
        "2 label maps",
    ),
    "nothing": (series, lambda f: dlabel(f, np.zeros((1, N), "f4")), "is empty"),
    "matrix": (series, matrix, "is a dense matrix"),
    "header-cut": (series, lambda f: cut(dlabel(f), 900), "is truncated"),
    "xml-broken": (series, lambda f: changed(dlabel(f), b"<Label ", b"<Label<"), "at line 1, column 151"),
    "xml-key": (
        series,
        lambda f: changed(dlabel(f), b'Key="1"', b'Key="x"'),
        "what should be numbers is not",
    ),
    "data-cut": (series, lambda f: cut(dlabel(f), -10), "promises 60 bytes of image data, 50 were found"),
    "empty-file": (series, empty("x.dlabel.nii"), "is empty (0 bytes)"),
    "directory": (series, directory("x.dlabel.nii"), "is a directory"),
    "missing": (series, missing("x.dlabel.nii"), "does not exist"),
    "dangling": (series, dangling("x.dlabel.nii"), "is a link to /nowhere/it, which is not there"),
    "annotation-other-mesh": (func, lambda f: annotation(f, 12), "12 of 12 vertices"),
    "annotation-other-side": (func, lambda f: annotation(f, name="rh.x.annot"), "CORTEX_RIGHT 10 of 10"),
    "annotation-cut": (func, lambda f: cut(annotation(f), 60), "annotation of FreeSurfer: 60 bytes"),
    "annotation-missing": (func, missing("lh.x.annot"), "does not exist"),
    "label-no-names": (
        func,
        lambda f: surfaces.labels(f / "lh.x.label.gii", [1] * 10, names={0: "", 1: ""}),
        "gives no name to 1",
    ),
    "label-cut": (
        func,
        lambda f: cut(surfaces.labels(f / "lh.x.label.gii", [1] * 10), 500),
        "is no complete GIFTI file",
    ),
    "label-dangling": (func, dangling("lh.x.label.gii"), "is a link to /nowhere/it, which is not there"),
    "freesurfer-label": (func, lambda f: text("lh.cortex.label")(f), "is not an image"),
}
"""An image; a mask or atlas of it; a piece of what is said."""


def left(folder):
    """Files that are neither the failures that a study keeps nor their folder."""
    found = (Path(at) / name for at, _, names in os.walk(folder) for name in names)
    return [path for path in found if "failed" not in path.parts]
