"""The files of a corpus: found, told apart by format, fingerprinted and cut into partitions."""

# os.path rather than pathlib here: it answers False where pathlib raises PermissionError.

import dataclasses
import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

from data_prep.config import CorpusConfig, as_tuple, encoding_of_entries
from data_prep.contract.command_line import UserError
from data_prep.contract.remote import filesystem_of, may_pass, reason, retried
from data_prep.corpus.builtin_corpus import BUILTIN
from data_prep.corpus.documents import Compression, CorpusFile, Kind
from data_prep.corpus.raw_files import OBJECT_STORES, is_url, version_of

_KINDS: dict[str, Kind] = {f".{kind}": kind for kind in get_args(Kind) if kind != BUILTIN}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".xz": "xz", ".bz2": "bzip2", ".zstd": "zstd"}
KNOWN_FILES = f"{', '.join(_KINDS)}, plain, {', '.join(_COMPRESSIONS)}"
_ALIASES: dict[str, Kind] = {".wet": "warc", ".htm": "html"}
_NAMED_ONLY = ("html", "json")
"""Kinds that a folder may hold beside its corpus, such as pages about it: read where a file or a glob names them."""


def find_corpus_files(config: CorpusConfig, *, output: str | None = None) -> list[CorpusFile]:
    """The files that ``config.paths`` names, in its order, sorted within each entry, each file once.

    A folder is walked with all folders in it, names that begin with a dot left out; a folder that a glob matches is
    left out (write ``folder/**/*.txt``). So are ``output``, the shard folder that is made, and OUTPUT.partial: what a
    run writes is not what the next one reads.

    Raises:
        UserError: an entry does not exist, matches nothing or cannot be read, a file of an unknown kind is named, a
            file is named twice with different weights or encodings, or a format needs a package that is not installed.
    """
    entries = as_tuple(config.paths) or (BUILTIN,)
    weights = config.weights or (1.0,) * len(entries)
    encodings = encoding_of_entries(config)
    found: dict[str, CorpusFile] = {}
    names: dict[str, int] = {}
    for source, (entry, weight, encoding) in enumerate(zip(entries, weights, encodings, strict=True)):
        entry = entry.removeprefix("file://")
        if entry == BUILTIN:
            expanded = [_Found(path=None, name=BUILTIN)]
        else:
            expanded = _expand_url(entry) if is_url(entry) else _expand_local(entry, output)
        for file in expanded:
            path, name = file.path, file.name
            identity = place_of(path)
            earlier = found.get(identity)
            if earlier is not None:
                if earlier.weight != weight:
                    raise UserError(
                        f"corpus file {path or BUILTIN} is named twice, with weights {earlier.weight:g} and {weight:g}"
                    )
                if earlier.encoding != encoding:
                    raise UserError(
                        f"corpus file {path or BUILTIN} is named twice, with the encodings {earlier.encoding} and "
                        f"{encoding}"
                    )
                continue
            names[name] = names.get(name, 0) + 1
            if names[name] > 1:  # no relative name holds '//', so this one is new
                name = f"{names[name]}//{name}"
            kind, compression = _format(name) or (BUILTIN, None)
            found[identity] = CorpusFile(
                name=name,
                path=path,
                weight=weight,
                kind=kind,
                compression=compression,
                size=file.size,
                source=source,
                version=file.version,
                encoding=encoding,
                errors=config.errors,
            )
    for kind in {file.kind for file in found.values()} & {"warc", "html"}:
        from data_prep.corpus.formats.html_format import require_html

        require_html(kind)
    return list(found.values())


def place_of(path: str | None) -> str:
    """What is the same for all paths of one file."""
    if path is None:
        return BUILTIN
    return path if is_url(path) else os.path.realpath(path)


def _format(name: str) -> tuple[Kind, Compression] | None:
    """Kind and compression as the name's suffixes say; None for files that hold no corpus."""
    stem, suffix = os.path.splitext(name.lower())
    compression = _COMPRESSIONS.get(suffix)
    suffix = os.path.splitext(stem)[1] if compression else suffix
    kind = _KINDS.get(suffix) or _ALIASES.get(suffix)
    return None if kind is None else (kind, compression)


