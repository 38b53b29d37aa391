"""Errors and interruptions in the middle of work leave nothing, and the image usable."""

import os

import pytest
from children import python
from images import bold, random_masks, save

from sharedmask import SharedImage
from sharedmask.errors import DamagedImageError
from sharedmask.sources import loader
from sharedmask.storage.registry import entries


def test_an_exception_in_the_middle_of_loading_leaves_nothing(tmp_path, registry_dir):
    path = save(tmp_path / "run.nii.gz", bold((9, 9, 9, 300)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 4])
    with SharedImage(path) as shared:
        for _ in range(2):
            with pytest.raises(DamagedImageError, match=r"run\.nii\.gz is truncated"):
                shared.load()
            assert os.listdir(registry_dir) == []
        assert "not loaded" in repr(shared)


def test_ctrl_c_in_the_middle_of_loading_leaves_nothing(run, registry_dir, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(loader, "load", interrupted)
    with SharedImage(run) as shared, pytest.raises(KeyboardInterrupt):
        shared.load()
    assert os.listdir(registry_dir) == []


def test_an_exception_in_the_middle_of_masking_leaves_the_image_usable(run):
    masks = random_masks(4)

    def fail(key, signals):
        raise RuntimeError("the callback's")

    with SharedImage(run) as shared:
        for prefer in ("threads", "processes"):
            with pytest.raises(RuntimeError, match="the callback's"):
                shared.mask_parallel(masks, n_jobs=2, prefer=prefer, on_result=fail)
            assert len(entries()) == 1
        assert len(shared.mask_parallel(masks)) == 4


def test_an_image_left_open_is_released_at_exit_with_a_warning(run, registry_dir):
    script = f"""
    from sharedmask import SharedImage
    image = SharedImage({str(run)!r}).load()
    """
    environment = {**os.environ, "PYTHONWARNINGS": "always::ResourceWarning"}
    done = python(script, fresh=True, env=environment)
    assert done.returncode == 0
    assert "run.nii.gz was not closed" in done.stderr
    assert os.listdir(registry_dir) == []
