"""The tables and the chart of README.md and docs/benchmarks.md, from results that ``pix2pixhd bench`` wrote.

    python benchmarks/bench_report.py              rewrite tables and chart from benchmarks/results/report_*.json
    python benchmarks/bench_report.py --measure    measure first, on an idle machine; ten minutes on two cores
    python benchmarks/bench_report.py --measure losses    measure one part: losses or vgg

``make bench-report`` measures everything. The documents contain each table between two comments,
``<!-- table: NAME -->`` and ``<!-- end of table -->``, and only that part is rewritten.
"""

import argparse
import json
import pathlib
import re
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pix2pixhd.bench.results import TITLES, read_results  # noqa: E402
from pix2pixhd.bench.shapes import discriminator_shapes, vgg_shapes  # noqa: E402
from pix2pixhd.bench.tables import format_ratio, format_share, unit_of  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
LOSSES = ("feature matching", "VGG feature maps", "LSGAN, discriminator", "LSGAN, generator")
# The arguments of ``pix2pixhd bench`` for each file of results.
COMMANDS = {
    "losses": " ".join(f"--case '{name}'" for name in LOSSES) + " --dtype float32 bfloat16 --rounds 40",
    "vgg": "--case VGGLoss --size 1024x512 --dtype float32 bfloat16 --implementations compiled checkpoint features "
    "--rounds 3",
}
# The implementations that the tables contain, in their order.
ORDER = ("plain", "checkpoint", "compiled", "fused", "features")


class Results:
    """The measurements of one file, by case, size and dtype."""

    def __init__(self, path):
        text = path.read_text()
        self.document = json.loads(text)
        self.cases = read_results(text, str(path))

    def of(self, name, dtype="float32", size=None):
        """The measurements of a case; the only ones if no size is given."""
        found = [case for case in self.cases if (case.name, case.setup.precision) == (name, dtype)]
        [case] = [case for case in found if size in (None, case.size)]
        return case

    @property
    def source(self):
        """One sentence: date, machine, versions and command."""
        machine = self.document["machine"]
        return (
            f"Measured on {machine['date']} on {machine['threads']} cores of {machine['processor']} "
            f"({machine['cpu']}) with torch {machine['torch']} and Python {machine['python']}: `{machine['command']}`."
        )


def table(headers, rows):
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def seconds(timing):
    median = timing.median
    unit, factor = unit_of(timing)
    digits = 0 if factor * median >= 99.5 else 1 if factor * median >= 9.95 else 2
    return f"{factor * median:.{digits}f} {unit}"


def ratio_of(case, name):
    """The ratio with its interval, or a dash where the case has no such implementation."""
    return format_ratio(case.speed_up(name)) if name in case.timings else "–"


def losses_table(results):
    rows = []
    counts = {"feature matching": lambda setup: discriminator_shapes(setup)[0], "VGG feature maps": vgg_shapes}
    for dtype in ("float32", "bfloat16"):
        for name in LOSSES:
            case = results.of(name, dtype)
            elements = f" ({_elements(counts[name](case.setup)):.1f} M elements)" if name in counts else ""
            times = [ratio_of(case, baseline) for baseline in ("plain", "compiled")]
            rows.append([f"{name}{elements}, {dtype}", seconds(case.timings["fused"]), *times, format_share(case)])
    headers = ["loss", "pix2pixhd", "plain PyTorch takes", "`torch.compile` takes", "share of the bandwidth limit"]
    return table(headers, rows)


def _elements(shapes):
    return sum(n * c * h * w for n, c, h, w in shapes) / 1e6


def title_of(implementation):
    return f"**{TITLES[implementation]}**" if implementation == "fused" else TITLES[implementation]


def network_table(results, name):
    """Times, memory saved for backward and peak of one case in all its implementations and dtypes."""
    base = results.of(name)
    rows = []
    for dtype in ("float32", "bfloat16"):
        case = results.of(name, dtype)
        for implementation in ORDER:
            if implementation not in case.timings:
                continue
            time, memory = case.timings[implementation], case.memory[implementation]
            share = time.median / base.timings["plain"].median
            retained, peak = (_megabytes(memory, base.memory["plain"], what) for what in ("retained", "peak"))
            rows.append([f"{title_of(implementation)}, {dtype}", f"{seconds(time)}, {share:.2f}", retained, peak])
    return table(["", "time", "saved for backward", "peak"], rows)


