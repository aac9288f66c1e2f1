"""Install the package in many environments and record what happens.

    python -m build_tools.matrix                      run all cells
    python -m build_tools.matrix --only 'no compiler' run the cells whose name or base matches, keep the other results
    python -m build_tools.matrix --page               write the page again from the recorded results

A cell installs the package into an environment of its own, computes fused losses and gradients, compares them with
plain PyTorch, and runs the command. It passes, is refused with a message, fails, or is not run because this machine
lacks something, such as a version of Python. The bases, one environment per release of Python and torch, take several
gigabytes each; they are installed from the package index into ``--folder``, or taken from there.

The results are in ``docs/install_matrix.json``, and ``docs/install_matrix.md`` is generated from them. The exit status
is 1 if a cell failed.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from build_tools.checkout import ROOT
from build_tools.matrix.cells import BASES, Row, Workshop, rows
from build_tools.matrix.environment import Base, Failure, NotRun, prepare
from build_tools.messages import say

RESULTS = ROOT / "docs" / "install_matrix.json"
PAGE = ROOT / "docs" / "install_matrix.md"
KINDS = ("wheel", "sdist", "editable")

INTRODUCTION = """\
# Install matrix

<!-- Written by `python -m build_tools.matrix`. Do not edit. -->

`make matrix` installs the package in many environments. In each it computes fused losses and gradients, compares them
with plain PyTorch, and runs the command. *Refused* means that the installation ends with a message that names the
cause and the remedy, as it should there. A cell that this machine could not run is *not run*, with the reason. There
was no GPU: CUDA operators were loaded, not executed.
"""


def execute(row: Row, shop: Workshop) -> dict[str, str]:
    """Run one cell. Returns what to record."""
    python, torch = BASES[row.base]
    found = {"cell": row.name, "base": row.base, "python": python, "torch": torch, "result": "", "remark": ""}
    try:
        facts = shop.base(row.base).facts
        found |= {"python": facts["python"], "torch": facts["torch"]}
        found["torch"] += "" if "+" in facts["torch"] else f", CUDA {facts['cuda']}" if facts["cuda"] else ", no CUDA"
        found |= {"result": "refused" if row.is_refusal else "passed", "remark": row.run(shop)}
    except NotRun as reason:
        found |= {"result": "not run", "remark": str(reason)}
    except (Failure, OSError) as failure:  # OSError: a command is missing
        found |= {"result": "failed", "remark": str(failure).strip()[-400:]}
        say(f"{row.name}, {row.base} failed:\n{failure}")
    return found


def _key(result: dict[str, str]) -> tuple[str, str]:
    return result["cell"], result["base"]


def merge(old: Sequence[dict[str, str]], new: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The new results, and the old ones of the other cells, in the order of the cells."""
    known = {_key(result): result for result in [*old, *new]}
    merged = []
    for row in rows():
        python, torch = BASES[row.base]
        missing = {"python": python, "torch": torch, "result": "not run", "remark": "no time"}
        merged.append(known.get((row.name, row.base), {"cell": row.name, "base": row.base, **missing}))
    return merged


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def page(results: Sequence[dict[str, str]]) -> str:
    """The documentation's page: counts, installs by Python and torch, and the other cells."""
    names = ("passed", "refused", "failed", "not run")
    counts = {name: sum(result["result"] == name for result in results) for name in names}
    lines = [INTRODUCTION, f"{len(results)} cells: " + ", ".join(f"{counts[name]} {name}" for name in names) + ".", ""]
    lines += ["| Python | torch | wheel | sdist | editable |", "|---|---|---|---|---|"]
    for base in BASES:
        own = {result["cell"]: result for result in results if result["base"] == base and result["cell"] in KINDS}
        one = own["wheel"]
        shown = " | ".join(own[kind]["result"] for kind in KINDS)
        lines.append(f"| {one['python']} | {_escaped(one['torch'])} | {shown} |")
    reasons = {r["base"]: r["remark"] for r in results if r["cell"] in KINDS and r["result"] == "not run"}
    lines += ["", *(f"* {base}: not run, {_escaped(reason)}" for base, reason in reasons.items())]
    lines += ["", "| cell | Python | torch | result | remark |", "|---|---|---|---|---|"]
    for result in results:
        if result["cell"] not in KINDS:
            shown = [result[key] for key in ("cell", "python", "torch", "result", "remark")]
            lines.append(f"| {' | '.join(map(_escaped, shown))} |")
    return "\n".join(lines) + "\n"


def recorded() -> list[dict[str, Any]]:
    """The committed results."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def main(arguments: Sequence[str]) -> int:
    """Run the cells, record them and write the page."""
    parser = argparse.ArgumentParser(prog="python -m build_tools.matrix", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression that the name or the base must contain")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "build" / "matrix", help="of the bases")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page again")
    options = parser.parse_args(arguments)
    results = merge(recorded(), [])
    if not options.page:
        work = options.folder.absolute() / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)

        @functools.cache
        def base(name: str) -> Base:
            return prepare(options.folder.absolute(), name, *BASES[name])

        shop = Workshop(work, base)
        for row in rows():
            if re.search(options.only, f"{row.name}, {row.base}"):
                result = execute(row, shop)
                say(f"{row.name}, {row.base}: {result['result']}. {result['remark']}")
                results = merge(results, [result])
                RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        shutil.rmtree(work)
    PAGE.write_text(page(results))
    return 1 if any(result["result"] == "failed" for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
