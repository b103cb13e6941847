"""Files of a shard folder behind a URL, fetched once into a folder of this machine.

WebDataset's cache keeps them. Under it fsspec does the reading, not WebDataset's own openers: those start programs
such as curl and gsutil, and one of them, ``pipe:``, runs a shell.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeGuard, TypeVar
from urllib.parse import urlsplit, urlunsplit

from data_prep.contract.command_line import UserError, one_line

SCHEMES = ("http", "https", "s3", "gs", "hf", "az", "abfs")
"""What may stand before ://."""

CACHE_VARIABLE = "NARROWBERT_CACHE"
RETRY_DELAYS_S = (1.0, 4.0, 15.0)
CONNECT_TIMEOUT_S = 30
SILENCE_TIMEOUT_S = 120
"""Longest wait for the next bytes of a file; the whole of it may take any time."""

# The scheme under which WebDataset's cache finds our opener. Rules that rewrite a machine's http:// or s3:// for
# WebDataset (GOPEN_REWRITE, USE_AIS_FOR), perhaps to a shell command, do not match it.
_OPENER = "narrowbert"
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}

Result = TypeVar("Result")


def is_url(folder: str | Path) -> bool:
    """Whether a shard folder is named by a URL; ``pipe:`` counts, so that it is refused as one."""
    return "://" in str(folder) or str(folder).startswith("pipe:")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteFolder:
    """A shard folder behind a URL."""

    url: str
    """Of the folder; a query, as of a signed URL, goes with every file."""

    def __str__(self) -> str:
        """The URL without what may be secret in it: user, password, query."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))

    def check(self) -> None:
        """Raise UserError for a URL that will not be read."""
        if self.url.partition("://")[0] not in SCHEMES or "::" in self.url:
            allowed = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise UserError(f"shards are not read from {self}: name a folder, or a URL that begins with {allowed}")

    def cache(self, root_hash: str) -> Path:
        """The folder for the files of one version; two URLs or two versions never share one."""
        place = hashlib.sha256(str(self).encode()).hexdigest()[:16]
        base = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "narrowbert"
        return Path(base) / f"{place}-{root_hash[:16]}"

    def read(self, name: str) -> bytes:
        """A small file's bytes, always from the URL.

        Raises:
            UserError: it cannot be had.
        """

        def whole() -> bytes:
            with _open(self._file_url(name)) as stream:
                return b"".join(iter(lambda: stream.read(1 << 20), b""))

        return self._retried(name, whole)

    def fetch(self, name: str, folder: Path, *, sha256: str, size: int | None = None) -> Path:
        """The path of the file's copy in ``folder``, fetched unless it is there already.

        Several processes may ask at once; one of them fetches. A fresh copy is checked against sha256 and size, one
        that is there against the size alone where it is given.

        Raises:
            UserError: it cannot be had or written, or what came is not what it should be; then it is deleted.
        """
        from webdataset.cache import FileCache  # takes seconds: it brings torch along
        from webdataset.gopen import gopen_schemes

        path = folder / name
        cache = FileCache(str(folder), url_to_name=lambda _: name, validator=lambda _: True)
        gopen_schemes[_OPENER] = lambda url, *_, **__: _open(url.removeprefix(f"{_OPENER}:"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / f".{name}.lock") as alone:
                if path.is_file() and _problem(path, sha256 if size is None else None, size):
                    path.unlink()
                if not path.is_file():
                    for left in folder.glob(f"{name}.temp*") if alone else ():  # of a process that was killed
                        left.unlink()
                    self._retried(name, lambda: cache.get_file(f"{_OPENER}:{self._file_url(name)}"))
                    problem = _problem(path, sha256, size)
                    if problem:
                        path.unlink()
                        raise UserError(f"{self}/{name} {problem}: what was fetched has been deleted; check the source")
        except OSError as error:
            raise UserError(f"cannot keep {name} in the cache {folder}: {_reason(error)}") from error
        return path

    def _file_url(self, name: str) -> str:
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))

    def _retried(self, name: str, action: Callable[[], Result]) -> Result:
        """What ``action`` gives; what may pass, such as a broken connection, is tried again."""
        for delay in (*RETRY_DELAYS_S, None):
            try:
                return action()
            except Exception as error:  # each of fsspec's file systems raises exceptions of its own
                if delay is None or _is_final(error):
                    raise UserError(f"cannot read {self}/{name}: {_reason(error)}") from error
                time.sleep(delay)
        raise AssertionError("the last attempt returns or raises")


def _open(url: str) -> IO[bytes] | Any:
    """A stream of the URL's bytes."""
    import fsspec

    scheme = url.partition("://")[0]
    if scheme not in ("http", "https"):
        return fsspec.filesystem(scheme).open(url, "rb")
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S)
    settings = {"timeout": timeout, "trust_env": True, "headers": {"Accept-Encoding": "identity"}}
    # block_size 0 reads the file by one request, for servers that know no ranges; with any size given there is none
    # before it to ask for the size.
    return fsspec.filesystem("http", client_kwargs=settings).open(url, "rb", block_size=0, size=1)


def _is_final(error: Exception) -> bool:
    """Whether trying again would not help."""
    status = getattr(error, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    return refused or _of_the_disk(error) or isinstance(error, (FileNotFoundError, ImportError, ValueError))


def _of_the_disk(error: Exception) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def _reason(error: Exception) -> str:
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return f"the server answers {status}"
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    if _of_the_disk(error):
        return f"{error.strerror}; make room, or name another cache folder in the variable {CACHE_VARIABLE}"
    return one_line(f"{type(error).__name__}: {error}")


def _problem(path: Path, sha256: str | None, size: int | None) -> str | None:
    if size is not None and path.stat().st_size != size:
        return f"has {path.stat().st_size} bytes instead of {size}"
    if sha256 is not None:
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                return "has not the sha256 that its manifest gives"
    return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a lock among the processes of this machine; False where the file system has none."""
    with path.open("wb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True
