"""Which paths are URLs, and what of them is shown."""

from pathlib import Path

import pytest

from sharedmask.remote.addresses import absolute, is_http, named, own_name, url_of, without_query


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("https://host/a.nii.gz", "https://host/a.nii.gz"),
        (Path("https://host/sub-01") / "a.nii.gz", "https://host/sub-01/a.nii.gz"),
        ("S3://bucket/Key", "s3://bucket/Key"),
        ("memory:/a", "memory://a"),
        ("file:///data/a.nii", "file:///data/a.nii"),
        (Path("file:///data") / "a.nii", "file:///data/a.nii"),
        ("file://localhost/data/a.nii", "file:///data/a.nii"),
        (Path("zip://a.nii::https://host/z.zip"), "zip://a.nii::https://host/z.zip"),
        (Path("zip://a.nii::file:///data/z.zip"), "zip://a.nii::file:///data/z.zip"),
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


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ftp://me:pw@host/a@b.nii", "ftp://host/a@b.nii"),
        ("zip://a.nii::https://me:pw@host/z.zip?sig=1", "zip://a.nii::https://host/z.zip"),
        ("abfs://container@account/a.nii", "abfs://container@account/a.nii"),
        ("s3://bucket/a:b@c.nii", "s3://bucket/a:b@c.nii"),
        ("https://host/a@b.nii", "https://host/a@b.nii"),
    ],
)
def test_what_is_shown(url, shown):
    assert named(url) == shown


def test_what_tells_a_kind():
    assert own_name("zip://d/a.nii.gz::s3://bucket/z.zip") == "zip://d/a.nii.gz"
    assert own_name("https://host/a.nii.gz?sig=1") == "https://host/a.nii.gz"
    assert own_name("/data/a::b.nii") == "/data/a::b.nii"
