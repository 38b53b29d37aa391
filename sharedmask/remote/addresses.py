"""Addresses: paths that are URLs.

Covers: telling them from paths of this machine, writing them in full, what of them may be shown. Does not
cover: what is there (``objects``).

A URL that went through a ``Path`` has lost a slash, ``https:/host/name``, and is one all the same: so
the names of what lies beside it are made as those of files are.
"""

import os
import pathlib
import re

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):[/\\]+(.*)", re.DOTALL)  # one letter would be a drive
_INNER = re.compile(r"::([A-Za-z][A-Za-z0-9+.-]+):[/\\]+")  # where an archive lies, behind what is in it
_HERE = ("file", "local")
# A name and a password; before an @ alone other protocols have names of containers.
_ASKING = re.compile(r"(?<=\bhttp://)[^/]*@|(?<=\bhttps://)[^/]*@|(?<=://)[^/@:]*:[^/]*@")
_HTTP = ("http", "https")

Path = str | os.PathLike[str]


def url_of(path: Path) -> str | None:
    """The URL in full, or None of what is a path of this machine.

    Examples
    --------
    >>> url_of("s3:/bucket/sub-01_bold.nii.gz"), url_of("/data/sub-01_bold.nii.gz")
    ('s3://bucket/sub-01_bold.nii.gz', None)
    """
    text = path if isinstance(path, str) else os.fsdecode(path)
    if ":" not in text or (found := _URL.fullmatch(text)) is None:  # a pattern takes ten times as long
        return None
    rest = found[2].replace("\\", "/") if os.sep == "\\" else found[2]
    return _whole(found[1], _INNER.sub(lambda one: f"::{_whole(one[1], '')}", rest))


def _whole(protocol: str, rest: str) -> str:
    """With the slashes that may have been lost; a file of this machine begins with one more."""
    here = protocol.lower() in _HERE
    return f"{protocol.lower()}://{'/' if here else ''}{rest.removeprefix('localhost/') if here else rest}"


def is_http(url: str) -> bool:
    """Whether the standard library speaks its protocol."""
    return url.partition(":")[0] in _HTTP


def absolute(path: Path) -> str:
    """The path as it is meant now, wherever the caller is later; a URL as it is."""
    return url_of(path) or os.path.abspath(os.path.expanduser(os.fsdecode(path)))


def place_of(path: Path) -> pathlib.Path:
    """The same as a ``Path``, below which others can be named; links and ``..`` are left."""
    return pathlib.Path(url_of(path) or pathlib.Path(os.fsdecode(path)).expanduser().absolute())


def without_query(path: Path) -> str:
    """The path without the query of a URL, which is no part of a file's name."""
    url = url_of(path)
    if url is None:
        return os.fsdecode(path)
    return "::".join(
        re.split(r"[?#]", one, maxsplit=1)[0] if is_http(one) else one for one in url.split("::")
    )


def own_name(path: Path) -> str:
    """What tells a file's kind: of one in an archive (``zip://a.nii.gz::s3://...``) its name in there."""
    shown = named(path)
    return shown if url_of(path) is None else shown.partition("::")[0]


def named(path: Path) -> str:
    """The path without what is no part of the file's name: the query of a URL, and who asks.

    Examples
    --------
    >>> named("https://me:secret@host/a.nii.gz?X-Amz-Signature=f00")
    'https://host/a.nii.gz'
    """
    shown = without_query(path)
    return _ASKING.sub("", shown) if "@" in shown else shown
