"""Writes the reference pages from the code while mkdocs builds the site (``hooks`` in mkdocs.yml).

The commands come from the ``--help`` of the installed programs, configuration from the docstrings of
the fields, metrics and exit codes from their constants, presets from the comments that head them.
"""

import concurrent.futures
import dataclasses
import os
import re
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from cluster.config import ClusterConfig
from data_prep.config import PrepConfig, RemaskConfig
from data_prep.contract.command_line import INTERRUPTED_EXIT_CODE, USER_ERROR_EXIT_CODE, field_docstrings
from pipeline.config import RESUMABLE_CHANGES, SCHEDULE_CHANGES, RunConfig
from pipeline.finetune.config import FinetuneConfig
from pipeline.processes.signals import HANG_EXIT_CODE, REQUEUE_EXIT_CODE
from pipeline.runs.metric_names import METRICS

ROOT = Path(__file__).parents[1]
PROGRAMS = {"narrowbert-prep": "data_prep", "narrowbert": "pipeline", "narrowbert-submit": "cluster"}
CONFIGURATIONS: list[tuple[str, str, type]] = [
    ("Training", "`narrowbert train` and `narrowbert plan`", RunConfig),
    (
        "Preparation",
        "`narrowbert-prep vocab`, `narrowbert-prep shards`, `narrowbert-prep repack` and `narrowbert-prep append`",
        PrepConfig,
    ),
    ("Remasking", "`narrowbert-prep remask`", RemaskConfig),
    ("Fine-tuning", "`narrowbert finetune`", FinetuneConfig),
    (
        "Cluster",
        "`narrowbert-submit train` and `narrowbert-submit prep`: below `cluster.`, or in a file for `--cluster FILE`",
        ClusterConfig,
    ),
]
EXIT_CODES = {
    0: "Done. A finished run that is started again also ends so.",
    1: "Anything else. The traceback is a bug report.",
    USER_ERROR_EXIT_CODE: "A mistake that you can fix. One line on stderr says what it is.",
    REQUEUE_EXIT_CODE: "SIGTERM or SIGUSR1: the run has saved, or still waited for ranks. Start it again to resume.",
    HANG_EXIT_CODE: "The watchdog ended a run that made no progress for `training.hang_timeout` seconds.",
    INTERRUPTED_EXIT_CODE: "Interrupted by Ctrl-C.",
}
GENERATED = "*This page is generated from the code.*\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages (called by mkdocs)."""
    for name, page in PAGES.items():
        files.append(File.generated(config, name, content=page()))
    return files


def commands_page() -> str:
    """Every program and command with what its ``--help`` prints."""
    names = {program: command_names(help_of(module)) for program, module in PROGRAMS.items()}
    calls = [(program, name) for program in PROGRAMS for name in names[program]]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        helps = dict(zip(calls, pool.map(lambda call: help_of(PROGRAMS[call[0]], call[1]), calls), strict=True))
    lines = ["# Commands", GENERATED, "User errors are one line with exit code 2. `--debug` shows the traceback.\n"]
    for program, module in PROGRAMS.items():
        lines += [f"## {program}", _fenced(help_of(module))]
        for name in names[program]:
            lines += [f"### {program} {name}", *_command(program, name, helps[program, name])]
    return "\n".join(lines) + "\n"


def command_names(listing: str) -> list[str]:
    """The commands that a program's ``--help`` lists."""
    return re.findall(r"^  (\w+)  +\S", listing, re.MULTILINE)


def help_of(module: str, *command: str) -> str:
    """What ``python -m MODULE COMMAND --help`` prints."""
    return subprocess.run(
        [sys.executable, "-P", "-m", module, *command, "--help"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "96", "NO_COLOR": "1"},
    ).stdout.strip()


def _command(program: str, name: str, text: str) -> Iterator[str]:
    """A command's help; where it reads a configuration the keys, which have a page of their own, are folded."""
    if "--print_config" not in text:
        yield _fenced(text)
        return
    usage, description, *rest = text.split("\n\n")
    title, _, cls = next(c for c in CONFIGURATIONS if f"`{program}" in c[1] and f" {name}`" in c[1])
    yield f"{_escaped(' '.join(description.split()))}\n"
    base = {"narrowbert-submit train": "Training", "narrowbert-submit prep": "Preparation"}.get(f"{program} {name}")
    links = [f"[{section}](configuration.md#{section.lower()})" for section in (base, title) if section]
    yield f"It takes `--config FILE` and the keys of {' and '.join(links)}.\n"
    sections = {option.split(".")[0] for option in options_of(text) if "." in option}
    shared = {"config", "help", "print_config", *sections, *(field.name for field in dataclasses.fields(cls))}
    if program == "narrowbert-submit":
        shared |= {field.name for known in (RunConfig, PrepConfig) for field in dataclasses.fields(known)}
    explained = options_of(text).items()
    own = [[f"`--{key}`", _escaped(text)] for key, text in explained if "." not in key and key not in shared]
    if own:
        yield "Options of its own:\n"
        yield from _table(["option", "meaning"], own)
    yield '??? note "All options"\n'
    yield "\n".join(f"    {line}" for line in _fenced("\n\n".join([usage, *rest])).splitlines()) + "\n"


def options_of(text: str) -> dict[str, str]:
    """Every long option of a command's help with its explanation."""
    found = {}
    for block in re.split(r"\n(?=  -)|\n\n", text):
        match = re.match(r"  (?:-\w, )?--([\w.]+)[^\n]*?(?:\n {10,}|  +)(.*)", block, re.DOTALL)
        if match:
            found[match[1]] = re.sub(r" ?\(type: .*\)$", "", " ".join(match[2].split()))
    return found


