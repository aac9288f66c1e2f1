"""Build, test and measure the package on this machine's GPU with one command.

    python benchmarks/gpu.py                   on a GPU: build in place, run tests/gpu, pix2pixhd bench --all
    python benchmarks/gpu.py --device cpu      a dry run of the same code with small sizes, without a GPU

Requires a checkout, torch with torchvision, nvcc and a C++ compiler. Missing build and test packages are installed with
pip. All together takes about eight minutes: what build and tests leave of them, but at least three minutes, is for
``pix2pixhd bench --all``. Its tables are printed, followed by the goals that hold and those that do not, and written as
text and JSON to ``--out`` (default: benchmarks/results).
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from report import Report, add_goals  # noqa: E402

from pix2pixhd.bench.results import read_results  # noqa: E402

# Without the networks of other packages, whose initialisation takes seconds, and in one thread: the images are tiny.
DRY_RUN = ["--size", "32x32", "--rounds", "1", "--no-memory", "--dtype", "float32"]
DRY_RUN += ["--implementations", "checkpoint", "features", "bounded"]


def call(command, **options):
    print("$", " ".join(map(str, command)), flush=True)
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, text=True, **options)
    return done, time.perf_counter() - begin


def build(report):
    """Build in place for this machine's GPU."""
    missing = [name for name in ("setuptools", "pybind11", "ninja") if importlib.util.find_spec(name) is None]
    if missing:
        call([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done, seconds = call(command)
    if done.returncode != 0:
        raise SystemExit("the build failed; see the messages above")
    report.data["build_seconds"] = seconds
    report.at_most("build time, CPU and CUDA", seconds, 60, "s")


def run_tests(report, limit):
    """Run tests/gpu and add the end of the output to the report."""
    if importlib.util.find_spec("pytest") is None:
        call([sys.executable, "-m", "pip", "install", "--quiet", "pytest", "hypothesis", "expecttest"], check=False)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "tests/gpu"]
    try:
        done, seconds = call(command, timeout=limit, capture_output=True)
        output, succeeded = done.stdout + done.stderr, done.returncode == 0
    except subprocess.TimeoutExpired as error:
        output, seconds, succeeded = str(error.stdout or b"", "utf-8", "replace"), limit, False
    print(output[-4000:], flush=True)
    passed = re.search(r"(\d+) passed", output)
    report.data["tests"] = {"output": output[-2000:], "seconds": seconds, "passed": int(passed[1]) if passed else 0}
    report.at_least("tests/gpu: all passed", float(succeeded and passed is not None), 1, "(1 = yes)")


def measure(options, file, elapsed):
    """Run ``pix2pixhd bench --all``, which writes the file, and return what it prints."""
    command = [sys.executable, "-m", "pix2pixhd", "bench", "--all", "--device", options.device, "--json", file]
    command += ["--minutes", f"{max(3.0, 8.0 - elapsed / 60):.1f}"]
    command += DRY_RUN if options.device == "cpu" else []
    command += ["--no-compile"] if options.no_compile else []
    threads = {"OMP_NUM_THREADS": "1"} if options.device == "cpu" else {}
    done, _ = call([*command, "--force"], stdout=subprocess.PIPE, env={**os.environ, **threads})
    print(done.stdout, flush=True)
    if done.returncode != 0:
        raise SystemExit("the benchmark failed; see the messages above")
    return done.stdout


def write(report, folder, device, file, tables):
    """Write the tables and the JSON to files named after the GPU."""
    document = json.loads(file.read_text())
    add_goals(report, read_results(file.read_text(), str(file)))
    stem = re.sub(r"[^a-z0-9]+", "-", document["machine"].get("gpu", "cpu-dry-run").lower()).strip("-")
    goals = report.table() + "\n"
    if device == "cpu":
        goals = f"A DRY RUN ON THE CPU at small sizes: the goals are for a GPU, the values are meaningless.\n{goals}"
    text = f"{tables}\n{goals}"
    (folder / f"{stem}.txt").write_text(text)
    rows = [dataclasses.asdict(row) for row in report.rows]
    (folder / f"{stem}.json").write_text(json.dumps({**document, **report.data, "goals": rows}, indent=1) + "\n")
    file.unlink()
    print(f"{goals}written to {folder / stem}.txt and .json")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--skip-build", action="store_true")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile")
    options = parser.parse_args()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is visible to PyTorch; use --device cpu for a dry run")
    report, begin = Report(), time.perf_counter()
    if not options.skip_build:
        build(report)
    if not options.skip_tests:
        run_tests(report, limit=180)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out.resolve() / "bench.part.json"
    write(report, options.out, options.device, file, measure(options, file, time.perf_counter() - begin))


if __name__ == "__main__":
    main()
