"""Prints, after pytest-benchmark's own tables, the ratios measured in turns in this same run."""

import pytest

from pix2pixhd.cli.bench import describe

_lines: list[str] = []


@pytest.fixture
def report():
    """Takes the timings of a finished case."""

    def take(name, timings):
        _lines.append(describe(name, timings))

    return take


def pytest_terminal_summary(terminalreporter):
    if _lines:
        terminalreporter.section("ratios of medians, rivals timed in turns")
        for line in _lines:
            terminalreporter.write_line(line)
