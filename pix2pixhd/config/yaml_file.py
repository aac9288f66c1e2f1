"""Checks of a YAML configuration before the parser reads it, since it may come from somebody else.

The parser imports the modules that ``class_path`` names, and takes text in place of a section for the name of a class
too. A few lines of YAML with aliases can describe more values than fit into memory.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import yaml  # type: ignore[import-untyped]

from pix2pixhd.errors import InputError

__all__ = ["check_config_file"]

# A complete configuration has 5 kB, 100 values and three levels.
_MAX_BYTES = 2**20
_MAX_VALUES = 2_000
_MAX_DEPTH = 20

# Keys with which the parser imports and calls a class.
_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


def _check_text(text: str) -> None:
    """Checks the depth and the number of values as they are written, before nodes are created for them.

    Raises:
        ValueError: If there are too many.
    """
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError(f"it has more than {_MAX_DEPTH} levels")
        if number > 2 * _MAX_VALUES:  # a value has at most two events
            raise ValueError(f"it describes more than {_MAX_VALUES} values")


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Counts the values of a node with all aliases replaced by what they stand for.

    Raises:
        ValueError: If there are too many, or if a node contains itself.
    """
    if id(node) not in counts:
        counts[id(node)] = _MAX_VALUES + 1  # the count of a node that contains itself
        children: list[Any] = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        counts[id(node)] = 1 + sum(_count(child, counts) for child in children)
    if counts[id(node)] > _MAX_VALUES:
        raise ValueError(f"it describes more than {_MAX_VALUES} values")
    return counts[id(node)]


def _refuse_repetitions(name: str, node: yaml.Node) -> None:
    """Refuses an option that is given twice. YAML itself would ignore the first."""
    repeated = _repeated(node, "", set())
    if repeated is not None:
        key, first, second = repeated
        raise InputError(
            f"--config: {name}: {key} is given twice, in lines {first} and {second}; remove one of them, since YAML "
            "would ignore the first"
        )


def _repeated(node: yaml.Node | None, above: str, seen: set[int]) -> tuple[str, int, int] | None:
    """Returns the name and both lines of the first key that a mapping contains twice."""
    if id(node) in seen:  # an alias
        return None
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        return next((found for item in node.value if (found := _repeated(item, above, seen))), None)
    lines: dict[str, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name, line = f"{above}{key.value}", key.start_mark.line + 1
        if name in lines:
            return name, lines[name], line
        lines[name] = line
        if found := _repeated(value, f"{name}.", seen):
            return found
    return None


def _load(name: str) -> object:
    """Reads a YAML file of bounded size.

    Raises:
        InputError: If it cannot be read, is too large or has an option twice.
        yaml.YAMLError: If it is not YAML.
    """
    try:
        with pathlib.Path(name).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config: {name} cannot be read ({error}); give a YAML file in UTF-8") from None
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        _check_text(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _count(node, {})
        content: object = yaml.safe_load(text)
    except ValueError as error:  # too many values, or a number or date that Python cannot represent
        raise InputError(
            f"--config: {name} cannot be read: {error}; give a YAML file with sections of options"
        ) from None
    if node is not None:
        _refuse_repetitions(name, node)
    return content


def check_config_file(name: str, sections: Sequence[str]) -> None:
    """Checks that a YAML file holds sections of options, each option once. YAML's own errors are left to the parser.

    Args:
        name: The file.
        sections: Names of the sections.

    Raises:
        InputError: If it is not text, is empty or too large, has an option twice or something else in place of a
            section, or names a class to import.

    Example:
        >>> check_config_file("missing.yaml", ["data"])
        Traceback (most recent call last):
        pix2pixhd.errors.InputError: --config: missing.yaml cannot be read ([Errno 2] No such file or directory: ...
    """
    try:
        content = _load(name)
    except yaml.YAMLError:
        return
    known = ", ".join(sections)
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds {content!r:.60}"
        raise InputError(f"--config: {name} {found}; expected a YAML file with some of the sections {known}")
    if "config" in content:
        raise InputError(f"--config: {name}: there is no section config; pass each file with --config")
    for section in sections:
        value = content.get(section, {})
        if isinstance(value, str):
            raise InputError(
                f"--config: {name}: {section} is a section, expected options indented below it, got {value!r:.60}"
            )
        if not isinstance(value, dict):
            found = "nothing" if value is None else f"{value!r:.60}"
            raise InputError(
                f"--config: {name}: section {section} must hold options, got {found}; remove it, or write its options "
                "indented below it"
            )
    _refuse_classes(name, content)


def _refuse_classes(name: str, value: object, place: str = "") -> None:
    if isinstance(value, list):
        for item in value:
            _refuse_classes(name, item, place)
    if isinstance(value, dict):
        for key, item in value.items():
            option = f"{place}.{key}" if place else str(key)
            if key in _CLASS_KEYS or str(key).rpartition(".")[2] in _CLASS_KEYS:
                raise InputError(
                    f"--config: {name}: there is no option {option}; a configuration cannot name classes, remove it"
                )
            _refuse_classes(name, item, option)
