"""
A run on a server
=================

A path may be a URL: the bytes go through the decoder as they arrive, and nothing is written to a
disk. Here a small server on this machine stands for the one that has the data.
"""

# %%
import contextlib
import tempfile
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import brain

folder = brain.written(tempfile.mkdtemp())
asked = Counter()


class Folder(SimpleHTTPRequestHandler):
    def do_GET(self):
        asked[self.path] += 1
        with contextlib.suppress(ConnectionError):  # who wants a header only hangs up
            super().do_GET()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Folder, directory=folder))
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}"

# %%
# The run, the atlas and the table of its names are all read from there.
from sharedmask import Regions, extract

regions = Regions.from_labels(f"{address}/atlas_dseg.nii.gz", lut=f"{address}/atlas_dseg.tsv")
how = {"strategy": "mean", "detrend": True, "standardize": "zscore_sample"}
means = extract(f"{address}/sub-01_bold.nii.gz", regions, **how)
print(means.shape, regions.names[:4])

# %%
# The numbers are those of the file, to the bit. Its header was looked at, then all of it read, once.
import numpy as np

local = extract(folder / "sub-01_bold.nii.gz", regions, **how)
assert np.array_equal(means, local)
print(*asked.items(), sep="\n")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
axes.imshow(means.T, aspect="auto", cmap="gray", vmin=-2, vmax=2)
axes.set(xlabel="volume", ylabel="region", title="standard deviations")
plt.show()

# %%
server.shutdown()
server.server_close()

# %%
# Buckets are read in the same way, with ``pip install 'sharedmask[remote]'``. In a shell::
#
#     sharedmask extract s3://openneuro.org/ds000001/sub-01/func/sub-01_..._bold.nii.gz \
#         --atlas atlas_dseg.nii.gz -o means.tsv
