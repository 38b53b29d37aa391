"""Views that are in use while the image closes, that travel, or that outlive the interpreter's end."""

import faulthandler
import gc
import os

import numpy as np
import psutil
import pytest
from children import python
from images import bold, random_masks, save, truth
from owners import GEOMETRY, STORES, links
from segments import exists

from sharedmask import SharedImage
from sharedmask.storage.registry import OwnedSegment, entries
from sharedmask.storage.segment import attach


@pytest.mark.parametrize("store", STORES)
def test_views_in_use_while_the_image_closes(store, tmp_path):
    faulthandler.enable()
    path = save(tmp_path / "run.nii.gz", bold())
    image = SharedImage(path, store=store)
    whole, nifti = image.array, image.as_nifti()
    views = [whole[::-1, 1:], whole.T, whole[2, 3, 4], whole.reshape(-1, order="F"), memoryview(whole)]
    views += [nifti.dataobj[..., 3], nifti.slicer[1:3].dataobj, np.asarray(whole)]
    expected = [np.array(view) for view in views]
    cycle = [views]
    cycle.append(cycle)
    name = image.handle.name
    image.close()
    del whole, nifti, image
    gc.collect()
    for view, before in zip(views, expected, strict=True):
        np.testing.assert_array_equal(view, before)
    assert not exists(name)
    assert links(name)
    del views, cycle, view
    gc.collect()
    assert links(name) == []


@pytest.mark.parametrize(
    "compute",
    [
        lambda a: a + 1,
        lambda a: a.sum(axis=3),
        lambda a: a.astype("f4"),
        lambda a: a[[0]],
        lambda a: a.copy(),
    ],
    ids=["add", "sum", "astype", "pick", "copy"],
)
def test_views_copied_or_computed_hold_no_bytes(compute, tmp_path):
    path = save(tmp_path / "run.nii.gz", bold())
    with SharedImage(path) as image:
        computed, name = compute(image.array), image.handle.name
    gc.collect()
    found = links(name)
    assert computed.size
    assert found == []


@pytest.mark.some(2)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("last", ["image", "view", "nifti", "cycle", "module"])
def test_views_at_the_end_of_the_interpreter(last, store, tmp_path, registry_dir):
    path = save(tmp_path / "run.nii.gz", bold())
    script = """
    import atexit, faulthandler, sys
    faulthandler.enable()
    import numpy as np
    if sys.argv[3] == "module":
        kept = []
        atexit.register(lambda: print(int(kept[0].sum())))
    from sharedmask import SharedImage
    image = SharedImage(sys.argv[1], store=sys.argv[2])
    view, nifti = image.array[1:], image.as_nifti()
    if sys.argv[3] == "module":
        kept.append(view)
    elif sys.argv[3] == "cycle":
        class Node: pass
        node = Node()
        node.me, node.view, node.image = node, view, image
        node.__class__.__del__ = lambda self: self.view.sum()
        del view, image, nifti, node
    else:
        for other in {"image", "view", "nifti"} - {sys.argv[3]}:
            del globals()[other]
    """
    done = python(script, path, store, last, fresh=True)
    assert (done.returncode, done.stderr) == (0, "")
    if last == "module":
        assert done.stdout == f"{truth(path)[1:].sum()}\n"
    assert os.listdir(registry_dir) == []


def _loop(store):
    owned = OwnedSegment("run", GEOMETRY, store)
    owned.segment.array("rows")[:] = 7
    rows = attach(owned.share({})).arrays["rows"]
    owned.release()
    assert rows.sum() == 105


def _counts():
    gc.collect()
    with open("/proc/self/maps") as maps:
        n_maps = sum("sharedmask" in line for line in maps)
    return len(os.listdir("/proc/self/fd")), n_maps


@pytest.mark.some(1)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("rounds", [200, pytest.param(20_000, marks=pytest.mark.slow)])
def test_views_in_many_loops_hold_nothing(rounds, store):
    for _ in range(100):
        _loop(store)
    before, memory = _counts(), psutil.Process().memory_info().rss
    for _ in range(rounds):
        _loop(store)
    assert _counts() == before
    assert psutil.Process().memory_info().rss - memory < 8 * 2**20


def test_outputs_have_no_name_once_they_are_returned(run):
    with SharedImage(run) as shared:
        signals = shared.mask_parallel(random_masks(4), n_jobs=2, prefer="processes")
        assert [entry.label for entry in entries()] == ["run.nii.gz"]
        signals[0][:] = 0  # writable, as any array
        np.testing.assert_array_equal(signals[0], 0)


def test_results_outlive_the_image(run):
    masks = random_masks(3)
    with SharedImage(run) as shared:
        threads = shared.mask_parallel(masks)
        processes = shared.mask_parallel(masks, n_jobs=2, prefer="processes")
        view = shared.array[1:, ::2]
        expected = view.copy()
    gc.collect()
    for one, other in zip(threads, processes, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(view, expected)


@pytest.mark.some(1)
@pytest.mark.parametrize("prefer", ["threads", "processes"])
def test_many_rounds_hold_descriptors_and_maps_constant(run, prefer):
    masks = random_masks(2)

    def round_():
        with SharedImage(run) as shared:
            shared.mask_parallel(masks, n_jobs=2, prefer=prefer)

    round_()
    before = _counts()
    for _ in range(60):
        round_()
    assert _counts() == before