def configuration_page() -> str:
    """Every key: name, type, default, and the docstring of its field."""
    lines = ["# Configuration", GENERATED]
    lines += [
        "Every key can stand in a YAML file or be given as a dotted option, such as `--model.layout 12sf`.",
        "Files and options are read from left to right, and later values win.",
        "`--print_config` prints the result.",
        "`--help` prints the same explanations for one command.",
        "A misspelt key is an error that names the nearest one, and a key that stands twice in a file is one too.",
        "In paths, `~` and variables such as `$HOME` are replaced, in files as in options.",
        "Numbers are decimal, and what is text needs no quotes: `24:00:00` is a time, `no` a name.\n",
    ]
    for title, commands, cls in CONFIGURATIONS:
        lines += [f"## {title}", f"For {commands}.\n"]
        lines += _tables(cls, title, cls is RunConfig)
    return "\n".join(lines) + "\n"


def _tables(cls: type, title: str, is_resumable: bool, prefix: str = "") -> Iterator[str]:
    """One table for the plain fields of ``cls``, then one for each nested section."""
    texts, hints = dict(field_docstrings(cls)), typing.get_type_hints(cls)
    plain = [field for field in dataclasses.fields(cls) if not dataclasses.is_dataclass(hints[field.name])]
    if prefix:
        yield f"### {title}: {prefix.rstrip('.')}"
        yield f"{_escaped(' '.join((cls.__doc__ or '').split()))}\n"
    head = ["key", "type", "default", *(["may change on resume"] if is_resumable else []), "meaning"]
    yield from _table(
        head,
        (
            [
                f"`{prefix}{field.name}`",
                _type_text(hints[field.name]),
                _default(field),
                *([_on_resume(prefix + field.name)] if is_resumable else []),
                _escaped(" ".join(texts.get(field.name, "").split())),
            ]
            for field in plain
        ),
    )
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _tables(hints[field.name], title, is_resumable, f"{prefix}{field.name}.")


def _on_resume(key: str) -> str:
    if key in SCHEDULE_CHANGES:
        return "where no finished step changes its rate"
    return "yes" if key in RESUMABLE_CHANGES else "no"


def _type_text(hint: object) -> str:
    """A type as a user would call it."""
    if hint is types.NoneType:
        return "null"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type_text(argument) for argument in arguments)
    if origin is tuple:
        return f"list of {_type_text(arguments[0])}s"
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return names[hint] if hint in names else str(hint)  # type: ignore[index]


def _default(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None:
        return "null"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, tuple):
        return f"`[{', '.join(map(str, field.default))}]`"
    return f"`{field.default}`" if field.default != "" else "empty"


def metrics_page() -> str:
    """Every metric that a run may log."""
    lines = ["# Metrics", GENERATED]
    lines += [
        "A run writes them to `RUN_DIR/metrics.jsonl` and sends them to MLflow.",
        "[The tracking page](../how-to/tracking-server.md) shows the form of the file.\n",
    ]
    groups = dict.fromkeys(name.split("/")[0] for name in METRICS)
    for group in groups:
        rows = ([f"`{name}`", _escaped(text)] for name, text in METRICS.items() if name.startswith(f"{group}/"))
        lines += [f"## {group}/", *_table(["metric", "meaning"], rows)]
    return "\n".join(lines) + "\n"


def exit_codes_page() -> str:
    """What the exit codes of all programs mean."""
    rows = ([str(code), text] for code, text in sorted(EXIT_CODES.items()))
    return "\n".join(["# Exit codes", GENERATED, *_table(["code", "meaning"], rows)]) + "\n"


def presets_page() -> str:
    """The files below configs/ with the comment that heads each, and their text."""
    lines = [
        "# Presets",
        GENERATED,
        "Each preset is complete, and its head names its source. Those of prep/filters go behind another.\n",
    ]
    for folder in ("pretrain", "prep", "prep/filters", "finetune", "cluster"):
        lines.append(f"## configs/{folder}")
        for path in sorted((ROOT / "configs" / folder).glob("*.yaml")):
            lines += [f"### {path.stem}", '??? note "' + str(path.relative_to(ROOT)) + '"\n']
            text = _fenced(path.read_text(encoding="utf-8").strip(), "yaml")
            lines.insert(len(lines) - 1, f"{_escaped(_heading_comment(path))}\n")
            lines.append("\n".join(f"    {line}" for line in text.splitlines()) + "\n")
    return "\n".join(lines) + "\n"


def _heading_comment(path: Path) -> str:
    """The first sentences of a preset: the comment lines before its first key."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def benchmarks_page() -> str:
    """``benchmarks/README.md``, whose links are relative to its own folder."""
    return (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


def _table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text}\n```\n"


def _escaped(text: str) -> str:
    """Plain text as Markdown: code spans stay, other marks are taken by their letter."""
    text = text.replace("``", "`")
    parts = text.split("`")
    parts[::2] = [re.sub(r"([\\*_<>\[\]|])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [part.replace("|", r"\|") for part in parts[1::2]]
    return "`".join(parts)


PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands_page,
    "reference/configuration.md": configuration_page,
    "reference/presets.md": presets_page,
    "reference/metrics.md": metrics_page,
    "reference/exit-codes.md": exit_codes_page,
    "explanation/benchmarks.md": benchmarks_page,
}
