"""The bytes of a corpus file, wherever it is.

They are fetched in windows. What fails for a reason that may pass is tried again from the byte that was reached, and a
file that has become another one by then is refused: nothing is lost and nothing mixed.
"""

import abc
import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from data_prep.contract.command_line import UserError
from data_prep.contract.remote import filesystem_of, open_web, reason, retried
from data_prep.corpus.documents import CorpusFile

SMALLEST_WINDOW = 1 << 20
LARGEST_WINDOW = 1 << 24
"""Of a file behind a URL; a file of this machine has windows of the smallest size."""

OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")
_VERSION_KEYS = ("ETag", "etag", "generation", "LastModified", "last_modified", "modified", "mtime")


def is_url(path: str) -> bool:
    """Whether fsspec opens it."""
    return "://" in path


def version_of(details: dict[str, Any]) -> str | None:
    """What a listing of fsspec has to tell a file from a later one at the same place."""
    return next((str(details[key]) for key in _VERSION_KEYS if details.get(key)), None)


@contextlib.contextmanager
def user_errors(path: str) -> Iterator[None]:
    """Whatever goes wrong with a file becomes a UserError: a failing disk or network is not the corpus's content."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read the corpus file {path}: {reason(error)}") from error
    except Exception as error:
        if not is_url(path):
            raise
        # Every remote file system raises its own kinds.
        raise UserError(f"cannot read the corpus file {path}: {reason(error)}") from error


def open_raw(file: CorpusFile) -> BinaryIO:
    """The file's own bytes. ``seekable()`` says whether reading elsewhere is cheap; a server may not know how.

    Reading raises RetriesExhausted after faults that did not pass, and UserError for those that would not, and for a
    file that has changed since its first byte was read.
    """
    assert file.path is not None
    kind = _Local if not is_url(file.path) else _Web if file.path.startswith(("http://", "https://")) else _Stored
    return io.BufferedReader(_Windows(kind(file), file.path))


def web_version(raw: BinaryIO) -> str | None:
    """The ETag or time of change that a web server gave with what was read of its file, if it gave one."""
    source = getattr(getattr(raw, "raw", None), "source", None)
    return source.version if isinstance(source, _Web) else None


class _Source(abc.ABC):
    """Where the bytes of one file come from."""

    largest_window = LARGEST_WINDOW

    def __init__(self, file: CorpusFile) -> None:
        assert file.path is not None
        self.path = file.path
        self.size = file.size
        """Bytes of the file, once known."""
        self.enters_anywhere: bool | None = None
        """Whether bytes can be fetched without those before them; None until the first were fetched."""
        self.version: str | None = None
        """What tells it from a later one at the same place, once known."""

    @abc.abstractmethod
    def fetch(self, begin: int, end: int) -> bytes:
        """Some of the bytes from ``begin`` to ``end``, at least one; none at the end of the file."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of what is open; ``fetch`` opens it again."""

    def _check_version(self, size: int | None, version: str | None) -> None:
        """Keep size and version of what was opened first, and refuse another."""
        for known, found in ((self.size, size), (self.version, version)):
            if known is not None and found is not None and known != found:
                raise self._changed()
        self.size = size if self.size is None else self.size
        self.version = self.version or version

    def _changed(self) -> UserError:
        return UserError(f"corpus file {self.path} has changed since it was opened: start again when it is complete")


class _Local(_Source):
    """A file of this machine, or of a file system that it shares."""

    largest_window = SMALLEST_WINDOW

    def __init__(self, file: CorpusFile) -> None:
        super().__init__(file)
        self.enters_anywhere = True
        self._descriptor: int | None = None

    def fetch(self, begin: int, end: int) -> bytes:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self._descriptor)
            self._check_version(status.st_size, str(status.st_mtime_ns))
        return os.pread(self._descriptor, end - begin, begin)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class _Forward(_Source):
    """A file that may have to be read from its beginning: what stands before ``begin`` is read and dropped then."""

    def __init__(self, file: CorpusFile) -> None:
        super().__init__(file)
        self._handle: Any = None
        self._at = 0

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            with contextlib.suppress(Exception):  # of a connection that is broken already
                handle.close()

    def _read_on(self, begin: int, end: int) -> bytes:
        while self._at < begin:
            if not self._read(min(begin - self._at, SMALLEST_WINDOW)):
                return b""
        return self._read(end - begin)

    def _read(self, size: int) -> bytes:
        block = self._handle.read(size)
        self._at += len(block)
        return block


