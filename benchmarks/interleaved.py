"""Times of one case of ``pix2pixhd bench`` at several points, all interleaved in one process.

    python benchmarks/interleaved.py CASE POINT [POINT ...] [--dtypes float32 bfloat16] [--implementations plain]
                                     [--rounds 15] [--memory] [--json FILE]

A point is an image size, and what differs from one image, two discriminator scales and PyTorch's number of threads:
``512x256``, ``512x256,batch=4``, ``1024x512,num_d=3``, ``1024x512,threads=1``. ``pix2pixhd bench`` finishes one size
before the next. Here every round measures all points, so that a change of the machine's speed affects all alike, and
costs per pixel can be compared. Results are not compared with float64, which takes longer than the timing;
``pix2pixhd bench`` does that. ``--memory`` measures memory, in a fresh process per implementation.
"""

import argparse
import dataclasses
import json
import os
import warnings

from arguments import image_size, output_file, positive
from machine import described
from steps import DTYPES

# Huge pages for large tensors, as the package's commands request them, for all implementations.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

OPTIONS = {"batch": "batch", "num_d": "num_D", "threads": "threads"}


@dataclasses.dataclass(frozen=True)
class Point:
    """Images, discriminator and threads of a measurement; ``threads`` is None for PyTorch's own number."""

    width: int
    height: int
    batch: int = 1
    num_D: int = 2
    threads: int | None = None


def point(text):
    """Parses a point of the command line."""
    size, *rest = text.split(",")
    width, height = map(int, image_size(size).split("x"))
    found = {}
    for part in rest:
        name, _, value = part.partition("=")
        if name not in OPTIONS:
            raise argparse.ArgumentTypeError(f"must have options of {', '.join(OPTIONS)} after the size, got {part!r}")
        found[OPTIONS[name]] = positive(int)(value)
    return Point(width, height, **found)


def in_threads(call, threads, default):
    """Returns the call with another number of threads."""
    import torch

    if threads == default:
        return call

    def run():
        torch.set_num_threads(threads)
        try:
            call()
        finally:
            torch.set_num_threads(default)

    return run


def measure(case_name, points, dtypes, implementations, rounds, memory=False):
    """Returns the measurements as JSON values, one per point and dtype."""
    import torch

    from pix2pixhd.bench.case import Setup
    from pix2pixhd.bench.cases import evaluates_network, make_case
    from pix2pixhd.bench.child import measure_memory
    from pix2pixhd.bench.results import CaseResult
    from pix2pixhd.bench.timing import compare

    default = torch.get_num_threads()
    names = list(dict.fromkeys(("fused", *implementations)))
    setups = [
        (Setup(at.width, at.height, at.batch, at.num_D, getattr(torch, dtype)), at.threads or default)
        for at in points
        for dtype in dtypes
    ]
    runs = {}
    for index, (setup, threads) in enumerate(setups):
        case = make_case(case_name, setup)
        for name in names:
            runs[f"{name} {index}"] = in_threads(case.run_of(name), threads, default)
    # Of networks, the call that decides on the number of repetitions is the warm-up.
    timings = compare(runs, rounds, warmup=0 if evaluates_network(case_name) else 3)
    del runs, case
    found = [{} for _ in setups]
    for name in names if memory else []:
        for own, bytes_used in zip(found, measure_memory(name, [(case_name, x) for x, _ in setups]), strict=True):
            own[name] = bytes_used
    results = [
        CaseResult(case_name, setup, {name: timings[f"{name} {index}"] for name in names}, {}, found[index])
        for index, (setup, _) in enumerate(setups)
    ]
    return [{**result.to_json(), "threads": threads} for result, (_, threads) in zip(results, setups, strict=True)]


def describe(found):
    """One line of output: time per pixel of every implementation."""
    from pix2pixhd.bench.results import TITLES, CaseResult

    case = CaseResult.from_json(found)
    pixels = case.setup.width * case.setup.height * case.setup.batch
    times = ", ".join(f"{TITLES[name]} {1e9 * x.median / pixels:.4g}" for name, x in case.timings.items())
    scales, threads = case.setup.num_D, found["threads"]
    return f"{case.size}, {case.setup.precision}, {scales} scales, {threads} threads, ns per pixel: {times}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", help="a case of pix2pixhd bench, such as 'feature matching'")
    parser.add_argument("points", nargs="+", type=point, metavar="POINT")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=DTYPES)
    parser.add_argument("--implementations", nargs="+", default=["plain"], help="besides this package's own")
    parser.add_argument("--rounds", type=positive(int), default=15)
    parser.add_argument("--memory", action="store_true", help="also measure memory, in child processes")
    parser.add_argument("--json", type=output_file)
    options = parser.parse_args()
    if options.memory and any(at.threads for at in options.points):
        parser.error("--memory does not depend on the number of threads; leave out threads=, or --memory")

    from pix2pixhd.bench.case import Setup
    from pix2pixhd.bench.cases import CASES, make_case

    if options.case not in CASES:
        parser.error(f"case must be one of {'; '.join(CASES)}, got {options.case!r}")
    known = [name for name in make_case(options.case, Setup()).names if name != "limit"]
    for name in options.implementations:
        if name not in known:
            parser.error(f"--implementations: {options.case} has {', '.join(known)}, got {name!r}")
    warnings.simplefilter("ignore")  # random weights, and what other packages warn about
    arguments = options.case, options.points, options.dtypes, options.implementations
    found = measure(*arguments, options.rounds, options.memory)
    for case in found:
        print(describe(case))
    if options.json:
        options.json.write_text(json.dumps({"machine": described(), "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
