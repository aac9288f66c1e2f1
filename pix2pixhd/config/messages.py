"""Readable versions of the parser's error messages."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jsonargparse

__all__ = ["as_options", "readable_error"]

# Arguments of the losses in their messages, and the configuration's options.
_ARGUMENTS = tuple(
    (re.compile(pattern), option)
    for pattern, option in (
        (r"(?:VGGLoss|LPIPS)\(((?:vgg|trunk)=['\"][^'\"]*['\"])\)", r"\1"),
        (r"\b(?:vgg|trunk)=['\"]([^'\"]*)['\"]", r"loss.vgg: \1"),
        (r"^(?:vgg|trunk): ", "loss.vgg: "),
        (r"^layers\b", "loss.perceptual_layers"),
        (r"^model_path: ", "loss.lpips_weights: "),
        (r"\bas model_path\. .*", "as loss.lpips_weights."),
        (r", a module, or the path", ", or the path"),
        (r"\bmemory_limit\b", "loss.vgg_memory_limit"),
        (r", or use checkpoint=True", ""),
        (r"use dtype=torch\.bfloat16", "set loss.perceptual_dtype: bfloat16"),
        (r"^in[01] must be (at least \S+) for net='(\w+)'", r"loss.perceptual_network: \2 needs images of \1"),
        (r"^fake must be (at least \S+),", r"loss.perceptual: vgg needs images of \1,"),
        (r"enlarge the images$", "raise data.loadSize or data.fineSize"),
    )
)

# The ways in which jsonargparse reports an unknown option.
_UNKNOWN = (
    re.compile(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<name>[\w.]+)'"),
    re.compile(r"[Kk]ey ['\"](?P<name>[\w.]+)['\"] is not expected"),
    re.compile(r"[Uu]nrecognized arguments: --?(?P<name>[\w.]+)"),
    re.compile(r"[Oo]ption ['\"](?P<name>[\w.]+)['\"] is not accepted"),
)


def readable_error(error: Exception, parser: jsonargparse.ArgumentParser, file: str = "the configuration") -> str:
    """Shortens jsonargparse's message to one line and adds a hint for an unknown option.

    Args:
        error: The exception.
        parser: The parser that raised it.
        file: Name of the configuration file that was read.

    Returns:
        The message, without line breaks.
    """
    text = re.sub(r"\s+", " ", str(error)).strip()
    for pattern in _UNKNOWN:
        if unknown := pattern.search(text):
            name = ".".join(part for part in (unknown.groupdict().get("group"), unknown["name"]) if part)
            return _unknown(name, parser)
    text = text.replace("Problems parsing config", f"{file} is not valid YAML")
    return f"configuration: {_without_types(text)}"


def as_options(text: str) -> str:
    """Replaces Python arguments in a message of the losses by the configuration's options.

    Example:
        >>> as_options('pass its path, VGGLoss(vgg="/path/to/vgg19.pth"), or vgg="random"')
        'pass its path, loss.vgg: /path/to/vgg19.pth, or loss.vgg: random'
    """
    for pattern, option in _ARGUMENTS:
        text = pattern.sub(option, text)
    return text


def _unknown(name: str, parser: jsonargparse.ArgumentParser) -> str:
    from pix2pixhd.config.nvidia_names import hint
    from pix2pixhd.config.schema.trainer import REFUSED

    section, _, option = name.rpartition(".")
    if section == "trainer" and option in REFUSED:
        return f"{name} is not supported: {REFUSED[option]}"
    if not section and (renamed := hint(name)) is not None:
        return f"configuration: there is no option {name}; {renamed}"
    dotted = [action.dest for action in parser._actions if "." in action.dest]
    known = [*sorted({key.split(".")[0] for key in dotted}), *dotted]
    same = [key for key in dotted if not section and key.split(".")[1] == name]
    close = same or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    advice = f"did you mean {close[0]}?" if close else "`pix2pixhd train --help-all` lists the options"
    return f"configuration: there is no option {name}; {advice}"


def _without_types(text: str) -> str:
    """Removes Python's type notation from the parser's message."""
    text = re.sub(r"Parser key \"([\w.]+)\":", r"\1:", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    text = re.sub(r" a typing\.Literal\[([^\]]*)\]", r" one of \1", text)
    if section := re.match(r"(?P<key>\w+): Unable to load config ['\"](?P<value>.*?)['\"]", text):
        return f"{section['key']} is a section, expected options indented below it, got {section['value']!r}"
    union = re.match(
        r"(?P<key>[\w.]+:) Does not validate against any of the Union subtypes Subtypes: \[(?P<types>.*)\] Errors: .*"
        r"Given value: ?(?P<value>.*)",
        text,
    )
    if union:
        types = union["types"].replace("typing.Literal", "one of ").replace("NoneType", "null")
        types = re.sub(r"\blist\[(\w+)\]", r"a list of \1, as [a, b]", types)
        text = f"{union['key']} Expected {types}. Got value: {union['value'] or 'nothing'}"
    number = re.match(
        r"(?P<key>[\w.]+:) Expected .*\. Got value: (?P<value>[-+]?(nan|inf|infinity))$", text, re.IGNORECASE
    )
    if number:
        return f"{number['key']} Expected a finite number. Got value: {number['value']}"
    return text
