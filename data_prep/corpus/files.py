"""The files of a corpus: found, told apart by format, fingerprinted and cut into partitions."""

# os.path rather than pathlib here: it answers False where pathlib raises PermissionError.

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from data_prep.config import CorpusConfig, as_tuple
from data_prep.contract.command_line import UserError
from data_prep.corpus.builtin_corpus import BUILTIN
from data_prep.corpus.documents import Compression, CorpusFile, Kind
from data_prep.corpus.streams import is_url

_KINDS: dict[str, Kind] = {f".{kind}": kind for kind in get_args(Kind) if kind != BUILTIN}
KNOWN_FILES = f"{', '.join(_KINDS)}, plain, .gz or .zst"
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}


def find_corpus_files(config: CorpusConfig) -> list[CorpusFile]:
    """The files that ``config.paths`` names, in its order, sorted within each entry, each file once.

    A folder is walked with all folders in it, names that begin with a dot left out; a folder that a glob matches is
    left out (write ``folder/**/*.txt``).

    Raises:
        UserError: an entry does not exist, matches nothing or cannot be read, a file of an unknown kind is named, a
            file is named twice with different weights, or a format needs a package that is not installed.
    """
    entries = as_tuple(config.paths) or (BUILTIN,)
    weights = config.weights or (1.0,) * len(entries)
    found: dict[str, CorpusFile] = {}
    names: dict[str, int] = {}
    for entry, weight in zip(entries, weights, strict=True):
        expand = _builtin_entry if entry == BUILTIN else _expand_url if is_url(entry) else _expand_local
        for path, name in expand(entry):
            identity = path if path is None or is_url(path) else os.path.realpath(path)
            earlier = found.get(identity or BUILTIN)
            if earlier is not None:
                if earlier.weight != weight:
                    raise UserError(
                        f"corpus file {path or BUILTIN} is named twice, with weights {earlier.weight:g} and {weight:g}"
                    )
                continue
            names[name] = names.get(name, 0) + 1
            if names[name] > 1:  # no relative name holds '//', so this one is new
                name = f"{names[name]}//{name}"
            kind, compression = _format(name) or (BUILTIN, None)
            found[identity or BUILTIN] = CorpusFile(
                name=name, path=path, weight=weight, kind=kind, compression=compression
            )
    if any(file.kind == "warc" for file in found.values()):
        from data_prep.corpus.formats.warc_format import require_warc

        require_warc()
    return list(found.values())


def _format(name: str) -> tuple[Kind, Compression] | None:
    """Kind and compression as the name's suffixes say; None for files that hold no corpus."""
    stem, suffix = os.path.splitext(name.lower())
    compression = _COMPRESSIONS.get(suffix)
    kind = _KINDS.get(os.path.splitext(stem)[1] if compression else suffix)
    return None if kind is None else (kind, compression)


def _builtin_entry(_: str) -> list[tuple[None, str]]:
    return [(None, BUILTIN)]


def _expand_local(entry: str) -> list[tuple[str, str]]:
    """(path, name) of the files of one entry."""
    path = os.path.expanduser(entry)
    if os.path.isdir(path):
        root, found = path, list(_walk(path))
    elif os.path.exists(path):
        if _format(path) is None:
            raise UserError(f"corpus file {path} is of an unknown kind: expected {KNOWN_FILES}")
        if not os.path.isfile(path):
            raise UserError(f"corpus file {path} is no regular file")
        root, found = os.path.dirname(path), [path]
    elif glob.has_magic(path):
        parts = Path(path).parts
        root = str(Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))]))
        found = glob.glob(path, recursive=True)
    else:
        raise UserError(f"corpus path {entry} does not exist{_unreadable_parent(path)}")
    files = [p for p in found if _format(p) and os.path.isfile(p)]
    if not files:
        raise UserError(f"corpus path {entry} matches no readable corpus file: expected {KNOWN_FILES}")
    for file in files:
        if not os.access(file, os.R_OK):
            raise UserError(f"cannot read the corpus file {file}: permission denied")
    named = ((p, _printable(Path(os.path.relpath(p, root or ".")).as_posix())) for p in files)
    return sorted(named, key=lambda pair: pair[1])


def _unreadable_parent(path: str) -> str:
    """Why a path may seem not to exist."""
    for parent in reversed(Path(path).absolute().parents):
        if parent.is_dir() and not os.access(parent, os.X_OK):
            return f", or {parent} may not be entered"
    return ""


def _walk(root: str) -> Iterator[str]:
    """Files below a folder; links to folders are followed, each folder is walked once."""

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read the corpus folder {error.filename}: {error.strerror}")

    seen = set()
    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(name for name in subfolders if not name.startswith("."))
        if real not in seen:
            yield from (os.path.join(folder, name) for name in files if not name.startswith("."))
        seen.add(real)


def _printable(name: str) -> str:
    """A file name need not be text; an id must be."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _expand_url(entry: str) -> list[tuple[str, str]]:
    """(URL, name) of the files of one entry that fsspec opens."""
    import fsspec.core

    link, separator, outer = entry.partition("::")
    query_is_magic = not link.startswith("http")
    magic = "*" in link or "[" in link or (query_is_magic and "?" in link)
    try:
        if not is_url(link):
            link, separator, outer = entry, "", ""
        filesystem, path = fsspec.core.url_to_fs(entry)
        if magic:
            found = [p for p, info in filesystem.glob(path, detail=True).items() if info["type"] == "file"]
            fixed = path[: min(path.find(c) for c in "*[?" if c in path)]
            root = fixed[: fixed.rfind("/") + 1]
        elif filesystem.isfile(path):
            found, root = [path], path[: path.split("?")[0].rfind("/") + 1]
        else:
            found, root = filesystem.find(path), path.rstrip("/") + "/"
        urls = [(filesystem.unstrip_protocol(p) + separator + outer, p) for p in map(str, found)]
    except UserError:
        raise
    except Exception as error:  # every file system raises its own kinds
        raise UserError(f"cannot look up the corpus path {entry}: {type(error).__name__}: {error}") from error
    named = [(url, p.split("?")[0] if link.startswith("http") else p) for url, p in urls]
    named = [(url, name.removeprefix(root)) for url, name in named]
    if len(found) == 1 and not magic and _format(named[0][1]) is None:
        raise UserError(f"corpus file {entry} is of an unknown kind: expected {KNOWN_FILES}")
    files = sorted(((url, name) for url, name in named if _format(name)), key=lambda pair: pair[1])
    if not files:
        raise UserError(f"corpus path {entry} does not exist or matches no corpus file: expected {KNOWN_FILES}")
    return files
