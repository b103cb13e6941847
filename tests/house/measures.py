"""Measures of the code and the prose: ``python -m tests.house.measures [REPOSITORY]`` prints them.

Each is a number that a stranger's first hour depends on. ``test_measures.py`` holds their limits.
"""

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("data_prep", "pipeline", "cluster")


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the packages."""
    files = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def modules_per_folder(root: Path) -> dict[str, int]:
    """Folder -> number of its modules, ``__init__`` not counted."""
    counts: dict[str, int] = {}
    for path in modules(root).values():
        if path.name != "__init__.py":
            folder = path.parent.relative_to(root).as_posix()
            counts[folder] = counts.get(folder, 0) + 1
    return counts


def long_functions(root: Path, limit: int = 60) -> list[str]:
    """Functions of more than ``limit`` lines, decorators not counted, as ``file:line name lines``."""
    return [
        f"{path.relative_to(root)}:{node.lineno} {node.name} {lines}"
        for path in modules(root).values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > limit
    ]


def import_cycles(root: Path) -> list[list[str]]:
    """Groups of modules that import each other, imports inside functions included, those for types only not."""
    names = modules(root)
    graph = {name: set(_imported(name, path, names)) - {name} for name, path in names.items()}
    return [sorted(group) for group in _strongly_connected(graph) if len(group) > 1]


def _imported(name: str, path: Path, names: dict[str, Path]) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parts, *filter(None, [node.module])])
            for alias in node.names:
                found = f"{module}.{alias.name}" if f"{module}.{alias.name}" in names else module
                if found in names:
                    yield found


def _strongly_connected(graph: dict[str, set[str]]) -> list[set[str]]:
    reached = {name: _reachable(graph, name) for name in graph}
    groups: list[set[str]] = []
    for name in graph:
        if not any(name in group for group in groups):
            groups.append({other for other in reached[name] if name in reached[other]} | {name})
    return groups


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting.extend(new)
    return found


def annotations(root: Path) -> list[str]:
    """Source of every annotation of an argument or a return value, ``self`` and ``cls`` have none."""
    found = []
    for path in modules(root).values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args
                every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg]
                notes = [argument.annotation for argument in [*every, arguments.kwarg] if argument]
                found += [ast.unparse(note) for note in [*notes, node.returns] if note]
    return found


def untyped_share(root: Path) -> float:
    """Share of annotations that say nothing: ``Any`` or ``object``."""
    every = annotations(root)
    return sum(note in ("Any", "object", "typing.Any") for note in every) / len(every)


def files_that_write(root: Path, text: str) -> list[str]:
    """Files of ``pipeline`` that contain a word; of an exported model's code and another model's names none."""
    word = re.compile(rf"\b{re.escape(text)}\b")
    others = ("modeling_narrowbert.py", "configuration_narrowbert.py", "modernbert.py", "forms.py")
    files = [p for p in modules(root).values() if p.relative_to(root).parts[0] == "pipeline" and p.name not in others]
    return [path.relative_to(root).as_posix() for path in files if word.search(path.read_text())]


def prose_files(root: Path) -> list[Path]:
    """The README and the pages of the documentation."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def sentences(path: Path) -> list[list[str]]:
    """Words of each sentence of a Markdown file; code, tables, headings and pictures are no sentences."""
    text = re.sub(r"^---\n.*?\n---\n", "", path.read_text(), flags=re.DOTALL)
    text = re.sub(r"^( *)(```|~~~).*?^\1\2", "\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->|<svg.*?</svg>", "", text, flags=re.DOTALL)
    lines = ["" if re.match(r"\s*(\||#|<|!!!|\?\?\?|===|:::|--8<--)", line) else line for line in text.splitlines()]
    text = re.sub(r"^\s*([-*+]|\d+\.) ", "\n\n", "\n".join(lines), flags=re.MULTILINE)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?])[)*_\"]*\s+(?=[A-Z\"(*_`\[])", " ".join(paragraph.split())):
            words = sentence.split()
            if len(words) > 1:
                found.append(words)
    return found


def sentence_mean(root: Path) -> float:
    """Words per sentence, over the README and all pages."""
    return statistics.mean(len(words) for path in prose_files(root) for words in sentences(path))


def main(root: Path) -> None:
    """Print all measures."""
    folders = modules_per_folder(root)
    widest = max(folders, key=lambda folder: folders[folder])
    print(f"modules per folder, at most: {folders[widest]} ({widest})")
    print(f"import cycles: {len(import_cycles(root))} {import_cycles(root)}")
    print(f"functions over 60 lines: {len(long_functions(root))} {long_functions(root)}")
    print(f"Any or object: {untyped_share(root):.2%} of {len(annotations(root)):,} annotations")
    print(f"words per sentence: {sentence_mean(root):.1f}")
    print(f"lines of the README: {len((root / 'README.md').read_text().splitlines())}")
    print(f"files that write narrow_kv: {len(files_that_write(root, 'narrow_kv'))}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
