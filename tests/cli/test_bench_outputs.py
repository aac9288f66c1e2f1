"""`pix2pixhd bench` refuses outputs that it cannot write, prints before it writes, and can be interrupted."""

import contextlib
import io
import json
import os
import pathlib
import signal
import sys
import threading
import time

import pytest
import torch

from pix2pixhd.bench import child
from pix2pixhd.bench.agreement import Agreement
from pix2pixhd.bench.case import Setup
from pix2pixhd.bench.memory import run_child
from pix2pixhd.bench.results import CaseResult
from pix2pixhd.bench.timing import Timing
from pix2pixhd.cli import bench, bench_output
from pix2pixhd.cli.main import main
from tests.helpers import fails

COMMAND = ["bench", "--case", "LSGAN, generator", "--device", "cpu", "--no-memory", "--no-compile"]


def measured(name, setups, *_):
    times = {implementation: Timing((1.0,) * 5) for implementation in ("fused", "plain")}
    return [CaseResult(name, setups[0], times, {x: Agreement(0.0, 0.0) for x in times}, {})]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(bench, "run_case", measured)


@pytest.fixture
def nothing_is_measured(monkeypatch):
    monkeypatch.setattr(bench, "run_case", lambda *_: pytest.fail("measured"))


@pytest.mark.usefixtures("nothing_is_measured")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", ""], "argument --json: must be the name of a file, got ''"),
        (["--json", "new/"], "argument --json: must be the name of a file, got 'new/'"),
        (["--plot", ""], "argument --plot: must be the name of a file"),
        (["--compare", ""], "argument --compare: must be the name of a file"),
        (["--num-d", "٣"], "argument --num-d: must be an integer"),
        (["--rounds", "٣"], "argument --rounds: must be an integer"),
        (["--batch", "²"], "argument --batch: must be an integer"),
        (["--batch", "1_0"], "argument --batch: must be an integer"),
        (["--minutes", "٣"], "argument --minutes: must be a number"),
        (["--minutes", "1_0"], "argument --minutes: must be a number"),
        (["--size", "٣٢x٣٢"], "argument --size: must be WIDTHxHEIGHT"),
        (["--json", "missing/a.json"], "/missing does not exist; create it first"),
        (["--json", "file/a.json"], "/file is not a folder; choose another one"),
        (["--json", "folder"], "--json: folder is a folder"),
        (["--plot", "folder.png"], "--plot: folder.png is a folder"),
        (["--json", "a" * 300], "cannot be written"),
        (["--json", "loop/a.json"], "loop"),
        (["--plot", "-"], "--plot must end in .png, .svg, .pdf, got -"),
        (["--device", "cpu:1"], "--device must be cpu, cuda or cuda:N, got 'cpu:1'"),
        (["--device", "cpu:0"], "--device must be cpu, cuda or cuda:N"),
        (["--device", "cuda:٣"], "--device must be cpu, cuda or cuda:N"),
        (["--device", ""], "--device must be cpu, cuda or cuda:N, got ''"),
    ],
)
def test_nonsense_is_refused_before_the_measurement(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    with contextlib.suppress(SystemExit):
        assert main(["bench", *arguments, "--force"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("nothing_is_measured")
def test_plots_need_matplotlib_before_the_measurement(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fails(capsys, ["bench", "--plot", tmp_path / "a.png"], "--plot needs matplotlib; install it (pip install")


@pytest.mark.usefixtures("quick")
def test_json_on_stdout_is_alone_there(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main([*COMMAND, "--json", "-"]) == 0
    out, error = capsys.readouterr()
    assert [case["case"] for case in json.loads(out)["cases"]] == ["LSGAN, generator"]
    assert "forward and backward" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
def test_the_table_is_printed_if_a_file_cannot_be_written(capsys, tmp_path, full_disk):
    with full_disk(100):
        assert main([*COMMAND, "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.svg")]) == 2
    out, error = capsys.readouterr()
    assert "LSGAN, generator" in out
    assert f"--json: {tmp_path}/a.json: cannot be written (" in error
    assert f"--plot: {tmp_path}/a.svg: cannot be written (" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
def test_one_file_is_written_if_the_other_one_cannot_be(capsys, tmp_path):
    assert main([*COMMAND, "--json", "/dev/full", "--plot", str(tmp_path / "a.svg")]) == 2
    out, error = capsys.readouterr()
    assert "LSGAN, generator" in out
    assert "--json: /dev/full: cannot be written (No space left on device)" in error
    assert (tmp_path / "a.svg").stat().st_size > 0


@pytest.mark.usefixtures("quick")
def test_machine_and_changes_are_printed_with_compare(capsys, tmp_path, monkeypatch):
    file = tmp_path / "old.json"
    assert main([*COMMAND, "--json", str(file)]) == 0
    capsys.readouterr()
    assert main([*COMMAND, "--compare", str(file)]) == 0
    assert "are those of the earlier measurements" in capsys.readouterr().out
    facts = bench.machine
    monkeypatch.setattr(bench, "machine", lambda device: {**facts(device), "torch": "9.9", "threads": 7})
    assert main([*COMMAND, "--compare", str(file)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"DIFFERENT FROM THE EARLIER MEASUREMENTS: torch ({torch.__version__} before, 9.9 now); threads (" in out
    assert "1.00× before, 1.00× now: no change beyond noise" in out


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("what", ["check_cases", "run_case"])
def test_an_interrupt_before_the_first_case_is_complete_prints_one_line(what, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, what, interrupt)
    assert main([*COMMAND, "--json", str(tmp_path / "a.json")]) == 130
    out, error = capsys.readouterr()
    assert error.splitlines()[-1] == "interrupted"
    assert "Traceback" not in error
    assert "forward and backward" not in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["case", "memory"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_complete_cases_are_printed_if_a_later_one_does_not_end(where, error, capsys, monkeypatch, tmp_path):
    def run_case(name, *rest):
        if name != "LSGAN, generator" and where == "case":
            raise error
        return measured(name, *rest)

    def fail(*_):
        raise error

    monkeypatch.setattr(bench, "run_case", run_case)
    monkeypatch.setattr(bench, "add_memory", fail)
    command = [x for x in COMMAND if x != "--no-memory"] + ["--case", "feature matching"]
    code = main([*command, "--json", str(tmp_path / "a.json")])
    out, message = capsys.readouterr()
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert "LSGAN, generator" in out
    assert ("feature matching" in out) == (where == "memory")
    assert "The measurement did not end" in out
    assert ("interrupted" if code == 130 else "; lower --size, --batch or --num-d") in message
    assert "Traceback" not in message
    assert not list(tmp_path.iterdir())


CHILD = """
import os, pathlib, subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
part = pathlib.Path(sys.argv[1] + ".part")
part.write_text(f"{os.getpid()} {other.pid}")
part.rename(sys.argv[1])
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_child_process_and_what_it_started(number, tmp_path, capfd):
    script, file = tmp_path / "child.py", tmp_path / "pids"
    script.write_text(CHILD)

    def stop():
        while not file.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises((KeyboardInterrupt, SystemExit)), bench._stopping_on_sigterm():
        run_child([script, file])
    thread.join()
    for pid in file.read_text().split():
        stat = pathlib.Path(f"/proc/{pid}/stat")
        assert not stat.exists() or stat.read_text().split()[2] == "Z"  # the other one, if nothing adopts processes
    assert "Traceback" not in capfd.readouterr().err


def test_a_child_process_without_memory_prints_a_message(monkeypatch):
    def fail(*_):
        torch.empty(2**50)

    monkeypatch.setattr(child, "_measure", fail)
    monkeypatch.setattr(sys, "argv", ["child", "fused", json.dumps([["VGGLoss", Setup().to_json()]])])
    with pytest.raises(SystemExit, match="the child process that measures memory: out of memory"):
        child.main()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.usefixtures("quick")
def test_narrow_terminals_get_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(COMMAND) == 0
    lines = sys.stdout.getvalue().splitlines()
    assert "LSGAN, generator, 1024x512" in lines
    assert "  agrees with float64: yes, 0e+00" in lines
    assert not any("┃" in line for line in lines)
    assert max(map(len, lines)) <= 40


@pytest.mark.usefixtures("quick")
def test_terminals_without_control_sequences_get_a_line_per_step(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(COMMAND) == 0
    assert "[1/1] LSGAN, generator, 1024x512" in sys.stderr.getvalue()
    assert "\x1b" not in sys.stdout.getvalue() + sys.stderr.getvalue()


def test_a_closed_stdout_is_reported_if_the_json_goes_there(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(bench_output.InputError, match="cannot write to stdout"):
            bench_output._print_json("{}")
