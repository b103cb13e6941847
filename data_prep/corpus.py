"""Files -> documents: .txt, .jsonl, plain or gzip, and the built-in corpus.

The built-in corpus is English that every Python installation carries: the documentation topics and the
docstrings of the standard library and of the installed packages. Sources are read as text, never imported.
"""

import ast
import glob
import gzip
import hashlib
import json
import os
import re
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.command_line import UserError
from data_prep.config import CorpusConfig

BUILTIN = "builtin"
SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text of the corpus."""

    id: str
    """Stable and independent of where the corpus lies: file name, and line for .jsonl"""
    text: str
    """The text, without byte order mark and with \\n line ends"""
    source: str
    """Name of the file it came from, or 'builtin'"""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file of the corpus, or the built-in corpus."""

    name: str
    """Relative to the folder or the fixed part of the glob that found it; 'builtin'"""
    path: Path | None
    """Where it is; None for the built-in corpus"""


def find_sources(config: CorpusConfig) -> list[Source]:
    """The files that `config.paths` names, in its order, sorted within each entry, each file once.

    Raises:
        UserError: an entry matches nothing, or a file of an unknown kind is named.
    """
    found: dict[Path | None, Source] = {}
    paths = (config.paths,) if isinstance(config.paths, str) else config.paths
    for entry in paths or (BUILTIN,):
        if entry == BUILTIN:
            found.setdefault(None, Source(name=BUILTIN, path=None))
            continue
        for path, name in _expand(entry):
            found.setdefault(path.resolve(), Source(name=name, path=path))
    return list(found.values())


def _expand(entry: str) -> list[tuple[Path, str]]:
    """(file, name) for one entry of `corpus.paths`."""
    path = Path(entry).expanduser()
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"corpus file {path} is of an unknown kind: expected {', '.join(SUFFIXES)}")
        return [(path, path.name)]
    if path.is_dir():
        root, candidates = path, path.rglob("*")
    elif glob.has_magic(entry):
        magic = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
        root = Path(*path.parts[:magic])
        candidates = map(Path, glob.iglob(str(path), recursive=True))
    else:
        raise UserError(f"corpus path {entry} does not exist")
    files = [p for p in candidates if p.name.endswith(SUFFIXES) and p.is_file()]
    if not files:
        raise UserError(f"corpus path {entry} matches no {', '.join(SUFFIXES)} file")
    return sorted(((p, p.relative_to(root).as_posix()) for p in files), key=lambda pair: pair[1])


def read_documents(sources: Iterable[Source], config: CorpusConfig) -> Iterator[Document]:
    """Documents in order; those without text (white space only) are left out.

    Raises:
        UserError: a file cannot be read, is no UTF-8 or no gzip, or a line is not a JSON object with
            a text; names file and line.
    """
    for source in sources:
        if source.path is None:
            yield from builtin_documents(config.builtin_max_bytes)
        elif ".jsonl" in source.path.suffixes:
            yield from _read_jsonl(source, source.path, config.text_field)
        else:
            text = "\n".join(line for _, line in _lines(source.path))
            if text.strip():
                yield Document(id=source.name, text=text, source=source.name)


def fingerprints(sources: Iterable[Source], config: CorpusConfig) -> list[dict[str, Any]]:
    """Name, size in bytes and sha256 of every source.

    Raises:
        UserError: a file cannot be read.
    """
    entries = []
    for source in sources:
        if source.path is None:
            digest, size = hashlib.sha256(), 0
            for document in builtin_documents(config.builtin_max_bytes):
                content = f"{document.id}\n{document.text}\n".encode()
                digest.update(content)
                size += len(content)
            entries.append({"name": source.name, "size": size, "sha256": digest.hexdigest()})
            continue
        try:
            with open(source.path, "rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
                size = os.fstat(stream.fileno()).st_size
        except OSError as error:
            raise UserError(f"cannot read the corpus file {source.path}: {error.strerror}") from error
        entries.append({"name": source.name, "size": size, "sha256": sha256})
    return entries


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a UTF-8 file, plain or gzip."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield number, line.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(f"corpus file {path}, line {number}: not UTF-8 ({error.reason}); convert it") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"corpus file {path}, after line {number}: damaged gzip ({error})") from error
    except OSError as error:
        raise UserError(f"cannot read the corpus file {path}: {error.strerror or error}") from error


def _read_jsonl(source: Source, path: Path, field: str) -> Iterator[Document]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"corpus file {path}, line {number}: not JSON ({error})") from error
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            found = f"its fields are {', '.join(record)}" if isinstance(record, dict) else "it is no object"
            raise UserError(
                f"corpus file {path}, line {number}: no text in field '{field}', {found[:200]}; "
                "name the right one with --corpus.text_field"
            )
        text = _encodable(record[field]).replace("\r\n", "\n")
        if text.strip():
            yield Document(id=f"{source.name}:{number}", text=text, source=source.name)


