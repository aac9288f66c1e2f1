"""Report words that the project's style avoids, with what to write instead.

    python -m build_tools.check_prose [PATH ...]

The words and the default paths are in pyproject.toml, [tool.prose]. Python files are checked in comments and strings,
Markdown outside code.
"""

from __future__ import annotations

import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
SUFFIXES = {".md", ".py", ".cpp", ".h", ".cu", ".cuh", ".yaml", ".yml", ".html"}


def settings() -> tuple[list[str], dict[str, str]]:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib
    prose = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["prose"]
    return prose["paths"], prose["words"]


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def prose_of(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are text, with their numbers."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = re.sub(r"^```.*?^```", _blank, text, flags=re.MULTILINE | re.DOTALL)
        text = re.sub(r"`[^`\n]+`|\]\([^)\n]+\)", _blank, text)
    elif path.suffix == ".py":
        kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in kinds:
                for offset, line in enumerate(re.sub(r"``.+?``", _blank, token.string).splitlines()):
                    yield token.start[0] + offset, line
        return
    elif path.suffix in {".cpp", ".h", ".cu", ".cuh"}:
        for number, line in enumerate(text.splitlines(), 1):
            yield number, line.partition("//")[2]
        return
    yield from enumerate(text.splitlines(), 1)


def problems(paths: list[str], words: dict[str, str]) -> Iterator[str]:
    rules = [(re.compile(rf"\b(?:{word})\b", re.IGNORECASE), instead) for word, instead in words.items()]
    for name in paths:
        root = ROOT / name
        files = sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES) if root.is_dir() else [root]
        for file in files:
            for number, line in prose_of(file):
                for rule, instead in rules:
                    for match in rule.finditer(line):
                        yield f"{file.relative_to(ROOT)}:{number}: {match[0]!r}: write {instead}"


def main() -> int:
    paths, words = settings()
    found = list(problems(sys.argv[1:] or paths, words))
    print("\n".join(found) if found else "wording: no problems")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
