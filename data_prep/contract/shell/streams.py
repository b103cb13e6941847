"""The standard streams of a command: they may be closed, full, or of an encoding that lacks letters."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO


class StreamError(Exception):
    """A standard stream takes or gives nothing; the message is one line."""


class ReaderGoneError(BrokenPipeError):
    """Who read our output (head, less) has gone; a lost connection is another ``BrokenPipeError``."""


class _Output(io.TextIOWrapper):
    """Standard output that says what it is when it can take no more."""

    def write(self, text: str, /) -> int:
        with _named():
            return super().write(text)

    def flush(self) -> None:
        with _named():
            super().flush()


class _Notes(io.TextIOWrapper):
    """Standard error: what cannot be told is no reason to end."""

    def write(self, text: str, /) -> int:
        with contextlib.suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


@contextlib.contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGoneError(*error.args) from error
    except OSError as error:
        raise StreamError(f"cannot write standard output ({error.strerror}): send it to where there is room") from error


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Inside, a closed stream is the null device, and a letter that the encoding lacks is written as its number.

    Streams that are not the process's own, as a test has them, stay.
    """
    before = sys.stdout, sys.stderr
    _plug_closed_descriptors()
    try:
        if before[0] is sys.__stdout__:  # both are None where it is closed
            sys.stdout = _wrapped(_Output, sys.__stdout__)
        if before[1] is sys.__stderr__:
            sys.stderr = _wrapped(_Notes, sys.__stderr__)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Output | _Notes):
                with contextlib.suppress(StreamError, ReaderGoneError):
                    stream.detach()  # else its end would close what the interpreter still writes to
        sys.stdout, sys.stderr = before


def _plug_closed_descriptors() -> None:
    """Else the next file that is opened would be the standard output, and be written to as such."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free


def _wrapped(wrapper: type[io.TextIOWrapper], stream: TextIO | None) -> TextIO:
    if stream is None:
        return wrapper(Path(os.devnull).open("wb"), encoding="utf-8", errors="backslashreplace")
    is_terminal = stream.isatty()
    # write_through: what the wrapper kept to itself would be lost to whoever writes to the stream below.
    return wrapper(
        stream.buffer,
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=is_terminal or wrapper is _Notes,
        write_through=True,
    )


def give_up_output() -> None:
    """Send what standard output still holds, and what follows, to nowhere."""
    if sys.__stdout__ is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())


def flush_or_give_up() -> None:
    """For a command whose output is told elsewhere too: a full disk under its standard output is no failure."""
    try:
        sys.stdout.flush()
    except (StreamError, ReaderGoneError):
        give_up_output()


def lines_and_output() -> tuple[BinaryIO, TextIO]:
    """Standard input as bytes and standard output as UTF-8, for a command that reads one and writes the other.

    Raises:
        StreamError: one of them is closed.
    """
    for name, stream in (("input", sys.__stdin__), ("output", sys.__stdout__)):
        if stream is None:
            raise StreamError(f"standard {name} is closed: give a file or a pipe")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    return sys.stdin.buffer, sys.stdout
