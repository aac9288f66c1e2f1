"""The tables of ``bench_report.py``, in Markdown, from files of results."""

import json
import pathlib

from image_search import Largest, Run, Search
from largest_image import GB, cell

from pix2pixhd.bench.results import TITLES, CaseResult
from pix2pixhd.bench.shapes import discriminator_shapes, vgg_shapes
from pix2pixhd.bench.tables import format_ratio, format_share, unit_of

LOSSES = ("feature matching", "VGG feature maps", "LSGAN, discriminator", "LSGAN, generator")
DTYPES = ("float32", "bfloat16")
# The implementations that the tables contain, in their order.
ORDER = ("plain", "lpips", "torchmetrics", "checkpoint", "compiled", "fused", "features")
STEPS = {"original": "NVIDIA's step", "ours": "**pix2pixhd**"}
LEAN = {
    "plain": "plain PyTorch",
    "checkpoint": "`torch.utils.checkpoint`",
    "compiled": "`torch.compile`",
    "lean": "**`lean`**",
}
LEAN_NETWORKS = {"cyclegan": "CycleGAN's generator", "unet": "U-Net with nnU-Net's layers"}
LARGEST = {"global": "global generator", "local": "local enhancer"}
# The smallest image from which on the cost per pixel should be flat, and the accepted difference (see DESIGN.md).
FLAT_FROM, FLAT_WITHIN = 512 * 256, 0.10


class Document:
    """A file of results: one run of a benchmark, or a list of several."""

    def __init__(self, path: pathlib.Path):
        document = json.loads(path.read_text())
        self.runs = document if isinstance(document, list) else [document]

    @property
    def content(self):
        """The only run."""
        [content] = self.runs
        return content

    @property
    def source(self):
        """Date, machine, versions and commands; one sentence per date and machine."""
        commands = {}
        for run in self.runs:
            commands.setdefault(_place(run["machine"]), []).append(f"`{run['machine']['command']}`")
        return " ".join(f"Measured on {place}: {', '.join(own)}." for place, own in commands.items())


def _place(machine):
    words = [machine["date"]]
    if "processor" in machine:
        words.append(f"on {machine['threads']} cores of {machine['processor']} ({machine['cpu']})")
    if "torch" in machine:
        words.append(f"with torch {machine['torch']} and Python {machine['python']}")
    return " ".join(words)


class Results(Document):
    """Measurements of cases. ``points`` has them with the number of threads and whether that is PyTorch's own."""

    def __init__(self, path):
        super().__init__(path)
        self.points = []
        for run in self.runs:
            default = run["machine"]["threads"]
            for found in run["cases"]:
                threads = found.get("threads", default)
                self.points.append((CaseResult.from_json(found), threads, threads == default))
        self.cases = [case for case, _, _ in self.points]

    def of(self, name, dtype="float32", size=None):
        """The measurements of a case; the only ones if no size is given."""
        found = [case for case in self.cases if (case.name, case.setup.precision) == (name, dtype)]
        [case] = [case for case in found if size in (None, case.size)]
        return case


def table(headers, rows):
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _three_digits(value):
    return f"{value:.{0 if value >= 99.5 else 1 if value >= 9.95 else 2}f}"


def seconds(timing):
    unit, factor = unit_of(timing)
    return f"{_three_digits(factor * timing.median)} {unit}"


def ratio_of(case, name):
    """The ratio with its interval, or a dash where the case has no such implementation."""
    return format_ratio(case.speed_up(name)) if name in case.timings else "–"


def times_sign(size):
    """``1024x512`` as 1024×512."""
    return size.replace("x", "×")


def losses_table(results):
    rows = []
    counts = {"feature matching": lambda setup: discriminator_shapes(setup)[0], "VGG feature maps": vgg_shapes}
    for dtype in DTYPES:
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


