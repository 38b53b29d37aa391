"""``sharedmask info``."""

from command import sharedmask


def test_info_tells_what_an_image_is(study):
    done = sharedmask("info", "bold.nii.gz", cwd=study)
    assert done.returncode == 0
    for fact in ("7 x 6 x 5 x 12", "int16", "2 s", "MiB", "memory that may be used"):
        assert fact in done.stdout
