"""Print at the end of a run how many CUDA kernels were executed."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("passed", []):
        for name, text in report.user_properties:
            if name == "cuda_harness":
                terminalreporter.write_line(f"CUDA kernels on the CPU, {text}")