def _in_folder(name: str) -> bool:
    """Whether a file belongs to the corpus that a folder is."""
    found = _format(name)
    return found is not None and found[0] not in _NAMED_ONLY


def _nothing_found(entry: str, names: Iterable[str]) -> UserError:
    """Of an entry that holds no corpus file; ``names`` are those of its files."""
    for name in names:
        if found := _format(name):
            return UserError(
                f"corpus path {entry} holds no corpus file but .{found[0]}, which a folder is not searched for: give a "
                f"glob, such as {entry.rstrip('/')}/**/*.{found[0]}"
            )
    return UserError(f"corpus path {entry} does not exist or matches no corpus file: expected {KNOWN_FILES}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Found:
    """A file of one entry."""

    path: str | None
    name: str
    size: int | None = None
    version: str | None = None


def _expand_local(entry: str, output: str | None) -> list[_Found]:
    """The files of one entry."""
    path = os.path.expanduser(entry)
    if os.path.isdir(path):
        root, found = path, retried(lambda: list(_walk(path, output)), f"read the corpus folder {path}")
    elif os.path.exists(path):
        if _format(path) is None:
            raise UserError(f"corpus file {path} is of an unknown kind: expected {KNOWN_FILES}")
        if not os.path.isfile(path):
            raise UserError(f"corpus file {path} is no regular file")
        root, found = os.path.dirname(path), [path]
    elif glob.has_magic(path):
        parts = Path(path).parts
        root = str(Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))]))
        found = [p for p in glob.glob(path, recursive=True) if not _is_output(os.path.realpath(p), output)]
    else:
        raise UserError(f"corpus path {entry} does not exist{_unreadable_parent(path)}")
    belongs = _in_folder if os.path.isdir(path) else _format
    files = [p for p in found if belongs(p) and _is_file(p)]
    if not files:
        raise _nothing_found(entry, (p for p in found if _is_file(p)))
    for file in files:
        if not os.access(file, os.R_OK):
            raise UserError(f"cannot read the corpus file {file}: permission denied")
    named = (_Found(path=p, name=_printable(Path(os.path.relpath(p, root or ".")).as_posix())) for p in files)
    return sorted(named, key=lambda file: file.name)


def _is_file(path: str) -> bool:
    """As os.path.isfile, which answers False for a disk that fails for a moment: the file would be left out."""
    try:
        return stat.S_ISREG(retried(lambda: os.stat(path), f"look up the corpus file {path}").st_mode)
    except OSError:
        return False


def _unreadable_parent(path: str) -> str:
    """Why a path may seem not to exist."""
    for parent in reversed(Path(path).absolute().parents):
        if parent.is_dir() and not os.access(parent, os.X_OK):
            return f", or {parent} may not be entered"
    return ""


def _is_output(path: str, output: str | None) -> bool:
    """Whether a path without links is below the shard folder that is made, or what is beside it for its making."""
    if not output:
        return False
    folder, name = os.path.split(os.path.realpath(output))
    beside = os.path.relpath(path, folder).split(os.sep)[0]
    return re.fullmatch(rf"{re.escape(name)}(\.partial(\..*)?)?", beside) is not None


def _walk(root: str, output: str | None) -> Iterator[str]:
    """Files below a folder; links to folders are followed, each folder is walked once."""

    def refuse(error: OSError) -> None:
        if may_pass(error):
            raise error
        raise UserError(f"cannot read the corpus folder {error.filename}: {error.strerror}")

    seen = set()
    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if _is_output(real, output):
            seen.add(real)
        subfolders[:] = [] if real in seen else sorted(name for name in subfolders if not name.startswith("."))
        if real not in seen:
            yield from (os.path.join(folder, name) for name in files if not name.startswith("."))
        seen.add(real)


