"""GIFTI and FreeSurfer files of small surfaces."""

import nibabel as nib
import numpy as np
from nibabel.gifti import GiftiDataArray, GiftiImage, GiftiLabel, GiftiLabelTable

N_VERTICES = 10
NAMES = {0: "???", 1: "V1", 2: "A1"}


def gifti(path, values, intent="time series", structure=None, names=None, encoding="GIFTI_ENCODING_B64GZ"):
    table = GiftiLabelTable()
    for key, name in (names or {}).items():
        label = GiftiLabel(key=key, red=1, green=0, blue=0, alpha=1)
        label.label = name
        table.labels.append(label)
    arrays = [GiftiDataArray(one, intent=intent, datatype=one.dtype, encoding=encoding) for one in values.T]
    meta = nib.gifti.GiftiMetaData({"AnatomicalStructurePrimary": structure} if structure else {})
    nib.save(GiftiImage(darrays=arrays, labeltable=table, meta=meta), path)
    return path


def func(path, n_timepoints=12, seed=0, **how):
    values = np.random.default_rng(seed).normal(100, 10, (N_VERTICES, n_timepoints)).astype("f4")
    return gifti(path, values, **how), values


def labels(path, values, names=None, **how):
    values = np.asarray(values, "i4")[:, None]
    return gifti(path, values, "NIFTI_INTENT_LABEL", names=NAMES if names is None else names, **how)


def annotation(path, values, names):
    table = np.array([[10 * i, 20, 30, 0, 10 * i + 20 * 256 + 30 * 65536] for i in range(len(names))])
    nib.freesurfer.write_annot(path, np.asarray(values), table[:, :4], names, fill_ctab=True)
    return path


def overlay(path, values):
    nib.save(
        nib.MGHImage(np.asarray(values, "f4").reshape(len(values), 1, 1, *np.shape(values)[1:]), np.eye(4)),
        path,
    )
    return path


def mesh(path, points, triangles):
    arrays = [
        nib.gifti.GiftiDataArray(np.asarray(values, dtype), intent=f"NIFTI_INTENT_{intent}")
        for values, dtype, intent in ((points, "f4", "POINTSET"), (triangles, "i4", "TRIANGLE"))
    ]
    nib.save(nib.gifti.GiftiImage(darrays=arrays), path)
    return str(path)
