"""HDF5 files of frames as others write them."""

import h5py
import numpy as np
from images import AFFINE


def nifreezes(path, data, version=1, userblock=0, **fields):
    """A file as nifreeze writes it, by its description."""
    with h5py.File(path, "w", userblock_size=userblock) as file:
        file.attrs["Format"] = fields.pop("Format", "NFDH5")
        file.attrs["Version"] = np.uint16(version)
        options = dict(fields.pop("options", {}))
        root = file.create_group("/0")
        root.attrs["Type"] = "base dataset"
        stored = data if version == 1 else np.ascontiguousarray(np.moveaxis(data, -1, 0))
        kind, last = options.get("chunks"), (*stored.shape[:-1], 1)
        kinds = {"first axis": (1, *stored.shape[1:]), "last axis": last}
        if isinstance(kind, str):
            options["chunks"] = kinds[kind]
        dataset = root.create_dataset("dataobj", data=stored, **options)
        if version == 2:
            dataset.attrs["volume_axis"] = 0
        for name, value in {"affine": AFFINE, **fields}.items():
            root.create_dataset(name, data=value)
    return path