def _megabytes(memory, base, what):
    share = memory[what] / base[what]
    return f"{memory[what] / 1e6:.0f} MB, {share:.1%}" if share < 0.1 else f"{memory[what] / 1e6:.0f} MB, {share:.2f}"


def summary_table(losses, vgg):
    """The table of the README."""
    case = losses.of("feature matching")
    times = [seconds(case.timings[name]) for name in ("fused", "plain", "compiled")]
    rows = [["feature matching, float32", f"**{times[0]}**", *times[1:]]]
    for dtype in ("float32", "bfloat16"):
        case = vgg.of("VGGLoss", dtype)
        cells = [
            f"{seconds(case.timings[name])}, {case.memory[name]['peak'] / 1e6:.0f} MB"
            for name in ("fused", "plain", "compiled")
        ]
        rows.append([f"VGGLoss, {dtype}: time, peak memory", f"**{cells[0]}**", *cells[1:]])
    return table(["", "pix2pixhd", "plain PyTorch", "`torch.compile`"], rows)


def tables(folder=RESULTS):
    """All generated parts of the documents, by name."""
    found = {name: Results(folder / f"report_{name}.json") for name in COMMANDS}
    parts = {
        "summary": summary_table(found["losses"], found["vgg"]),
        "losses": losses_table(found["losses"]),
        "VGGLoss": network_table(found["vgg"], "VGGLoss"),
    }
    for name, file in {"losses": "losses", "VGGLoss": "vgg"}.items():
        parts[name] += f"\n\n{found[file].source}"
    return parts


def render(text, parts):
    """Returns a document with its tables replaced.

    Raises:
        SystemExit: If the document asks for a table that does not exist.
    """

    def replaced(match):
        if match[1] not in parts:
            raise SystemExit(f"there is no table {match[1]!r}; the tables are {', '.join(parts)}")
        return f"<!-- table: {match[1]} -->\n\n{parts[match[1]]}\n\n<!-- end of table -->"

    return re.sub(r"<!-- table: ([^>]*) -->\n.*?<!-- end of table -->", replaced, text, flags=re.DOTALL)


def chart(folder, vgg):
    """Draws the peak memory of the VGG loss."""
    from matplotlib.figure import Figure

    bars = [
        (name, dtype)
        for dtype in ("float32", "bfloat16")
        for name in ("plain", "compiled", *(["checkpoint"] if dtype == "float32" else []), "fused")
    ]
    peaks = [vgg.of("VGGLoss", dtype).memory[name]["peak"] / 1e6 for name, dtype in bars]
    figure = Figure(figsize=(5.2, 3.0), dpi=100, layout="tight")
    axes = figure.subplots()
    labels = [TITLES[name] + (", bf16" if dtype == "bfloat16" else "") for name, dtype in bars]
    colors = ["#2878b5" if name == "fused" else "#b8bec6" for name, _ in bars]
    drawn = axes.barh(labels, peaks, color=colors)
    axes.bar_label(drawn, [f"{peak:.0f} MB" for peak in peaks], padding=3, fontsize=9)
    axes.set_title("Peak memory of the VGG loss, forward + backward, 1024x512", fontsize=8.5, loc="left", x=-0.6)
    axes.set(xlim=(0, max(peaks) * 1.18), xticks=[])
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.savefig(folder / "memory.png")


def measure(name):
    output = ["--json", str(RESULTS / f"report_{name}.json"), "--force"]
    subprocess.run([sys.executable, "-m", "pix2pixhd", "bench", *shlex.split(COMMANDS[name]), *output], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="*", choices=list(COMMANDS), metavar="PART")
    options = parser.parse_args()
    if options.measure is not None:
        for name in options.measure or COMMANDS:
            measure(name)
    parts = tables()
    for path in DOCUMENTS:
        path.write_text(render(path.read_text(), parts))
    chart(ROOT / "docs" / "images", Results(RESULTS / "report_vgg.json"))


if __name__ == "__main__":
    main()
