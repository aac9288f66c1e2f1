"""Checks of a YAML file with options, before the parser reads it."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import yaml  # type: ignore[import-untyped]

from pix2pixhd.errors import InputError

__all__ = ["check_file"]


def check_file(name: str, sections: Sequence[str]) -> None:
    """Checks that a YAML file holds sections of options, each option once. Syntax errors are left to the parser.

    Args:
        name: The file.
        sections: Names of the sections.

    Raises:
        InputError: If it is not text, is empty, has an option twice, or has something else in place of a section.
    """
    content = _read(name)
    if isinstance(content, yaml.YAMLError):
        return
    names = ", ".join(sections)
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds {content!r:.60}"
        raise InputError(f"--config: {name} {found}; expected a YAML file with some of the sections {names}")
    for section in sections:
        value = content.get(section, {})
        if isinstance(value, str):  # the name of a file with the section
            file = pathlib.Path(name).parent / value
            if file.is_file():
                _read(str(file))
        elif not isinstance(value, dict):
            found = "nothing" if value is None else f"{value!r:.60}"
            raise InputError(
                f"--config: {name}: section {section} must hold options, got {found}; remove it, or write its options "
                "indented below it"
            )


def _read(name: str) -> object:
    """Returns a file's content, or the error of YAML's syntax.

    Raises:
        InputError: If it is not text or has an option twice.
    """
    try:
        text = pathlib.Path(name).read_text(encoding="utf-8")
        repeated = _repeated(yaml.compose(text, yaml.SafeLoader), "", set())
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config: {name} cannot be read ({error}); give a YAML file in UTF-8") from None
    except yaml.YAMLError as error:
        return error
    if repeated is not None:
        key, first, second = repeated
        raise InputError(
            f"--config: {name}: {key} is given twice, in lines {first} and {second}; remove one of them, since YAML "
            "would ignore the first"
        )
    return content


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
