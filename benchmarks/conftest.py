"""Print the ratios of the interleaved measurements after pytest-benchmark's tables."""

import pytest

from pix2pixhd.bench.tables import describe

_lines: list[str] = []


@pytest.fixture
def report():
    """Record the timings of a finished case."""

    def record(name, timings):
        _lines.append(describe(name, timings))

    return record


def pytest_terminal_summary(terminalreporter):
    if _lines:
        terminalreporter.section("ratios of medians, interleaved timing")
        for line in _lines:
            terminalreporter.write_line(line)
