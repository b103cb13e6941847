"""How every command of the project reads its configuration and reports a user's mistake.

The configuration of a command is one frozen dataclass, possibly nested. Values come from
``--config FILE.yaml`` (repeatable, the later file wins) and then from dotted options
(``--model.layout 2sf:10sf``). A mistake ends in one line on stderr and exit code 2.
"""

import argparse
import ast
import dataclasses
import importlib.metadata
import inspect
import itertools
import sys
import textwrap
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from data_prep.contract.redaction import redact_urls
from data_prep.contract.shell.options import Keys, did_you_mean
from data_prep.contract.shell.paths import expand_path, expand_paths
from data_prep.contract.shell.streams import (
    ReaderGoneError,
    StreamError,
    flush_or_give_up,
    give_up_output,
    standard_streams,
)

Config = TypeVar("Config")
Part = TypeVar("Part")

USER_ERROR_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as shells report it


class UserError(Exception):
    """Something the user can fix. The message is one line: what, where, how to fix it.

    URLs in it lose their passwords and signatures, whoever raises it: the line goes to logs.
    """

    def __init__(self, message: str, *details: object) -> None:
        super().__init__(redact_urls(message), *details)


def run_command(program: str, main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Call ``main(argv)`` and return the process's exit code.

    A ``UserError`` becomes one line on stderr and exit code 2, and so does a path that is a folder in place of a file,
    a file in place of a folder, or closed to this user. With ``--debug`` anywhere in ``argv`` it is raised on instead,
    for its traceback. Anything else that is raised is a bug of ours and keeps its traceback.
    """
    debug = "--debug" in argv
    try:
        Path.cwd()
    except OSError:  # libraries fail without one, each in its way
        return report_user_error(program, UserError("the folder that you stand in is gone: cd to another one"))
    with standard_streams():
        try:
            return _run_and_flush(main, [a for a in argv if a != "--debug"])
        except StreamError as error:
            give_up_output()
            return report_user_error(program, error)
        except UserError as error:
            flush_or_give_up()
            if debug:
                raise
            return report_user_error(program, error)
        except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
            flush_or_give_up()
            if debug or error.filename is None:
                raise
            return report_user_error(program, _not_what_belongs_there(error))
        except KeyboardInterrupt:
            return INTERRUPTED_EXIT_CODE
        except ReaderGoneError:  # not an error
            give_up_output()
            return 0


def _not_what_belongs_there(error: OSError) -> UserError:
    return UserError(f"{error.filename}: {error.strerror}; put there what belongs there, or give another path")


def _run_and_flush(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Where the output is lost is known here, not while the interpreter ends."""
    try:
        code = main(argv) or 0
    except SystemExit:  # after --help
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


def report_user_error(program: str, error: UserError | StreamError) -> int:
    """Print the one line and return the exit code that goes with it."""
    print(f"{program}: error: {redact_urls(one_line(str(error)))}", file=sys.stderr, flush=True)
    return USER_ERROR_EXIT_CODE


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are ``UserError``s."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def choose_command(program: str, description: str, commands: Mapping[str, str], argv: Sequence[str]) -> str:
    """The command's name, ``argv[0]``; exits 0 after ``--help``, the list of commands, and ``--version``.

    Raises:
        UserError: no command, or one that does not exist.
    """
    if argv and argv[0] in ("-h", "--help"):
        width = max(map(len, commands))
        listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in commands.items())
        print(f"usage: {program} COMMAND ...\n\n{description}\n\n{listing}\n\n{program} COMMAND --help tells more.")
        raise SystemExit(0)
    if argv and argv[0] == "--version":
        print(f"{program} {importlib.metadata.version('narrowbert')}")
        raise SystemExit(0)
    if not argv or argv[0] not in commands:
        what = f"unknown command '{argv[0]}'{did_you_mean(argv[0], set(commands))}" if argv else "no command given"
        raise UserError(f"{what}; the commands are {', '.join(commands)} (see {program} --help)")
    return argv[0]


