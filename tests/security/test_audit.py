"""The audit of the dependencies reports what it could not check, which pip-audit takes for no vulnerability."""

import json

import pytest

from build_tools.audit import installed_packages, summary

VERSIONS = {"jinja2": "3.1.2", "torch": "2.10.0"}
SAFE = {"name": "torch", "version": "2.10.0", "vulns": []}
VULNERABLE = {"name": "Jinja2", "version": "3.1.2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1.3"]}]}
SKIPPED = {"name": "jinja2", "skip_reason": "Dependency not found on PyPI and could not be audited"}


@pytest.mark.parametrize(
    ("packages", "code", "parts"),
    [
        ([SAFE, VULNERABLE | {"vulns": []}], 0, ["no known vulnerability in 2 packages"]),
        ([SAFE, VULNERABLE], 1, ["Jinja2 3.1.2: PYSEC-1, fixed in 3.1.3"]),
        ([SAFE, SKIPPED], 2, ["NOT CHECKED: jinja2: the vulnerability service"]),
        ([VULNERABLE], 1, ["PYSEC-1", "NOT CHECKED: torch"]),
        ([], 2, ["NOT CHECKED: jinja2, torch"]),
    ],
)
def test_the_result_of_the_audit(packages, code, parts):
    found, text = summary(VERSIONS, json.dumps({"dependencies": packages}), "")
    assert found == code
    for part in parts:
        assert part in text


def test_an_audit_that_failed_is_not_a_success():
    assert summary(VERSIONS, "", "Traceback\nConnectionError: api") == (
        2,
        "NOT CHECKED: pip-audit failed: ConnectionError: api",
    )


def test_the_packages_of_all_extras_are_audited():
    versions = installed_packages()
    assert {"torch", "torchvision", "lightning", "pillow", "pyyaml", "jinja2", "pytest", "fsspec"} <= versions.keys()
    assert "pix2pixhd-fused" not in versions
    assert all("+" not in version for version in versions.values())
