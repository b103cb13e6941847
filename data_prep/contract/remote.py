"""Files that are elsewhere: opened by URL, tried again after faults that may pass, and fetched whole into the cache.

WebDataset's cache keeps whole files; ``fetching`` has single chunks of shards. Under both fsspec does the reading, not
WebDataset's own openers: those start programs such as curl and gsutil, and one of them, ``pipe:``, runs a shell.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import logging
import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from data_prep.contract.command_line import UserError, one_line
from data_prep.contract.redaction import redact_urls

SCHEMES = ("http", "https", "s3", "gs", "hf", "az", "abfs")
"""What may stand before ://."""

AZURE_SCHEMES = ("az", "abfs", "abfss")
"""Those of them in which what stands before an @ is a container."""

CACHE_VARIABLE = "NARROWBERT_CACHE"
CONNECT_TIMEOUT_S = 30
SILENCE_TIMEOUT_S = 120
"""Longest wait for the next bytes of a file; the whole of it may take any time."""

# The scheme under which WebDataset's cache finds our opener. Rules that rewrite a machine's http:// or s3:// for
# WebDataset (GOPEN_REWRITE, USE_AIS_FOR), perhaps to a shell command, do not match it.
_OPENER = "narrowbert"
_IDENTITY = {"Accept-Encoding": "identity"}
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}

# Scheme -> the extra that brings the package behind it.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}

DELAYS_S = (1.0, 4.0, 15.0, 40.0)
"""Waits between the attempts, each drawn between half of it and all of it, so that workers do not return in step."""

_LOG = logging.getLogger(__name__)

_PASSING_NUMBERS = {
    errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.EINTR, errno.EIO, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH, errno.ENOTCONN,
    errno.EPIPE, errno.EREMOTEIO, errno.ESHUTDOWN, errno.ESTALE, errno.ETIMEDOUT,
}  # fmt: skip
_PASSING_STATUSES = {408, 425, 429}
_UNREACHABLE_NUMBERS = {errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH}

# Of aiohttp, of botocore and of azure-core.
_UNREACHABLE_NAMES = {"ClientConnectorError", "EndpointConnectionError", "ConnectTimeoutError", "ServiceRequestError"}
_CREDENTIALS_NAMES = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}

_FINAL_KINDS = (
    FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, ImportError, ValueError, TypeError,
    LookupError, AttributeError, AssertionError, NotImplementedError, MemoryError, ArithmeticError,
)  # fmt: skip

Result = TypeVar("Result")


class RetriesExhausted(UserError):
    """What could have passed did not pass while it was tried again: the same command may work later."""


def retried(action: Callable[[], Result], what: str) -> Result:
    """What ``action`` gives; after a fault that may pass it is called again, with growing waits.

    Args:
        action: what to do; it begins anew at every call.
        what: as in "cannot read the corpus file a.txt", without the "cannot".

    Raises:
        RetriesExhausted: every attempt failed.
        Exception: whatever ``action`` raises that would not pass, as it is.
    """
    for delay in (*DELAYS_S, None):
        try:
            return action()
        except Exception as error:
            if not may_pass(error):
                raise
            if delay is None:
                attempts = len(DELAYS_S) + 1
                raise RetriesExhausted(f"cannot {what}: {reason(error)}, at each of {attempts} attempts") from error
            _LOG.warning("cannot %s: %s; trying again", redact_urls(what), reason(error))
            time.sleep(delay * random.uniform(0.5, 1.0))
    raise AssertionError("the last attempt returns or raises")


def may_pass(error: Exception) -> bool:
    """Whether trying again may help."""
    if isinstance(error, UserError):
        return False
    status = _status(error)
    if status is not None:
        return status >= 500 or status in _PASSING_STATUSES
    if _names(error) & _CREDENTIALS_NAMES:
        return False
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno in errno.errorcode:
        return error.errno in _PASSING_NUMBERS
    return not isinstance(error, _FINAL_KINDS)


def reason(error: Exception) -> str:
    """The cause of an error in one line, without what may be secret in a URL."""
    status = _status(error)
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    if status is not None:
        return f"the server answers {status}"
    detail = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.errno in errno.errorcode and error.strerror:
        detail = error.strerror
    if _is_unreachable(error):
        detail = f"the host cannot be reached ({detail})"
    return redact_urls(one_line(detail))


def _is_unreachable(error: Exception) -> bool:
    number = error.errno if isinstance(error, OSError) else None
    unreachable = isinstance(error, socket.gaierror) or number in _UNREACHABLE_NUMBERS
    return unreachable or bool(_names(error) & _UNREACHABLE_NAMES)


