"""YAML of a configuration file -> options, which mean the same as if they were given on the command line.

PyYAML reads YAML 1.1: the later of two sections in silence, ``010`` as 8, ``24:00:00`` as 86400, ``no`` as false.
Here a key stands once, numbers are decimal, and what a key takes as text is text as it is written.
"""

import json
import re
import types
import typing
from collections.abc import Collection, Iterator

import yaml

_INT = re.compile(r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F_]+")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_TIME = re.compile(r"[-+]?[0-9]+(?::[0-9]+)+(?:\.[0-9]*)?")
_INT_TAG, _FLOAT_TAG, _NULL_TAG = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "null"))
_MERGE_TAG = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Numbers as YAML 1.2 has them, and no dates."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the class above has it
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag not in (_INT_TAG, _FLOAT_TAG, "tag:yaml.org,2002:timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, 16) if text.startswith("0x") else int(text)


for _tag, _pattern in ((_INT_TAG, _INT), (_FLOAT_TAG, _FLOAT)):
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern.pattern})$"), list("-+.0123456789"))
_Loader.add_constructor(_INT_TAG, _construct_int)


def leaves(content: str, sections: Collection[str], prefix: str = "") -> Iterator[tuple[str, yaml.Node]]:
    """(dotted key, its value) of every key that is no section; an empty section has none.

    Args:
        content: of the file.
        sections: dotted keys that hold other keys.
        prefix: the section that all of it belongs to, with its dot.

    Raises:
        ValueError: no mapping where one must be, or a key that stands twice.
        yaml.YAMLError: no YAML.
    """
    loader = _Loader(content)
    try:
        root = loader.get_single_node()
        if root is None or root.tag == _NULL_TAG:
            return
        lines: dict[str, int] = {}
        for key, node in _leaves(loader, root, prefix, sections):
            line = node.start_mark.line + 1
            if key in lines:
                raise ValueError(f"the key '{key}' stands twice (lines {lines[key]} and {line}): leave one")
            lines[key] = line
            yield key, node
    finally:
        loader.dispose()


def _leaves(
    loader: _Loader, node: yaml.Node, prefix: str, sections: Collection[str]
) -> Iterator[tuple[str, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        where = f"the section '{prefix[:-1]}'" if prefix else "it"
        raise ValueError(f"{where} holds no keys: expected a YAML mapping such as 'model: ...'")
    lines: dict[str, int] = {}
    for key_node, _ in node.value:
        name, line = str(key_node.value), key_node.start_mark.line + 1
        if name in lines and key_node.tag != _MERGE_TAG:
            what = "section" if prefix + name in sections else "key"
            raise ValueError(f"the {what} '{prefix}{name}' stands twice (lines {lines[name]} and {line}): leave one")
        lines[name] = line
    loader.flatten_mapping(node)
    merged = {str(key_node.value): (key_node, value) for key_node, value in node.value}  # own keys come last
    for name, (key_node, value) in merged.items():
        if not isinstance(key_node, yaml.ScalarNode):
            raise ValueError(f"line {key_node.start_mark.line + 1} has a list or a mapping as its key: give a name")
        if prefix + name not in sections:
            yield prefix + name, value
        elif value.tag != _NULL_TAG:
            yield from _leaves(loader, value, f"{prefix}{name}.", sections)


def as_option(node: yaml.Node, hint: object) -> str:
    """A value as it is given to an option.

    Args:
        node: of ``leaves``.
        hint: the type of the field.

    Raises:
        ValueError: nothing where the field must have something, or keys or a list where it takes text.
    """
    if isinstance(node, yaml.ScalarNode):
        if node.tag == _NULL_TAG:
            if type(None) not in _members(hint):
                raise ValueError("has no value (in YAML that is what ~ and null mean): give one, or put it in quotes")
            return "null"
        if _takes_text(hint):
            return node.value
    elif _takes_text(hint) and not (isinstance(node, yaml.SequenceNode) and _takes_texts(hint)):
        what = "a list" if isinstance(node, yaml.SequenceNode) else "keys"
        raise ValueError(f"is {what}: expected text")
    loader = _Loader("")
    try:
        if isinstance(node, yaml.SequenceNode) and _takes_texts(hint):
            return json.dumps([as_option(item, str) for item in node.value], ensure_ascii=False)
        value = loader.construct_object(node, deep=True)
    finally:
        loader.dispose()
    if isinstance(value, str):
        if _TIME.fullmatch(value):
            raise ValueError(f"is {value}: expected a number, not a time")
        return value
    return (
        yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
        .removesuffix("...\n")
        .strip()
    )


def normalised(text: str, hint: object) -> str:
    """The value of an option, with lists and numbers read as in a file.

    Raises:
        ValueError: as in ``as_option``.
    """
    is_list = text.lstrip().startswith("[")
    if _takes_text(hint) and not (is_list and _takes_texts(hint)):
        return text
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return text if node is None or node.tag == _NULL_TAG else as_option(node, hint)
    except (yaml.YAMLError, RecursionError):
        return text  # told by who reads it
    finally:
        loader.dispose()


def _members(hint: object) -> tuple[object, ...]:
    """The types of a union, or the one."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.get_args(hint)
    return (hint,)


def _takes_text(hint: object) -> bool:
    return any(
        member is str or (typing.get_origin(member) is typing.Literal and isinstance(typing.get_args(member)[0], str))
        for member in _members(hint)
    )


def _takes_texts(hint: object) -> bool:
    return any(typing.get_origin(member) is tuple and typing.get_args(member)[0] is str for member in _members(hint))
