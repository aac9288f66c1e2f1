"""Random arguments of every operator, in processes of their own; ``make fuzz-operators`` runs as long as you like."""

import re
import subprocess
import sys

import pytest

from build_tools.checkout import ROOT
from pix2pixhd.ops import extension

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the guard of allocations needs Linux"),
    pytest.mark.skipif(not extension.cpu().loaded, reason="the operators were not built"),
]


@pytest.fixture(scope="module")
def report():
    command = [sys.executable, "-m", "tests.fuzz_operators", "--seed", "0", "--inputs", "2400", "--faults"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    return done.stdout + done.stderr


def test_every_call_gives_a_correct_result_or_a_clear_error(report):
    assert re.search(r"\n\d+ calls in \d+ s: 0 failures", report), report
    assert "no valid call" not in report, report


def test_the_fuzzer_reports_deliberate_faults(report):
    assert "not reported" not in report, report
    assert len(re.findall(r"deliberate fault \w+: reported", report)) >= 10
