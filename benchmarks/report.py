"""A table of measurements and their goals, for a GPU (docs/benchmarks.md)."""

import dataclasses

from pix2pixhd.bench.compiled_step import SUFFIX
from pix2pixhd.bench.results import BASELINES


@dataclasses.dataclass
class Row:
    """One line of the table: a measurement and its goal."""

    what: str
    value: float
    unit: str
    goal: str
    reached: bool

    def __str__(self):
        return f"{self.what:<62}{self.value:>10.3f} {self.unit:<12}{self.goal:<10}{'yes' if self.reached else 'NO'}"


class Report:
    """Collects measurements and formats them as a table."""

    def __init__(self):
        self.rows = []
        self.data = {}

    def at_least(self, what, value, goal, unit="times"):
        self.rows.append(Row(what, value, unit, f">= {goal}", value >= goal))

    def at_most(self, what, value, goal, unit="of plain"):
        self.rows.append(Row(what, value, unit, f"<= {goal}", value <= goal))

    def table(self):
        header = f"{'forward + backward':<62}{'measured':>10} {'':<12}{'goal':<10}reached"
        return "\n".join([header, "-" * len(header), *map(str, self.rows)])


def add_goals(report, results):
    """Add a row for every goal of the measured cases."""
    for result in results:
        title = f"{result.name} {result.size}, {result.setup.precision}"
        for case, add in GOALS.items():
            if result.name == case or result.name.split(",")[0] == case == "LSGAN":
                add(report, title, result, results)
    add_cost_per_pixel(report, results)


def speed_ups(report, title, result, goals):
    for baseline, goal in goals.items():
        if baseline in result.timings:
            what = BASELINES[baseline]
            report.at_least(f"{title}: speed-up over {what}", result.speed_up(baseline).value, goal)


def add_l1(report, title, result, results):
    speed_ups(report, title, result, {"plain": 10, "compiled": 2})
    if result.of_copy is not None:
        report.at_least(f"{title}: share of a device copy's bandwidth", result.of_copy, 0.9, "of copy")
    add_launches(report, title, result)


def add_launches(report, title, result):
    if result.launches:
        report.at_most(f"{title}: kernel launches", result.launches["fused"], 3, "launches")


def add_lsgan(report, title, result, results):
    if result.name.endswith(SUFFIX):
        return
    speed_ups(report, title, result, {"plain": 3})
    if "fused-graph" in result.timings:
        speed = result.timings["plain-graph"].median / result.timings["fused-graph"].median
        report.at_least(f"{title}: speed-up over plain, both as CUDA graphs", speed, 3)
    add_launches(report, title, result)


def add_perceptual(report, title, result, baseline, peak):
    """Time and memory relative to the baseline, or to plain PyTorch where it was not measured."""
    base = baseline if baseline in result.timings else "plain"
    report.at_most(f"{title}: time", 1 / result.speed_up(base).value, 0.75, f"of {base}")
    if base in result.memory:
        own, other = result.memory["fused"], result.memory[base]
        report.at_most(f"{title}: retained", own["retained"] / other["retained"], 0.01, f"of {base}")
        report.at_most(f"{title}: peak", own["peak"] / other["peak"], peak, f"of {base}")


def add_vgg(report, title, result, results):
    add_perceptual(report, title, result, "plain", 0.30)
    over = result.over_plain_float32
    if result.setup.precision == "bfloat16" and over is not None:
        report.at_most(f"{title}: time, relative to plain float32", 1 / over.value, 0.36, "of plain fp32")


def add_lpips(report, title, result, results):
    add_perceptual(report, title, result, "lpips", 0.35)


def add_step(report, title, result, results):
    speed_ups(report, title, result, {"plain": 1.25})
    half = result.setup.precision == "bfloat16"
    if half and result.over_plain_float32 is not None:
        report.at_least(f"{title}: speed-up over NVIDIA's float32 step", result.over_plain_float32.value, 2.2)
    base = [found for found in results if found.name == result.name and found.setup.precision == "float32"]
    if half or result in base:
        for found in base:
            if found.size == result.size and {"fused", "plain"} <= result.memory.keys() & found.memory.keys():
                share = result.memory["fused"]["peak"] / found.memory["plain"]["peak"]
                report.at_most(f"{title}: peak memory", share, 0.28 if half else 0.33, "of NVIDIA's in float32")


def add_cost_per_pixel(report, results):
    """How much the cost per pixel of VGGLoss differs between the sizes."""
    found = [result for result in results if (result.name, result.setup.precision) == ("VGGLoss", "bfloat16")]
    costs = {r.size: r.timings["fused"].median / (r.setup.width * r.setup.height * r.setup.batch) for r in found}
    if len(costs) > 1:
        spread = max(costs.values()) / min(costs.values()) - 1
        report.at_most(f"VGGLoss, bfloat16: spread of the cost per pixel over {len(costs)} sizes", spread, 0.10, "")


GOALS = {
    "feature matching": add_l1,
    "VGG feature maps": add_l1,
    "LSGAN": add_lsgan,
    "VGGLoss": add_vgg,
    "LPIPS": add_lpips,
    "training step": add_step,
}
