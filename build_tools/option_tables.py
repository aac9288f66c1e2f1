"""MkDocs hook: the tables of docs/configuration.md, generated from the dataclasses in ``pix2pixhd/config/schema``.

``python -m build_tools.option_tables`` prints them.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from typing import Any

MARKER = "<!-- options -->"


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value) if value != "" else '""'


def _type(annotation: Any) -> str:
    """The values that an option takes, in the words of YAML."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if arguments and origin is not dict:
        return " or ".join(_type(argument) for argument in arguments if argument is not type(None))
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return names.get(annotation, "mapping")


def _text(text: str) -> str:
    """A docstring's paragraph in one line of Markdown."""
    return re.sub(r"``([^`]+)``", r"`\1`", " ".join(text.split())).replace("|", "\\|")


def table(name: str, section: type[Any]) -> str:
    """The options of one section.

    Raises:
        ValueError: If an option has no entry under the docstring's ``Attributes:``.
    """
    import docstring_parser

    parsed = docstring_parser.parse(section.__doc__ or "", style=docstring_parser.DocstringStyle.GOOGLE)
    documented = {entry.arg_name: entry.description or "" for entry in parsed.params}
    types = typing.get_type_hints(section)
    lines = [f"## {name}", "", _text(parsed.short_description or ""), ""]
    if parsed.long_description:
        lines += [_text(parsed.long_description), ""]
    lines += ["| option | default | values | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(section):
        if not documented.get(field.name):
            raise ValueError(f"{section.__name__}: the docstring has no entry for {field.name} under Attributes:")
        shown = _type(types[field.name])
        lines.append(f"| `{field.name}` | `{_default(field)}` | {shown} | {_text(documented[field.name])} |")
    return "\n".join(lines)


def tables() -> str:
    """All sections, in the order of a configuration file."""
    from pix2pixhd.config.schema import TrainConfig, TrainerOptions

    types = typing.get_type_hints(TrainConfig)
    sections = {field.name: types[field.name] for field in dataclasses.fields(TrainConfig)}
    sections["trainer"] = TrainerOptions
    return "\n\n".join(table(name, section) for name, section in sections.items())


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for every page."""
    return markdown.replace(MARKER, tables()) if MARKER in markdown else markdown


if __name__ == "__main__":
    print(tables())