def _printable(name: str) -> str:
    """A file name need not be text; an id must be."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _expand_url(entry: str) -> list[_Found]:
    """The files of one entry that fsspec opens."""
    link, separator, outer = entry.partition("::")
    if not is_url(link):
        link, separator, outer = entry, "", ""
    web = link.startswith("http")
    magic = "*" in link or "[" in link or ("?" in link and not web)
    what = f"look up the corpus path {entry}"
    found: dict[str, dict[str, Any]] = {}
    urls: dict[str, str] = {}
    root = path = ""
    try:
        filesystem, path = filesystem_of(entry)
        filesystem.invalidate_cache()  # another process may have changed what was listed
        root = path[: _without_query(path).rfind("/") + 1]
        if magic:
            root = path[: path.rfind("/", 0, min(place for c in "*[?" if (place := path.find(c)) >= 0)) + 1]
            found = _matching(filesystem, path, root, what, web=web)
        elif web and _format(_without_query(path)):
            found = {path: {}}  # whether it is there is seen when it is read: a server lists nothing of one file
        else:
            found, root = _file_or_folder(filesystem, path, what, root, web=web)
        urls = {path: filesystem.unstrip_protocol(path) for path in found}
    except UserError:
        raise
    except FileNotFoundError:
        pass
    except Exception as error:  # every file system raises its own kinds
        raise UserError(f"cannot {what}: {reason(error)}") from error
    named = [(p, _without_query(p) if web else p, details) for p, details in found.items()]
    if len(named) == 1 and not magic and _format(named[0][1]) is None:
        raise UserError(f"corpus file {entry} is of an unknown kind: expected {KNOWN_FILES}")
    belongs = _format if magic or list(found) == [path] else _in_folder
    files = [
        _Found(
            path=urls[p] + separator + outer,
            name=name.removeprefix(root),
            size=details.get("size"),
            version=version_of(details),
        )
        for p, name, details in named
        if belongs(name)
    ]
    if not files:
        raise _nothing_found(entry, (name for _, name, _ in named))
    return sorted(files, key=lambda file: file.name)


def _without_query(path: str) -> str:
    return path.partition("?")[0]


def _file_or_folder(
    filesystem: Any, path: str, what: str, parent: str, *, web: bool
) -> tuple[dict[str, dict[str, Any]], str]:
    """(path -> details of the file at ``path``, or of all files below it; the folder that they are named from)."""
    if not web:
        details = retried(lambda: filesystem.info(path), what)
        if details["type"] == "file":
            return {path: details}, parent
    folder = path.rstrip("/") + "/"
    found = _below(filesystem, folder, None, what)
    return (found, folder) if found or not web else ({path: {}}, parent)


def _matching(filesystem: Any, pattern: str, root: str, what: str, *, web: bool) -> dict[str, dict[str, Any]]:
    """Path -> details of the files that a glob matches."""
    from fsspec.utils import glob_translate

    depth = None if "**" in pattern else pattern[len(root) :].count("/") + 1
    found = _below(filesystem, root, depth, what)
    matches = re.compile(glob_translate(pattern.replace("?", "[?]") if web else pattern)).match
    return {path: details for path, details in found.items() if matches(_without_query(path) if web else path)}


def _below(filesystem: Any, folder: str, depth: int | None, what: str) -> dict[str, dict[str, Any]]:
    """Path -> details of the files below a folder, at most ``depth`` folders deep.

    fsspec's own walk leaves out, without a word, what it fails to list.
    """
    if depth is None and set(as_tuple(filesystem.protocol)) & set(OBJECT_STORES):  # a few requests for all of it
        return retried(lambda: filesystem.find(folder, detail=True), what)
    found: dict[str, dict[str, Any]] = {}
    seen = set()
    folders = [(folder, 1)]
    while folders:
        current, level = folders.pop()
        if current.rstrip("/") in seen:
            continue
        seen.add(current.rstrip("/"))
        for details in retried(partial(filesystem.ls, current, detail=True), what):
            name = str(details["name"])
            if details["type"] == "file" and name.rstrip("/") not in seen:
                found[name] = details
            elif details["type"] == "directory" and (depth is None or level < depth):
                folders.append((name, level + 1))
    return found
