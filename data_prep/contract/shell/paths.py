"""``~`` and ``$NAME`` in paths, which a shell replaces in some places and not in others.

No shell sees a YAML file, and of ``--option=~/x`` it leaves the ``~``.
"""

import dataclasses
import os
import re
from typing import Any, TypeVar

Config = TypeVar("Config")

PATH = {"path": True}
"""``metadata`` of the fields of a configuration that hold paths."""

_VARIABLE = re.compile(r"\$(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)|\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)\})")


def expand_path(path: str) -> str:
    """A path with ``~``, ``~NAME``, ``$NAME`` and ``${NAME}`` replaced.

    A URL has its variables replaced where they are set. What exists with a ``$`` in its name is taken as it is.

    Raises:
        ValueError: no such user, or a variable that is not set.
    """
    is_url = "://" in path
    if "$" in path and (is_url or not os.path.lexists(path)):
        for found in _VARIABLE.finditer(path):
            if not is_url and (found["name"] or found["braced"]) not in os.environ:
                raise ValueError(f"{path}: the environment variable {found[0]} is not set")
        path = _VARIABLE.sub(lambda found: os.environ.get(found["name"] or found["braced"], found[0]), path)
    if not path.startswith("~"):
        return path
    expanded = os.path.expanduser(path)  # noqa: PTH111 - Path would drop a trailing slash and the second one of a URL
    if expanded == path:
        raise ValueError(f"{path}: there is no home folder of that name; write ./{path} for a file that is called so")
    return expanded


def expand_paths(config: Config, prefix: str = "") -> Config:
    """A configuration with ``expand_path`` in every field that holds a path, or several.

    Raises:
        ValueError: as there, with the field's name.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = expand_paths(value, f"{prefix}{field.name}.")
        elif field.metadata.get("path") and value:
            try:
                changes[field.name] = expand_path(value) if isinstance(value, str) else tuple(map(expand_path, value))
            except ValueError as error:
                raise ValueError(f"{prefix}{field.name} {error}") from error
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]