def _names(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _status(error: Exception) -> int | None:
    """The HTTP status that an error bears."""
    for status in _statuses(error):
        if str(status).isdecimal() and 400 <= int(status) < 600:
            return int(status)
    return None


def _statuses(error: Exception) -> Iterator[Any]:
    """Where aiohttp, azure-core, gcsfs, requests and botocore have it, one after the other."""
    for name in ("status", "status_code", "code"):
        yield getattr(error, name, None)
    yield getattr(getattr(error, "response", None), "status_code", None)
    for source in (error, error.__cause__):  # s3fs makes an OSError of botocore's error
        response = getattr(source, "response", None)
        if isinstance(response, dict):
            yield response.get("ResponseMetadata", {}).get("HTTPStatusCode")


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
        user, _, host = parts.netloc.rpartition("@")
        if user and parts.scheme in AZURE_SCHEMES and ":" not in user:
            host = parts.netloc  # abfs://container@account: no user, but half of the place
        return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))

    def check(self) -> None:
        """Raise UserError for a URL that will not be read."""
        if self.url.partition("://")[0] not in SCHEMES or "::" in self.url:
            allowed = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise UserError(f"shards are not read from {self}: name a folder, or a URL that begins with {allowed}")

    def cache(self, root_hash: str) -> Path:
        """The folder for the files of one version; two URLs or two versions never share one."""
        place = hashlib.sha256(str(self).encode()).hexdigest()[:16]
        return cache_folder() / f"{place}-{root_hash[:16]}"

    def read(self, name: str) -> bytes:
        """A small file's bytes, always from the URL.

        Raises:
            UserError: it cannot be had.
        """

        def whole() -> bytes:
            with _open(self.file_url(name)) as stream:
                return b"".join(iter(lambda: stream.read(1 << 20), b""))

        return self.retried(name, whole)

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
            with locked(folder / f".{name}.lock") as alone:
                if path.is_file() and _problem(path, sha256 if size is None else None, size):
                    path.unlink()
                if not path.is_file():
                    for left in folder.glob(f"{name}.temp*") if alone else ():  # of a process that was killed
                        left.unlink()
                    self.retried(name, lambda: cache.get_file(f"{_OPENER}:{self.file_url(name)}"))
                    problem = _problem(path, sha256, size)
                    if problem:
                        path.unlink()
                        raise UserError(f"{self}/{name} {problem}: what was fetched has been deleted; check the source")
        except OSError as error:
            raise UserError(f"cannot keep {name} in the cache {folder}: {reason_on_disk(error)}") from error
        return path

    def file_url(self, name: str) -> str:
        """The URL of a file of the folder; no message may show it."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))

    def retried(self, name: str, action: Callable[[], Result]) -> Result:
        """What ``action`` gives; what may pass, such as a broken connection, is tried again."""
        try:
            return retried(action, f"read {self}/{name}")
        except UserError:
            raise
        except Exception as error:  # each of fsspec's file systems raises exceptions of its own
            raise UserError(f"cannot read {self}/{name}: {reason_on_disk(error)}") from error


def cache_folder() -> Path:
    """Where what is fetched is kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "narrowbert")


def filesystem_of(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path there.

    Raises:
        UserError: the package that reads such URLs is not installed.
        ValueError: there is none.
    """
    import fsspec.core

    scheme = url.partition("://")[0]
    web = {name: _web_settings() for name in ("http", "https") if f"{name}://" in url}
    try:
        return fsspec.core.url_to_fs(url, **web)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        remedy = f"pip install 'narrowbert[{extra}]'" if extra else str(error)
        raise UserError(f"reading {scheme}:// needs another package: {remedy}") from error


def open_web(url: str, headers: Mapping[str, str] | None = None) -> Any:
    """The answer to one GET of an http:// or https:// URL as a stream; ``r`` of it has status and headers.

    Raises:
        Exception: whatever fsspec and aiohttp raise.
    """
    filesystem, path = filesystem_of(url)
    # block_size 0 reads the file by one request, for servers that know no ranges; with any size given there is none
    # before it to ask for the size.
    return filesystem.open(path, "rb", block_size=0, size=1, headers={**_IDENTITY, **(headers or {})})


def _web_settings() -> dict[str, Any]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True, "headers": _IDENTITY}}


def _open(url: str) -> IO[bytes] | Any:
    """A stream of the URL's bytes."""
    if url.startswith(("http://", "https://")):
        return open_web(url)
    filesystem, path = filesystem_of(url)
    return filesystem.open(path, "rb")


def reason_on_disk(error: Exception) -> str:
    """``reason``, with what helps where the cache cannot be written."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return f"{error.strerror}; make room, or name another cache folder in the variable {CACHE_VARIABLE}"
    return reason(error)


def _problem(path: Path, sha256: str | None, size: int | None) -> str | None:
    if size is not None and path.stat().st_size != size:
        return f"has {path.stat().st_size} bytes instead of {size}"
    if sha256 is not None:
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                return "has not the sha256 that its manifest gives"
    return None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock among the processes of this machine; False where the file system has none."""
    with path.open("wb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True