def network_rows(results, name, baseline, size=None, prefix=""):
    """Times, memory saved for backward and peak of one case at one size, relative to a baseline in float32."""
    base = results.of(name, size=size)
    rows = []
    for dtype in [x for x in DTYPES if any((c.setup.precision, c.size) == (x, base.size) for c in results.cases)]:
        case = results.of(name, dtype, size)
        for implementation in ORDER:
            if implementation not in case.timings:
                continue
            time, memory = case.timings[implementation], case.memory[implementation]
            share = time.median / base.timings[baseline].median
            amounts = [_megabytes(memory[what], base.memory[baseline][what]) for what in ("retained", "peak")]
            title = f"{'' if rows else prefix}{title_of(implementation)}, {dtype}"
            rows.append([title, f"{seconds(time)}, {share:.2f}", *amounts])
    return rows


def _megabytes(amount, base):
    share = amount / base
    return f"{amount / 1e6:.0f} MB, {share:.1%}" if share < 0.1 else f"{amount / 1e6:.0f} MB, {share:.2f}"


def vgg_table(results):
    return table(["", "time", "saved for backward", "peak"], network_rows(results, "VGGLoss", "plain"))


def lpips_table(results):
    """LPIPS at all measured sizes, relative to the lpips package."""
    rows = []
    for size in dict.fromkeys(case.size for case in results.cases):
        setup = results.of("LPIPS", size=size).setup
        images = f"{setup.batch} images" if setup.batch > 1 else "one image"
        prefix = f"**{images} of {setup.width}×{setup.height}:** "
        rows += network_rows(results, "LPIPS", "lpips", size, prefix)
    return table(["", "time", "saved for backward", "peak"], rows)


def step_table(document):
    """The training step, relative to NVIDIA's in float32."""
    found = document.content["results"]
    base = found["original float32"]
    rows = []
    for dtype in DTYPES:
        for name, title in STEPS.items():
            row = found[f"{name} {dtype}"]
            speed, share = base["seconds"] / row["seconds"], row["peak"] / base["peak"]
            cells = [f"{row['seconds']:.1f} s", f"{speed:.2f}×", f"{row['peak'] / 1e6:.0f} MB", f"{share:.2f}"]
            rows.append([f"{title}, {dtype}{' autocast' if dtype == 'bfloat16' else ''}", *cells])
    return table(["", "time", "speed", "peak", "relative to NVIDIA's in float32"], rows)


def summary_table(losses, vgg, step):
    """The table of the README."""
    case = losses.of("feature matching")
    times = [seconds(case.timings[name]) for name in ("fused", "plain", "compiled")]
    rows = [["feature matching, float32", f"**{times[0]}**", *times[1:]]]
    for dtype in DTYPES:
        case = vgg.of("VGGLoss", dtype)
        cells = [
            f"{seconds(case.timings[name])}, {case.memory[name]['peak'] / 1e6:.0f} MB"
            for name in ("fused", "plain", "compiled")
        ]
        rows.append([f"VGGLoss, {dtype}: time, peak memory", f"**{cells[0]}**", *cells[1:]])
    for dtype in DTYPES:
        found = [step.content["results"][f"{name} {dtype}"] for name in ("ours", "original")]
        cells = [f"{row['seconds']:.1f} s, {row['peak'] / 1e6:.0f} MB" for row in found]
        rows.append([f"training step, {dtype}: time, peak memory", f"**{cells[0]}**", cells[1], "–"])
    return table(["", "pix2pixhd", "plain PyTorch", "`torch.compile`"], rows)


def cost_per_pixel(case, name):
    """Seconds per pixel of one image, of forward and backward."""
    return case.timings[name].median / (case.setup.width * case.setup.height * case.setup.batch)


def _cost(case, name):
    cost = cost_per_pixel(case, name)
    return f"{_three_digits(1e6 * cost)} µs" if cost >= 1e-6 else f"{_three_digits(1e9 * cost)} ns"


def over_size(results):
    """The cases at one image, two scales and PyTorch's number of threads, by name and from small to large images."""
    found = {}
    for case, _, own in results.points:
        if own and (case.setup.batch, case.setup.num_D) == (1, 2):
            found.setdefault(case.name, []).append(case)
    return {name: sorted(cases, key=lambda case: case.setup.width * case.setup.height) for name, cases in found.items()}


