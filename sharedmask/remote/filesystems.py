"""File systems of fsspec: objects by ``s3://`` and all other protocols that it knows.

Covers: finding the file system, anonymous access to S3, fetching blocks beside each other, walks. Does not
cover: HTTP (``http``), reading ahead (``objects``).

Credentials and servers are found as fsspec finds them: its configuration, the variables and files of AWS.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from threading import Event
from typing import Any

from sharedmask.errors import MissingFileError, RemoteError, SharedMaskError
from sharedmask.remote.addresses import named
from sharedmask.remote.retries import Retries
from sharedmask.remote.threads import Threads
from sharedmask.remote.version import Version

_BLOCK = 2**20
_AT_ONCE = 6  # requests beside each other, so that their waits are not one after the other
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")
_ACCOUNT = {"anon", "key", "secret", "token", "username", "password", "profile", "session"}
_FINAL = (PermissionError, FileNotFoundError, IsADirectoryError)


class FsspecServer:
    """One object and the way to it."""

    def __init__(self, url: str) -> None:
        self.url, self.name = url, named(url)
        try:
            self._files, self._path = _opened(url)
        except (ImportError, ValueError) as error:
            said = f"{self.name} cannot be opened: {self._said(error)}; `pip install sharedmask[remote]`"
            raise RemoteError(said) from error
        except OSError as error:  # some connect at once
            raise RemoteError(f"{self.name} cannot be reached: {self._said(error)}") from error
        self._at_once = 1 if _is_archive(self._files) else _AT_ONCE
        self._stopped = Event()

    def head(self, most: int) -> tuple[Version, bytes]:
        """What the object is, and its first bytes, at ``most`` so many."""
        version = self._version()
        end = most if version.nbytes is None else min(most, version.nbytes)
        return version, self._fetch(0, end) if end else b""

    def blocks(self, place: int, version: Version) -> Generator[bytes, None, None]:
        """The bytes from ``place`` on, block by block; several are under way at a time."""
        if version.nbytes is None:
            raise RemoteError(f"{self.name}: its server does not tell how long it is")
        ahead = deque[Future[bytes]]()
        starts = iter(range(place, version.nbytes, _BLOCK))
        with Threads(self._at_once, "sharedmask-remote") as threads:
            try:
                while True:
                    while len(ahead) < self._at_once and (start := next(starts, None)) is not None:
                        ahead.append(threads.submit(self._fetch, start, min(start + _BLOCK, version.nbytes)))
                    if not ahead:
                        return
                    yield ahead.popleft().result()
            finally:
                threads.shutdown(wait=True, cancel_futures=True)

    def interrupt(self) -> None:
        """No block is begun any more."""
        self._stopped.set()

    def listed(self) -> list[str] | None:
        """Names in a folder."""
        with contextlib.suppress(OSError, NotImplementedError):
            found = self._files.ls(self._path.rstrip("/"), detail=False)
            return sorted({path.rstrip("/").rpartition("/")[2] for path in found})
        return None

    def below(self, goes_into: Callable[[str], bool]) -> Iterator[tuple[str, str, str]]:
        """Folder, name and identity of all files: a request for each page of them, as of 1000 in a bucket."""
        with self._errors():
            found = self._patiently(lambda: self._fresh().find(self._path, detail=True))
        if not found:
            raise MissingFileError(f"{self.name} does not exist, or is empty")
        root = self._path.rstrip("/")
        for path, facts in found.items():
            folder, _, name = path.removeprefix(root).lstrip("/").rpartition("/")
            if all(map(goes_into, filter(None, folder.split("/")))):
                yield folder, name, _version_of(facts).identity

    def _version(self) -> Version:
        with self._errors():
            facts = self._patiently(lambda: self._fresh().info(self._path))
        if facts.get("type") == "directory":
            raise RemoteError(f"{self.name} is a directory; give a file")
        return _version_of(facts)

    def _fresh(self) -> Any:
        self._files.invalidate_cache(self._path.rpartition("/")[0])
        return self._files

    def _fetch(self, start: int, end: int) -> bytes:
        if self._stopped.is_set():
            return b""
        with self._errors():
            return bytes(self._patiently(lambda: self._exactly(start, end)))

    def _exactly(self, start: int, end: int) -> bytes:
        found: bytes = self._files.cat_file(self._path, start=start, end=end)
        if len(found) < end - start:
            raise ConnectionError(f"bytes {start} to {end} were asked for, {len(found)} came")
        return found

    def _patiently(self, work: Any) -> Any:
        tries = Retries(self._stopped)
        while True:
            try:
                return work()
            except _FINAL:
                raise
            except OSError as error:
                tries.wait(error)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except SharedMaskError:
            raise
        except FileNotFoundError as error:
            raise MissingFileError(f"{self.name} does not exist") from error
        except Exception as error:  # libraries of servers have errors of their own
            raise RemoteError(f"{self.name} cannot be read: {self._said(error)}") from error

    def _said(self, error: Exception) -> str:
        """What a library says, of addresses only what may be shown."""
        said = str(error) or type(error).__name__
        for one in self.url.split("::"):
            said = said.replace(one, named(one))
        return said


def _version_of(facts: Mapping[str, Any]) -> Version:
    when = next((str(facts[name]) for name in _TIMES if facts.get(name)), "")
    size = facts.get("size")
    return Version(None if size is None else int(size), str(facts.get("ETag") or ""), when)


def _opened(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    files, path = url_to_fs(url, **_options(url))
    if _is_archive(files):
        files = type(files)(*files.storage_args, **files.storage_options, skip_instance_cache=True)
    return files, str(path)


def _is_archive(files: Any) -> bool:
    """Whether all is read through one open file, in which whoever reads beside another misses its place."""
    from fsspec.archive import AbstractArchiveFileSystem

    return isinstance(files, AbstractArchiveFileSystem)


def _options(url: str) -> dict[str, Any]:
    """Public buckets need no account: who has none asks without."""
    if not url.startswith(("s3://", "s3a://")):
        return {}
    from fsspec.config import conf

    if _ACCOUNT & conf.get("s3", {}).keys() or os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    import botocore.session

    return {} if botocore.session.Session().get_credentials() else {"anon": True}
