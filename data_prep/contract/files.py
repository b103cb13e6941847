"""Small files that are there whole or not at all, and how many files a process may open."""

import contextlib
import os
import re
import resource
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from data_prep.contract.command_line import UserError

MOST_DESCRIPTORS = 65_536
"""More would serve nobody: the kernel maps no more files into a process, and some programs walk through all of them."""


def write_atomically(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Replace a small file whole: a reader sees the old content or the new, never half.

    Two processes may write the same file at once: the last one to finish wins.

    Args:
        path: the file, in a folder that exists.
        content: text is written as UTF-8.
        durable: return only when content and name are on disk, so that a power cut loses neither.

    Raises:
        OSError: the file cannot be written; the old one is still there.
    """
    temporary = path.with_name(f".tmp-{path.name}.{process_name()}.partial")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        if durable:
            flush_to_disk(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        flush_to_disk(path.parent)


def process_name() -> str:
    """What tells this process from all others that see a shared file system, as a part of a temporary name."""
    return f"{socket.gethostname()}-{os.getpid()}"


@contextlib.contextmanager
def safetensors_written_to(folder: Path) -> Iterator[None]:
    """Let the library write its files into a folder as any other file is written.

    Raises:
        OSError: they cannot be written; the library has an error of its own for that.
    """
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(folder)) from error
    for path in folder.glob("*.safetensors"):
        follow_umask(path)


def follow_umask(path: Path) -> None:
    """Give a file that a library made for its owner alone the permissions of any file that is made beside it.

    safetensors makes its files with mode 0600, whatever the umask: a colleague could not read them.

    Raises:
        OSError: its folder cannot be written, or it is another user's.
    """
    probe = path.with_name(f".tmp-{path.name}.{process_name()}.partial")  # the umask is told only by changing it
    try:
        probe.touch()
        path.chmod(stat.S_IMODE(probe.stat().st_mode))
    finally:
        probe.unlink(missing_ok=True)


def check_writable(name: str, folder: Path) -> None:
    """Whether a folder can be made and written; nothing is left of the attempt.

    Args:
        name: what the folder is to the user.
        folder: it, or where it will be.

    Raises:
        UserError: it cannot.
    """
    existing = folder
    try:  # permission bits do not tell of quotas and of file systems that are read-only
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"{name} {folder} cannot be written: {existing}: {error.strerror}") from error


def is_empty_working_folder(folder: Path) -> bool:
    """Whether a folder that takes this place would leave the user's shell in one that is gone."""
    try:
        return folder.samefile(Path.cwd()) and not any(folder.iterdir())
    except OSError:  # there is none, or none that can be read: who makes it says so
        return False


def create_once(path: Path, content: str) -> bool:
    """Make a small file that is not there yet, durably.

    Returns:
        False where another process, on whichever machine, was first: exactly one makes it.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, content.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    flush_to_disk(path.parent)
    return True


def is_unfinished(path: Path) -> bool:
    """Whether a file is what a process that was killed inside ``write_atomically`` left."""
    return path.name.startswith(".tmp-") and path.name.endswith(".partial")


def flush_to_disk(path: Path) -> None:
    """Return when the content of a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def raise_descriptor_limit() -> None:
    """Let this process and its children open as many files as the system allows; shells start with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