def spread(cases, name):
    """How much the largest cost per pixel exceeds the smallest, from ``FLAT_FROM`` pixels on; None for one size."""
    costs = [cost_per_pixel(case, name) for case in cases if case.setup.width * case.setup.height >= FLAT_FROM]
    return max(costs) / min(costs) - 1 if len(costs) > 1 else None


def cost_size_table(results):
    """The cost per pixel over the image size."""
    groups = over_size(results)
    everywhere = sorted((case for group in groups.values() for case in group), key=lambda case: case.setup.width)
    sizes = list(dict.fromkeys(case.size for case in everywhere))
    rows = []
    for case_name, cases in groups.items():
        by_size = {case.size: case for case in cases}
        for name in ("fused", "plain"):
            cells = [_cost(by_size[size], name) if size in by_size else "–" for size in sizes]
            found = spread(cases, name)
            verdict = "–" if found is None else f"{found:.0%}"
            if name == "fused" and found is not None:
                verdict += f", {'within' if found <= FLAT_WITHIN else 'above'} {FLAT_WITHIN:.0%}"
            rows.append([f"{case_name}, {title_of(name)}", *cells, verdict])
    return table(["time per pixel", *map(times_sign, sizes), "spread from 512×256 on"], rows)


def cost_scaling_table(results):
    """The cost per pixel over the batch, the number of scales and of threads, each with the others fixed."""
    default = results.runs[0]["machine"]["threads"]
    columns = {
        "batch": lambda case, threads: (case.setup.batch, case.setup.num_D == 2 and threads == default),
        "num_D": lambda case, threads: (case.setup.num_D, case.setup.batch == 1 and threads == default),
        "threads": lambda case, threads: (threads, case.setup.batch == 1 and case.setup.num_D == 2),
    }
    rows = []
    for what, value_of in columns.items():
        groups = {}
        for case, threads, _ in results.points:
            value, others_fixed = value_of(case, threads)
            if others_fixed:
                size = f"{case.setup.width}×{case.setup.height}"
                groups.setdefault((case.name, size), {})[value] = case
        for (name, size), group in groups.items():
            for value, case in sorted(group.items()) if len(group) > 1 else ():
                cells = [_cost(case, "fused"), _cost(case, "plain"), ratio_of(case, "plain")]
                rows.append([f"{name}, {size}, {what} {value}", *cells])
    return table(["time per pixel", "pix2pixhd", "plain PyTorch", "plain PyTorch takes"], rows)


def lean_table(document):
    """Networks of other projects, relative to plain PyTorch."""
    rows = []
    size = document.content["size"]
    for key, found in document.content["results"].items():
        network, dtype = key.split()
        base = found["plain"]
        for name, row in found.items():
            prefix = f"**{LEAN_NETWORKS[network]}, {size}×{size}, {dtype}:** " if row is base else ""
            amounts = [_megabytes(row[what], base[what]) for what in ("retained", "peak")]
            time = f"{row['seconds']:.2f} s, {row['seconds'] / base['seconds']:.2f}"
            rows.append([prefix + LEAN[name], time, *amounts])
    return table(["", "time", "saved for backward", "peak"], rows)


def largest_table(*documents):
    """The largest images per memory limit; of a search that was not finished, what its runs show."""
    limits = sorted({limit for document in documents for limit in document.content["limits_gb"]})
    rows = []
    for document in documents:
        for key in document.content["runs"]:
            network, dtype, step = key.split()
            cells = [_largest(document.content, key, limit) for limit in limits]
            rows.append([f"{LARGEST[network]}, {dtype}: {STEPS[step]}", *cells])
    return table(["", *(f"{limit:g} GB" for limit in limits)], rows)


def _largest(content, key, limit):
    limits = content["limits_gb"]
    if limit > max(limits):
        return "–"
    if key in content["results"] and limit in limits:
        return cell(Largest(**content["results"][key][limits.index(limit)]))
    search = Search(lambda height, limit: None)
    search.runs = [Run(**run) for run in content["runs"][key]]
    low, high = search.bounds(int(limit * GB))
    text = cell(Largest(low, estimated=False))
    confirmed = low == 0 or (high is not None and high - low <= search.step)
    return text if confirmed else f"≥ {text}"
