"""The tables and charts of README.md, docs/benchmarks.md and docs/performance.md, from results of the benchmarks.

    python benchmarks/bench_report.py              rewrite tables and charts from the files in benchmarks/results
    python benchmarks/bench_report.py --measure    measure first, on an idle machine; half an hour on two cores
    python benchmarks/bench_report.py --measure losses vgg    measure some parts: losses, vgg, lpips, step or cost
    python benchmarks/bench_report.py --measure lpips --full  also what takes long: LPIPS of 8 images of 512x512

``make bench-report`` measures everything but what takes long. The documents contain each table between two comments,
``<!-- table: NAME -->`` and ``<!-- end of table -->``, and only that part is rewritten. The tables ``lean``,
``largest`` and ``convergence`` come from files that lean.py, largest_image.py and convergence.py wrote; these are not
measured again.
"""

import argparse
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import paired_differences  # noqa: E402
import report_charts as charts  # noqa: E402
import report_tables as report  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "performance.md")
_INTERLEAVED = "python benchmarks/interleaved.py"
_SIZES = "256x128 512x256 1024x512"
# The commands that measure each part, whose results are written to one file.
COMMANDS = {
    "losses": [
        f"pix2pixhd bench {' '.join(f'--case {name!r}' for name in report.LOSSES)} --dtype float32 bfloat16 --rounds 40"
    ],
    "vgg": [
        "pix2pixhd bench --case VGGLoss --size 1024x512 --dtype float32 bfloat16 "
        "--implementations compiled checkpoint features --rounds 3"
    ],
    "lpips": [
        f"{_INTERLEAVED} LPIPS 1024x512 --dtypes float32 bfloat16 --implementations lpips --rounds 2 --memory",
        f"{_INTERLEAVED} LPIPS 256x256,batch=8 --dtypes float32 bfloat16 --implementations lpips torchmetrics "
        "--rounds 2 --memory",
    ],
    "step": ["python benchmarks/training_step.py --rounds 2"],
    "cost": [
        f"{_INTERLEAVED} 'feature matching' {_SIZES} 2048x1024 512x256,batch=2 512x256,batch=4 "
        "1024x512,num_d=1 1024x512,num_d=3 1024x512,threads=1 --rounds 20",
        f"{_INTERLEAVED} 'VGG feature maps' {_SIZES} 2048x1024 512x256,batch=2 512x256,batch=4 "
        "1024x512,threads=1 --rounds 15",
        f"{_INTERLEAVED} VGGLoss {_SIZES} 256x128,batch=2 256x128,batch=4 256x128,threads=1 --rounds 3",
    ],
}
# Commands that --full adds.
LONG = {
    "lpips": [f"{_INTERLEAVED} LPIPS 512x512,batch=8 --implementations lpips compiled features --rounds 2 --memory"]
}
# The files of results, with the class that reads them.
FILES = {
    "losses": ("report_losses.json", report.Results),
    "vgg": ("report_vgg.json", report.Results),
    "lpips": ("report_lpips.json", report.Results),
    "step": ("report_step.json", report.Document),
    "cost": ("report_cost.json", report.Results),
    "lean": ("lean_cpu.json", report.Document),
    "convergence": ("convergence.json", report.Document),
    "largest": ("largest_image_cpu.json", report.Document),
    "largest, local": ("largest_image_local_cpu.json", report.Document),
}
# The tables, each with the results that it contains, and whether their origin stands below it.
TABLES = {
    "summary": (report.summary_table, ("losses", "vgg", "step"), False),
    "losses": (report.losses_table, ("losses",), True),
    "VGGLoss": (report.vgg_table, ("vgg",), True),
    "LPIPS": (report.lpips_table, ("lpips",), True),
    "step": (report.step_table, ("step",), True),
    "largest": (report.largest_table, ("largest", "largest, local"), True),
    "lean": (report.lean_table, ("lean",), True),
    "convergence": (paired_differences.report, ("convergence",), True),
    "cost over size": (report.cost_size_table, ("cost",), False),
    "cost": (report.cost_scaling_table, ("cost",), True),
}
CHARTS = {"memory.png": (charts.memory_chart, "vgg"), "cost.png": (charts.cost_chart, "cost")}


def read(folder=RESULTS):
    """The results that exist."""
    return {name: kind(folder / file) for name, (file, kind) in FILES.items() if (folder / file).exists()}


def tables(results):
    """All generated parts of the documents whose results exist, by name."""
    parts = {}
    for name, (build, needed, with_source) in TABLES.items():
        if all(part in results for part in needed):
            own = [results[part] for part in needed]
            parts[name] = build(*own)
            if with_source:
                parts[name] += "\n\n" + "\n".join(document.source for document in own)
    return parts


def render(text, parts):
    """Returns a document with its tables replaced.

    Raises:
        SystemExit: If the document contains a table that does not exist, or whose results do not.
    """

    def replaced(match):
        name = match[1]
        if name not in TABLES:
            raise SystemExit(f"there is no table {name!r}; the tables are {', '.join(TABLES)}")
        if name not in parts:
            files = ", ".join(FILES[part][0] for part in TABLES[name][1])
            raise SystemExit(f"the table {name!r} needs {files} in benchmarks/results; measure with --measure")
        return f"<!-- table: {name} -->\n\n{parts[name]}\n\n<!-- end of table -->"

    return re.sub(r"<!-- table: ([^>]*) -->\n.*?<!-- end of table -->", replaced, text, flags=re.DOTALL)


def command_line(command, output):
    """The words of a command that writes its results to a file."""
    program, *words = shlex.split(command)
    if program == "pix2pixhd":
        return [sys.executable, "-m", "pix2pixhd", *words, "--force", "--json", str(output)]
    return [sys.executable, *words, "--json", str(output)]


def measure(name, full=False, folder=RESULTS):
    """Measure a part, and replace its file of results when all of its commands have succeeded."""
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        output = pathlib.Path(scratch) / "results.json"
        for command in COMMANDS[name] + (LONG.get(name, []) if full else []):
            print("$", command, flush=True)
            words = command_line(command, output)
            subprocess.run(words, check=True, cwd=ROOT)
            runs.append(json.loads(output.read_text()))
    document = runs[0] if len(runs) == 1 else runs
    (folder / FILES[name][0]).write_text(json.dumps(document, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="*", choices=list(COMMANDS), metavar="PART")
    parser.add_argument("--full", action="store_true", help="also measure what takes long")
    options = parser.parse_args()
    if options.full and options.measure is None:
        parser.error("--full adds measurements to --measure; pass both, or neither")
    if options.measure is not None:
        for name in options.measure or COMMANDS:
            measure(name, options.full)
    results = read()
    parts = tables(results)
    for path in DOCUMENTS:
        path.write_text(render(path.read_text(), parts))
    for file, (draw, needed) in CHARTS.items():
        if needed in results:
            draw(IMAGES / file, results[needed])


if __name__ == "__main__":
    main()
