"""Finds known vulnerabilities in the installed packages that this package and its extras need.

``make audit`` runs it. pip-audit asks PyPI about each package. Where PyPI cannot be asked, it skips the packages and
succeeds, so this module checks that there is an answer for every package.

Exit codes: 0 for no known vulnerability, 1 for at least one, 2 if packages could not be checked.
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DISTRIBUTION = "pix2pixhd-fused"


def _requirements(name: str, extras: Iterable[str]) -> list[Requirement]:
    """The requirements of an installed package with these extras, on this machine."""
    found = [Requirement(text) for text in importlib.metadata.requires(name) or []]
    environments: list[Any] = [{"extra": extra} for extra in ("", *extras)]
    return [
        requirement
        for requirement in found
        if requirement.marker is None or any(requirement.marker.evaluate(values) for values in environments)
    ]


def installed_packages(name: str = DISTRIBUTION) -> dict[str, str]:
    """The versions of all installed packages that a package with all its extras needs, directly or indirectly."""
    extras = importlib.metadata.metadata(name).get_all("Provides-Extra") or []
    waiting, seen, versions = [(name, tuple(extras))], set(), {}
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for requirement in _requirements(*current):
            key = canonicalize_name(requirement.name)
            try:
                version = importlib.metadata.version(key)
            except importlib.metadata.PackageNotFoundError:
                continue  # an extra that is not installed
            waiting.append((key, tuple(sorted(requirement.extras))))
            if key != canonicalize_name(name):
                versions[key] = version.partition("+")[0]  # PyPI has no local versions, such as 2.10+cu130
    return dict(sorted(versions.items()))


def audit(versions: dict[str, str]) -> tuple[str, str]:
    """Runs pip-audit; returns its JSON report and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        listed = pathlib.Path(folder, "requirements.txt")
        listed.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
        options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(listed), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout, done.stderr


def summary(versions: dict[str, str], report: str, printed: str) -> tuple[int, str]:
    """Returns the exit code and the text for a report of pip-audit."""
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = (printed.strip().splitlines() or ["it printed nothing"])[-1]
        return 2, f"NOT CHECKED: pip-audit failed: {reason}"
    found = [
        f"{package['name']} {package['version']}: {problem['id']}, fixed in "
        f"{', '.join(problem['fix_versions']) or 'no version yet'}"
        for package in packages
        for problem in package.get("vulns", [])
    ]
    checked = {canonicalize_name(package["name"]) for package in packages if "skip_reason" not in package}
    missing = sorted(versions.keys() - checked)
    lines = found
    if missing:
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        lines = [*found, f"NOT CHECKED: {names}: the vulnerability service does not know them or cannot be reached"]
    text = "\n".join(lines) or f"no known vulnerability in {len(checked)} packages"
    return (1 if found else 2 if missing else 0), text


def main() -> int:
    versions = installed_packages()
    code, text = summary(versions, *audit(versions))
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
