"""Which paths are URLs, and what of them is shown."""

from pathlib import Path

import pytest

from sharedmask.remote.addresses import absolute, is_http, named, url_of, without_query


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("https://host/a.nii.gz", "https://host/a.nii.gz"),
        (Path("https://host/sub-01") / "a.nii.gz", "https://host/sub-01/a.nii.gz"),
        ("S3://bucket/Key", "s3://bucket/Key"),
        ("memory:/a", "memory://a"),
        ("/data/https:/a", None),
        ("a.nii.gz", None),
        ("C:/data/a.nii", None),
        ("sub:01_bold.nii", None),
    ],
)
def test_urls(given, url):
    assert url_of(given) == url
    assert absolute(given) == (url or str(Path(given).absolute()))


@pytest.mark.parametrize(
    "url", ["https://me:pw@host:8/a/b.nii.gz?sig=a/b?c#d", "http://me@host:8/a/b.nii.gz#x?y"]
)
def test_secrets_are_no_part_of_a_name(url):
    assert named(url).endswith("://host:8/a/b.nii.gz")
    assert without_query(url).endswith("@host:8/a/b.nii.gz")


def test_other_schemes_have_no_query():
    assert named("s3://bucket/what?.nii") == without_query("s3://bucket/what?.nii") == "s3://bucket/what?.nii"
    assert named("what?.nii") == "what?.nii"
    assert not is_http("s3://bucket")
