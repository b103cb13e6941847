"""Options and the files that ``--config`` names -> options alone, each with a value that means one thing."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from data_prep.contract.shell.paths import expand_path
from data_prep.contract.shell.yaml_files import as_option, leaves, normalised

_PARSER_OPTIONS = {"config", "print_config", "help", "debug"}


class Keys:
    """The keys of a configuration, dotted, which options and files give values to.

    Args:
        cls: the dataclass of the configuration.
        new_names: old key -> its name now.
    """

    def __init__(self, cls: type[Any], new_names: Mapping[str, str]) -> None:
        self._hints = dict(dotted_keys(cls))
        self._sections = {key for key, hint in self._hints.items() if dataclasses.is_dataclass(hint)}
        self._new_names = new_names

    def options(self, argv: Sequence[str]) -> Iterator[str]:
        """``argv`` with the options that its files stand for, and with every value as a file would have it.

        Raises:
            ValueError: a key that is unknown or stands twice, a value that is missing, a file that cannot be read.
        """
        waiting = iter(argv)
        for argument in waiting:
            name, has_value, value = argument.removeprefix("--").partition("=")
            if not argument.startswith("--") or argument == "--":
                yield argument
                continue
            if name != "config" and name not in self._hints:
                if name not in _PARSER_OPTIONS:
                    raise ValueError(f"unknown option --{name}{did_you_mean(name, set(self._hints))}")
                yield argument
                continue
            if not has_value:
                value = next(waiting, "--")
                if value.startswith("--"):
                    raise ValueError(f"--{name} needs a value after it")
            if name == "config":
                yield from self._of_file(value)
            elif name in self._sections:
                yield from self._of_section(name, value)
            else:
                try:
                    yield f"--{name}={normalised(value, self._hints[name])}"
                except ValueError as error:
                    raise ValueError(f"--{name} {error}") from error

    def _of_section(self, name: str, value: str) -> Iterator[str]:
        if value.lstrip().startswith("{"):
            yield from self._of_text(value, f"--{name}", f"{name}.")
        else:
            yield from self._of_file(value, f"{name}.")

    def _of_file(self, name: str, prefix: str = "") -> Iterator[str]:
        """The options of a file that holds all keys, or those of the section ``prefix``."""
        path = Path(expand_path(name))
        try:
            content = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ValueError(f"cannot read the configuration file {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        yield from self._of_text(content, str(path), prefix)

    def _of_text(self, content: str, where: str, prefix: str) -> Iterator[str]:
        try:
            for key, node in leaves(content, self._sections, prefix):
                yield f"--{key}={self._value(key, node)}"
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"{where} is not YAML: {error}") from error
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def _value(self, key: str, node: yaml.Node) -> str:
        if key in self._new_names:
            raise ValueError(f"the key '{key}' is now {self._new_names[key]}")
        if key not in self._hints:
            raise ValueError(f"unknown key '{key}'{did_you_mean(key, set(self._hints))}")
        try:
            return as_option(node, self._hints[key])
        except ValueError as error:
            raise ValueError(f"line {node.start_mark.line + 1}: {key} {error}") from error


def dotted_keys(cls: type[Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, its type) of every field of a dataclass, sections included."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        yield prefix + field.name, hint
        if dataclasses.is_dataclass(hint):
            yield from dotted_keys(hint, f"{prefix}{field.name}.")  # type: ignore[arg-type]


def did_you_mean(wrong: str, known: set[str]) -> str:
    """``", did you mean 'x'?"`` for the nearest of ``known``, or the empty string."""
    near = difflib.get_close_matches(wrong, sorted(known), n=1, cutoff=0.5)
    if not near:  # right leaf in the wrong group: --train_steps for --training.train_steps
        leaf = wrong.rsplit(".", 1)[-1]
        near = [k for k in sorted(known) if k.rsplit(".", 1)[-1] == leaf]
    return f", did you mean '{near[0]}'?" if near else ""