class _Web(_Forward):
    """A file of a web server: by ranges where it knows them, else as one stream."""

    def __init__(self, file: CorpusFile) -> None:
        super().__init__(file)
        self.version = file.version

    def fetch(self, begin: int, end: int) -> bytes:
        if self._handle is not None and self._at <= begin:
            return self._read_on(begin, end)
        self.close()
        self._handle, self._at = self._get(begin, end), 0
        if self._handle is None:
            return b""
        answer = self._handle.r
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if answer.status != 206:
            self.enters_anywhere = False
            encoded = answer.headers.get("Content-Encoding", "identity") != "identity"
            self._check_version(None if encoded else answer.content_length, version)
            return self._read_on(begin, end)
        first, size = _content_range(answer.headers)
        if first != begin:
            raise EOFError(f"the server sends byte {first} when it is asked for byte {begin}")
        self.enters_anywhere = size is not None
        self._check_version(size, version)
        content = b"".join(iter(lambda: self._handle.read(SMALLEST_WINDOW), b""))
        self.close()
        return content

    def _get(self, begin: int, end: int) -> Any:
        """The answer; None where nothing stands at ``begin`` or behind it."""
        try:
            return open_web(self.path, {"Range": f"bytes={begin}-{end - 1}"})
        except Exception as error:
            if getattr(error, "status", None) != 416:
                raise
        if begin == 0:  # an empty file has no range at all
            return open_web(self.path)
        if self.size is not None and begin < self.size:
            raise self._changed()
        return None


def _content_range(headers: Any) -> tuple[int | None, int | None]:
    """(first byte, bytes of the whole file) of an answer to a range, as far as it says them."""
    span, _, size = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    return int(first) if first.isdecimal() else None, int(size) if size.isdecimal() else None


class _Stored(_Forward):
    """A file that one of fsspec's file systems opens."""

    def __init__(self, file: CorpusFile) -> None:
        super().__init__(file)
        self._listed_version = file.version
        self._opened_before = False
        self._filesystem: Any = None

    def fetch(self, begin: int, end: int) -> bytes:
        if self._handle is not None and self._at > begin and not self.enters_anywhere:
            self.close()
        if self._handle is None:
            self._handle, self._at = self._open(), 0
            self.enters_anywhere = _size_of(self._handle) is not None and self._handle.seekable()
        if self.enters_anywhere and self._at != begin:
            self._handle.seek(begin)
            self._at = begin
        try:
            return self._read_on(begin, end)
        except Exception as error:
            if type(error).__name__ == "FileExpired":  # of s3fs, where the object is no longer that of the listing
                raise self._changed() from error
            raise

    def _open(self) -> Any:
        filesystem, path = filesystem_of(self.path)
        self._filesystem = filesystem  # that of an archive closes it when nobody holds it
        scheme = self.path.partition("://")[0]
        if scheme in ("s3", "s3a") and self.size is not None and self._listed_version is not None:
            return self._open_listed(filesystem, path)
        if self._opened_before:  # so that it is asked what is there now
            filesystem.invalidate_cache()
        self._opened_before = True
        handle = filesystem.open(path, "rb", **({"cache_type": "none"} if scheme in OBJECT_STORES else {}))
        details = getattr(handle, "details", None)
        self._check_version(_size_of(handle), version_of(details) if isinstance(details, dict) else None)
        return handle

    def _open_listed(self, filesystem: Any, path: str) -> Any:
        """An object of S3, without the request that would ask again what the listing has said."""
        handle = filesystem.open(path, "rb", size=self.size, cache_type="none")
        handle.details = {"name": path, "size": self.size, "type": "file", "ETag": self._listed_version}
        name = "read_kw" if hasattr(handle, "read_kw") else "req_kw"  # of older versions of s3fs
        setattr(handle, name, {**getattr(handle, name), "IfMatch": self._listed_version})
        return handle


def _size_of(handle: Any) -> int | None:
    size = getattr(handle, "size", None)
    return size if isinstance(size, int) else None


class _Windows(io.RawIOBase):
    """A source as a file object."""

    def __init__(self, source: _Source, path: str) -> None:
        super().__init__()
        self.source = source
        self._path = path
        self._position = 0
        self._window = memoryview(b"")
        self._begin = 0
        """Byte of the file that the window begins with."""
        self._length = SMALLEST_WINDOW
        """Of the window that is fetched next."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        if self.source.enters_anywhere is None:
            self._fetch()
        return bool(self.source.enters_anywhere)

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            if self.source.size is None:
                self._fetch()
            assert self.source.size is not None, "what can be entered anywhere has a size"
            offset += self.source.size
        self._position = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        if not self._begin <= self._position < self._begin + len(self._window):
            self._fetch()
        begin = self._position - self._begin
        part = self._window[begin : begin + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _fetch(self) -> None:
        """Fetch the window that begins where reading is; windows in a row grow."""
        in_a_row = len(self._window) > 0 and self._position == self._begin + len(self._window)
        self._length = min(4 * self._length, self.source.largest_window) if in_a_row else SMALLEST_WINDOW
        with user_errors(self._path):
            content = retried(self._attempt, f"read the corpus file {self._path}")
        self._window, self._begin = memoryview(content), self._position

    def _attempt(self) -> bytes:
        size = self.source.size
        if size is not None and self._position >= size and isinstance(self.source, _Forward):
            return b""
        try:
            content = self.source.fetch(self._position, self._position + self._length)
            size = self.source.size
            if not content and size is not None and self._position < size:
                raise EOFError(f"it ends at byte {self._position} of {size}")
        except BaseException:
            self.source.close()
            raise
        return content

    def close(self) -> None:
        if not self.closed:
            self.source.close()
        super().close()