def _encodable(text: str) -> str:
    """JSON may escape half of a surrogate pair, which no UTF-8 can hold: it becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# --- the built-in corpus -----------------------------------------------------------------------------

PROSE_FIRST = (
    "numpy",
    "scipy",
    "pandas",
    "sklearn",
    "networkx",
    "matplotlib",
    "sqlalchemy",
    "sympy",
    "torch",
    "transformers",
    "mlflow",
)
"""Installed packages with much prose, read before the others"""

_SKIPPED_FOLDERS = {"test", "tests", "site-packages", "__pycache__", "_vendor", "vendored"}
# A docstring follows the colon that ends a class or function head, or opens the file.
_DOCSTRING = re.compile(r'(?:\A(?:[ \t]*(?:#[^\n]*)?\n)*|:[ \t]*\n\s*)([rR]?"""(.{40,}?)""")', re.S)


@lru_cache(maxsize=2)
def builtin_documents(max_bytes: int) -> tuple[Document, ...]:
    """The built-in corpus, one document a module, up to `max_bytes` of UTF-8; needs a few seconds."""
    documents: list[Document] = []
    seen: set[str] = set()
    size = 0
    for name, texts in _builtin_modules():
        paragraphs = []
        for paragraph in (p for text in texts for p in prose(text)):
            if paragraph in seen:
                continue
            seen.add(paragraph)
            paragraphs.append(paragraph)
            size += len(paragraph.encode()) + 1
            if size >= max_bytes:
                break
        if paragraphs:
            documents.append(Document(id=f"{BUILTIN}:{name}", text="\n".join(paragraphs), source=BUILTIN))
        if size >= max_bytes:
            break
    return tuple(documents)


def _builtin_modules() -> Iterator[tuple[str, Iterable[str]]]:
    """(name, texts) of the documentation topics, the standard library and the installed packages."""
    from pydoc_data.topics import topics  # a table of texts and nothing else

    for topic in sorted(topics):
        yield f"topics/{topic}", [topics[topic]]
    standard = Path(sysconfig.get_paths()["stdlib"])
    installed = Path(sysconfig.get_paths()["purelib"])
    folders = sorted(p.name for p in installed.iterdir() if (p / "__init__.py").is_file())
    first = [name for name in PROSE_FIRST if name in folders]
    roots = [standard] + [installed / name for name in first + [f for f in folders if f not in first]]
    for root in roots:
        for path in _python_files(root):
            try:
                source = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):  # not the user's file: nothing to mend
                continue
            yield path.relative_to(root.parent).as_posix(), _docstrings(source)


def _python_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(f for f in subfolders if f not in _SKIPPED_FOLDERS)
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def _docstrings(source: str) -> Iterator[str]:
    """Docstrings found by their place: parsing every file whole would take ten times as long."""
    for match in _DOCSTRING.finditer(source):
        literal, text = match.group(1, 2)
        if "\\" in text and not literal.startswith(("r", "R")):
            try:
                text = ast.literal_eval(literal)
            except (ValueError, SyntaxError):
                continue
        yield text


_MARKER = re.compile(r"\s*(?:[-*+•]|\d+[.)]|:\w[^:]*:|[\w*., \[\]`]{1,40}(?: ?\([^()]*\))? ?:(?= ))\s*")
"""What opens an entry of a list, or a parameter's description"""
_MARKUP = re.compile(r":[\w:]+:`~?([^`<]*)(?:<[^`]*)?`|`{1,2}([^`]*)`{1,2}_?|\*\*([^*]+)\*\*|\*(\w[^*]*)\*")
_SENTENCE = re.compile(r"[\"'(]?[A-Z][^|{}\\<>=\[\]]*[.!?:][\"')]?", re.S)


def prose(text: str) -> list[str]:
    """The paragraphs of a docstring that are English sentences.

    Doctests, code blocks, tables, signatures, headings and lists of names are left out, markup is
    stripped.
    """
    paragraphs = []
    for lines in _paragraphs(text):
        paragraph = " ".join(lines)
        if paragraph.count(" ") < 5:
            continue
        if "`" in paragraph or "*" in paragraph:
            paragraph = _MARKUP.sub(lambda m: m.group(m.lastindex or 0), paragraph)
        if _SENTENCE.fullmatch(paragraph) and _mostly_letters(paragraph):
            paragraphs.append(paragraph)
    return paragraphs


def _mostly_letters(paragraph: str) -> bool:
    letters = sum(map(str.isalpha, paragraph))
    return letters + paragraph.count(" ") >= 0.9 * len(paragraph)


def _paragraphs(text: str) -> Iterator[list[str]]:
    """Stripped lines that belong together: no blank line, no change of indentation between them."""
    current: list[str] = []
    indent = -1  # of the paragraph; -1 after the docstring's first line, whose own says nothing
    block_indent: int | None = None  # lines indented deeper belong to a code block or a directive
    fenced = doctest = False
    for number, line in enumerate(text.expandtabs().split("\n")):
        stripped = line.strip()
        depth = len(line) - len(line.lstrip()) if number else -1
        doctest = bool(stripped) and (doctest or stripped.startswith(">>>"))
        if block_indent is not None and stripped and depth <= block_indent:
            block_indent = None
        fence = stripped.startswith("```")
        fenced ^= fence
        directive = stripped.startswith((".. ", "@"))
        skip = fenced or fence or doctest or block_indent is not None or directive or _is_rule(stripped)
        marker = _MARKER.match(line) if stripped and (stripped[0] in "-*+•:0123456789" or ":" in line) else None
        if current and (skip or marker or not stripped or (depth != indent and indent >= 0)):
            yield current
            current = []
        if block_indent is None and (directive or stripped.endswith("::")):
            block_indent = depth
        if skip or not stripped:
            continue
        content = line[marker.end() :].rstrip() if marker else stripped
        indent = len(line) - len(line[marker.end() :]) if marker else depth
        if content:
            current.append(content.removesuffix(":") if content.endswith("::") else content)
    if current:
        yield current


def _is_rule(stripped: str) -> bool:
    """A heading's underline or a table's border."""
    return len(stripped) > 2 and not stripped.strip("-=~^\"*#+|' ")
