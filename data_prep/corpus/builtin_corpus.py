"""The built-in corpus: English that every Python installation carries.

It is the documentation topics and the docstrings of the standard library and of the installed packages. Sources are
read as text, never imported.
"""

import ast
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

BUILTIN = "builtin"
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
"""Installed packages with much prose, read before the others."""

_SKIPPED_FOLDERS = {"test", "tests", "site-packages", "__pycache__", "_vendor", "vendored"}

# A docstring follows the colon that ends a class or function head, or opens the file.
_DOCSTRING = re.compile(r'(?:\A(?:[ \t]*(?:#[^\n]*)?\n)*|:[ \t]*\n\s*)([rR]?"""(.{40,}?)""")', re.DOTALL)


@lru_cache(maxsize=2)
def builtin_documents(max_bytes: int) -> tuple[tuple[str, str], ...]:
    """(id, text) of the built-in corpus, one document a module, up to ``max_bytes`` of UTF-8; needs a few seconds."""
    documents: list[tuple[str, str]] = []
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
            documents.append((f"{BUILTIN}:{name}", "\n".join(paragraphs)))
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
            except (OSError, UnicodeDecodeError):  # not the user's file: nothing to fix
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
"""What opens an entry of a list, or a parameter's description."""

_MARKUP = re.compile(r":[\w:]+:`~?([^`<]*)(?:<[^`]*)?`|`{1,2}([^`]*)`{1,2}_?|\*\*([^*]+)\*\*|\*(\w[^*]*)\*")
_SENTENCE = re.compile(r"[\"'(]?[A-Z][^|{}\\<>=\[\]]*[.!?:][\"')]?", re.DOTALL)


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