def refuse_old_options(argv: Sequence[str], new_names: Mapping[str, str]) -> None:
    """Name what has taken the place of an option.

    Args:
        argv: the command's arguments.
        new_names: old option, such as ``--output_dir`` -> what to write now.

    Raises:
        UserError: one of the old options is there.
    """
    for argument in argv:
        option = argument.split("=", 1)[0]
        if option in new_names:
            raise UserError(f"{option} is now {new_names[option]}")


def part_of(cls: type[Part], arguments: object) -> Part:
    """The fields of ``arguments`` that belong to the dataclass ``cls``."""
    return cls(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(cls)})  # type: ignore[arg-type]


def one_line(message: str) -> str:
    """Fold a message of several lines into one."""
    return " ".join(message.split())


def read_config(
    cls: type[Config],
    argv: Sequence[str],
    program: str,
    description: str,
    new_names: Mapping[str, str] = types.MappingProxyType({}),
) -> Config:
    """Build ``cls`` from ``--config`` files and dotted options.

    Args:
        cls: a dataclass; its fields are the keys.
        argv: the command's arguments.
        program: name of the command, for its help.
        description: a sentence, for its help.
        new_names: old key -> its name now, for one line where a file has the old one.

    Raises:
        UserError: unknown or misspelt keys (naming the nearest key), values of the wrong type,
            missing required keys, unreadable files.
    """
    from jsonargparse import ArgumentParser, Namespace

    try:
        argv = list(Keys(cls, new_names).options(argv))
    except ValueError as error:
        raise UserError(one_line(str(error))) from error
    description += " A mistake is one line and exit code 2; --debug shows its traceback instead."
    parser = ArgumentParser(prog=program, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file; may be given several times")
    parser.add_class_arguments(cls)
    _describe_options(parser, cls)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = parser.instantiate(parser.parse_args(argv))
    except UserError:
        raise
    except Exception as error:  # jsonargparse raises several types, all about the user's input
        raise UserError(one_line(str(error)).replace("Parser key ", "option ")) from error
    assert isinstance(parsed, Namespace)
    try:
        return expand_paths(part_of(cls, parsed))
    except ValueError as error:
        raise UserError(str(error)) from error


def _describe_options(parser: argparse.ArgumentParser, cls: type[Any]) -> None:
    """Give every option the docstring of its field as help text."""
    texts = dict(field_docstrings(cls))
    for action in parser._actions:
        text = texts.get(action.dest)
        if text is not None:
            action.help = " ".join(text.split()).replace("``", "`")
    for group in parser._action_groups:
        if (group.title or "").startswith("<class "):
            first = group._group_actions[0].dest
            is_nested = f"--{first}." in "".join(o for a in group._group_actions[1:] for o in a.option_strings)
            title = texts.get(first) if is_nested else cls.__doc__
            group.title = " ".join((title or cls.__name__).split()).rstrip(".")


def field_docstrings(cls: type[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, the string that stands below the field in the source), inherited fields included."""
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            yield from _own_field_docstrings(base, prefix)


def _own_field_docstrings(cls: type[Any], prefix: str) -> Iterator[tuple[str, str]]:
    hints = get_type_hints(cls)
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    for statement, following in itertools.pairwise(body.body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        name = statement.target.id
        match following:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield prefix + name, text
        if dataclasses.is_dataclass(hints[name]):
            yield from field_docstrings(hints[name], f"{prefix}{name}.")  # type: ignore[arg-type]


def path_argument(text: str) -> Path:
    """``type`` of an argument that is a path: ``~`` and variables in it are replaced.

    Raises:
        UserError: there is no such user or variable.
    """
    return Path(path_or_url_argument(text))


def path_or_url_argument(text: str) -> str:
    """The same where a URL will do, whose slashes stay."""
    try:
        return expand_path(text)
    except ValueError as error:
        raise UserError(str(error)) from error


def config_as_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain lists, dictionaries and scalars, ready for YAML or JSON."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return config_as_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
