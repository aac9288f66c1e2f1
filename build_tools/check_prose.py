"""Report words that the project's style avoids, with what to write instead.

    python -m build_tools.check_prose [PATH ...]

The words, the exceptions and the default paths are in pyproject.toml, [tool.prose]. Source files are checked in
comments, strings and identifiers, Markdown outside code. Identifiers are split into words: ``image_size`` and
``imageSize`` read as "image size".
"""

from __future__ import annotations

import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
CPP = {".cpp", ".h", ".cu", ".cuh"}
SUFFIXES = {".md", ".py", ".yaml", ".yml", ".html", *CPP}
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class Rules(NamedTuple):
    """``words`` apply to text and identifiers, ``text`` to text only; ``literal`` are the accepted phrases."""

    words: dict[str, str]
    text: dict[str, str]
    literal: list[str]


def settings() -> tuple[list[str], Rules]:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib
    prose = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["prose"]
    return prose["paths"], Rules(prose["words"], prose["text"], prose["literal"])


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def _split(text: str) -> str:
    return CAMEL.sub(" ", text).replace("_", " ")


def _any_of(patterns: list[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(patterns) or '(?!)'})\b", re.IGNORECASE)


def prose_of(path: pathlib.Path, text: str) -> Iterator[tuple[int, str, bool]]:
    """The lines of a file that are checked, with their numbers and whether they are text rather than code."""
    if path.suffix == ".py":
        strings = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME:
                yield token.start[0], token.string, False
            elif token.type == tokenize.COMMENT or token.type in strings:
                for offset, line in enumerate(re.sub(r"``.+?``", _blank, token.string).splitlines()):
                    yield token.start[0] + offset, line, True
        return
    if path.suffix in CPP:
        for number, line in enumerate(text.splitlines(), 1):
            code, _, comment = line.partition("//")
            yield number, code, False
            yield number, comment, True
        return
    if path.suffix == ".md":
        text = re.sub(r"^```.*?^```", _blank, text, flags=re.MULTILINE | re.DOTALL)
        text = re.sub(r"`[^`\n]+`|\]\([^)\n]+\)", _blank, text)
    for number, line in enumerate(text.splitlines(), 1):
        yield number, line, True


def problems(paths: list[str], rules: Rules) -> Iterator[str]:
    everywhere = [(_any_of([word]), instead) for word, instead in rules.words.items()]
    in_text = everywhere + [(_any_of([word]), instead) for word, instead in rules.text.items()]
    literal = _any_of(rules.literal)
    # Most files contain no such word. One search in the whole file is much faster than its tokens.
    suspicious = _any_of([*rules.words, *rules.text])
    for name in paths:
        root = ROOT / name
        files = sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES) if root.is_dir() else [root]
        for file in files:
            content = file.read_text(encoding="utf-8")
            if not suspicious.search(_split(content)):
                continue
            for number, line, is_text in prose_of(file, content):
                words = literal.sub(_blank, _split(line))
                for rule, instead in in_text if is_text else everywhere:
                    for match in rule.finditer(words):
                        yield f"{file.relative_to(ROOT)}:{number}: {match[0]!r}: write {instead}"


def main() -> int:
    paths, rules = settings()
    found = list(problems(sys.argv[1:] or paths, rules))
    print("\n".join(found) if found else "wording: no problems")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
