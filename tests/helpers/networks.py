"""Small connectomes and lesions for tests, and the mathematics in eight lines of float64."""

from pathlib import Path

import nibabel as nib
import numpy as np
from images import AFFINE

from sharedmask import FunctionalNetworkMapper
from sharedmask.network.connectome import share_block

SHAPE = (9, 8, 7)


def mask(shape=SHAPE, seed=0, density=0.6):
    return np.random.default_rng(seed).random(shape) < density


def series(n_subjects=6, n_timepoints=40, n_voxels=None, seed=1):
    """Signals that share a few courses, so that some correlations are large."""
    rng = np.random.default_rng(seed)
    n_voxels = int(mask().sum()) if n_voxels is None else n_voxels
    shared = rng.normal(size=(n_subjects, n_timepoints, 3)) @ rng.normal(size=(3, n_voxels))
    return (shared + 2 * rng.normal(size=(n_subjects, n_timepoints, n_voxels))).astype("f4")


def write(path, data, inside=None, affine=AFFINE, indices=None, **storage):
    """One file as Lacuna writes it: a chunk per subject, gzip 1."""
    import h5py

    inside = mask() if inside is None else inside
    indices = np.array(np.nonzero(inside)) if indices is None else indices
    options = {"chunks": (1, *data.shape[1:]), "compression": "gzip", "compression_opts": 1, **storage}
    with h5py.File(path, "w") as file:
        file.create_dataset("timeseries", data=data, **options)
        file.create_dataset("mask_indices", data=indices)
        file.create_dataset("mask_affine", data=affine)
        file.attrs["mask_shape"] = inside.shape
        file.attrs["n_subjects"], file.attrs["n_timepoints"], file.attrs["n_voxels"] = data.shape
    return path


def write_split(folder, data, sizes, **options):
    """The same subjects over several files."""
    folder.mkdir(exist_ok=True)
    for number, part in enumerate(np.split(data, np.cumsum(sizes)[:-1])):
        write(folder / f"connectome_batch_{number:03d}.h5", part, **options)
    return folder


def lesion(seed=0, n_voxels=12, inside=None, affine=AFFINE):
    """An image of voxels within the mask, and their positions in its C order."""
    inside = mask() if inside is None else inside
    chosen = np.sort(np.random.default_rng(seed).choice(int(inside.sum()), n_voxels, replace=False))
    data = np.zeros(inside.shape, "u1")
    data[tuple(np.array(np.nonzero(inside))[:, chosen])] = 1
    return nib.Nifti1Image(data, affine), chosen


def correlations(course, voxels):
    """Pearson's r of a (t,) course with (t, v) voxels; 0 where one is constant."""
    course, voxels = course - course.mean(), voxels - voxels.mean(axis=0)
    lengths = np.sqrt((course**2).sum()) * np.sqrt((voxels**2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.clip(course @ voxels / lengths, -1, 1), nan=0.0)


def reference(data, chosen, cap=10.0):
    """z of each subject, their mean and t, from the formulas."""
    data = data.astype("f8")
    with np.errstate(divide="ignore"):
        z = np.array([np.arctanh(correlations(one[:, chosen].mean(axis=1), one)) for one in data])
    z = np.clip(z, -cap, cap)
    error = z.std(axis=0, ddof=1) / np.sqrt(len(z))
    t = np.divide(z.mean(axis=0), error, out=np.zeros_like(error), where=error > 0)
    return z, z.mean(axis=0), t


def reference_kept(data, chosen, percentile=20):
    """The voxels that method "pini" keeps."""
    from sklearn.decomposition import PCA

    data = data.astype("f8")
    own = np.array([correlations(one[:, chosen].mean(axis=1), one[:, chosen]) for one in data])
    loadings = np.abs(PCA(1, svd_solver="full").fit(own).components_[0])
    return chosen[loadings >= np.percentile(loadings, percentile)]


METHODS = ("boes", "pini")


STRAIGHT = np.array([[4.0, 0, 0, -60], [0, 4, 0, -70], [0, 0, 4, -30], [0, 0, 0, 1]])


SIZES = (1, 2, 12, 40, 200)


ALL = {"t_threshold": 2.0}


def inside(image):
    """Values in the C order of the mask."""
    return np.asarray(image.dataobj)[mask()]


def mapped(connectome, lesions, method="boes", batch_size=None, **parameters):
    mapper = FunctionalNetworkMapper(method, **{**ALL, **parameters}).fit(connectome)
    return mapper.transform(lesions, batch_size=batch_size)


def half_step():
    step = np.diag([0.5, 1, 1, 1])
    step[0, 3] = -0.25
    return step


LAYOUTS = {
    "as Lacuna writes it": {},
    "one piece": {"chunks": None, "compression": None, "compression_opts": None},
    "plain chunks": {"compression": None, "compression_opts": None},
    "shuffled": {"shuffle": True},
    "checksums": {"fletcher32": True},
    "subjects share chunks": {"chunks": (4, 10, 50)},
    "h5py's own chunks": {"chunks": True},
}


def rows_of(data):
    """Centred rows of length 1, and their lengths, in float64."""
    rows = data.astype("f8").transpose(0, 2, 1)
    rows = rows - rows.mean(axis=2, keepdims=True)
    lengths = np.linalg.norm(rows, axis=2)
    return rows / np.where(lengths > 0, lengths, 1)[..., None], lengths


def read(connectome, most_bytes=2**30, n_threads=2):
    """Rows and lengths of all blocks."""
    parts = []
    for block in connectome.blocks(most_bytes):
        with share_block(connectome, block, n_threads) as shared:
            parts.append((np.array(shared.series), np.array(shared.lengths)))
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def write_study(folder):
    """A connectome of three files and nine lesions."""
    write_split(folder / "connectome", series(), [2, 2, 2])
    (folder / "lesions").mkdir()
    for number in range(9):
        nib.save(lesion(number)[0], folder / f"lesions/sub-{number}.nii.gz")
    return folder


def contents(folder):
    """Of all files; what is recorded of the work itself is not among them."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
