"""The benchmark of the largest image measures a step within a limit, and stops one above it."""

import json
import pathlib
import subprocess
import sys

import largest_image
import pytest
from image_search import Largest
from steps import Setup

TINY = Setup("64x64", ngf=2, ndf=2, n_downsample=2, n_blocks=1, num_D=1, label_nc=3)
GB = largest_image.GB


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_a_step_within_the_limit_fits():
    found = largest_image.measure("ours", "float32", TINY, "cpu", 1000 * GB)
    assert found["fits"]
    assert 0 < found["peak"] < 1000 * GB


@pytest.mark.slow
def test_a_step_above_the_limit_is_stopped():
    script = pathlib.Path(largest_image.__file__)
    command = [sys.executable, script, *TINY.arguments(), "--child", "ours", "float32", str(GB // 100)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {"fits": False, "peak": None}


def test_the_table_marks_estimates_and_sizes_that_do_not_fit():
    cells = [Largest(0, estimated=False), Largest(256, estimated=False), Largest(512, estimated=True)]
    text = largest_image.table({("global", "float32", "ours"): cells}, [1.5, 4, 8])
    assert text.splitlines()[0] == "| network | dtype | step | 1.5 GB | 4 GB | 8 GB |"
    assert text.splitlines()[-1] == "| global | float32 | ours | – | 512×256 | ≈ 1024×512 |"


def test_an_interrupted_search_continues_with_its_runs(tmp_path, monkeypatch, capsys):
    """Ctrl-C in the third run; the resumed search repeats neither of the first two."""

    def run_child(command, exact_memory):
        height = int(command[command.index("--size") + 1].split("x")[1])
        if interrupted and len(heights) == 2:
            raise KeyboardInterrupt
        heights.append(height)
        peak = GB + 50_000 * height**2
        return {"fits": peak <= 4 * GB, "peak": peak}

    heights, interrupted, file = [], True, tmp_path / "found.json"
    monkeypatch.setattr(largest_image, "run_child", run_child)
    command = ["largest_image.py", "--limits", "4", "--networks", "global", "--implementations", "ours"]
    monkeypatch.setattr(sys, "argv", [*command, "--json", str(file)])
    with pytest.raises(KeyboardInterrupt):
        largest_image.main()
    monkeypatch.setattr(sys, "argv", [*command, "--json", str(file), "--resume"])
    interrupted = False
    largest_image.main()
    assert len(set(heights)) == len(heights) > 2
    assert capsys.readouterr().out.splitlines()[-1] == "| global | float32 | ours | 384×192 |"
