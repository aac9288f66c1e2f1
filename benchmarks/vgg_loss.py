"""Time and memory of VGGLoss from small to large pictures, each rival in fresh processes.

    python benchmarks/vgg_loss.py [--sizes 1024x512 …] [--rounds 3] [--turns 1] [--json FILE] [--plot FILE]
    python benchmarks/vgg_loss.py --l1-part        what the loss itself adds to running the VGG

Rivals: ``ours``; ``features`` (ours, with the real pictures' features kept from before); ``bounded`` (ours within
``--memory-limit`` MiB); ``plain`` (the same loss in plain PyTorch), ``checkpoint`` (plain, with torch.utils.checkpoint
over the VGG's blocks), ``compiled`` (plain under torch.compile); each in float32 and under bfloat16 autocast. Times are
medians of forward + backward. Memory is resident memory above what stood before the loss was called: *retained* between
forward and backward, and the *peak* of each, in processes of their own in which freed memory goes back to the system at
once. VGG weights are random: they change neither.
"""

import argparse
import gc
import itertools
import json
import pathlib
import statistics
import time
import warnings

from processes import reset_peak, resident, run_script

RIVALS = ["ours", "features", "bounded", "plain", "checkpoint", "compiled"]
SIZES = ["256x128", "512x256", "1024x512", "2048x1024"]
OURS = ("ours", "features", "bounded")


def checkpointed(vgg, weights):
    import torch
    import torch.nn.functional as F
    from torch.utils.checkpoint import checkpoint

    ends = [0, *(index + 1 for index, layer in enumerate(vgg.features) if isinstance(layer, torch.nn.ReLU))]
    taps = (1, 3, 5, 9, 13)  # the ReLUs of relu1_1, relu2_1, relu3_1, relu4_1, relu5_1, counted from 1
    blocks = [vgg.features[ends[a] : ends[b]] for a, b in itertools.pairwise((0, *taps))]

    def loss(fake, real):
        total = 0.0
        for block, weight in zip(blocks, weights, strict=True):
            fake = checkpoint(block, fake, use_reentrant=False)
            with torch.no_grad():
                real = block(real)
            total = total + weight * F.l1_loss(fake, real)
        return total

    return loss


def pictures(width, height):
    import torch

    generator = torch.Generator().manual_seed(0)
    fake, real = (torch.rand(1, 3, height, width, generator=generator) * 2 - 1 for _ in range(2))
    return fake.requires_grad_(), real


def make_loss(rival, real, dtype, memory_limit):
    """From the generated picture to the loss."""
    import torch

    from pix2pixhd.losses import VGGLoss

    criterion = VGGLoss(vgg="random", memory_limit=memory_limit * 2**20 if rival == "bounded" else None)
    half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16")
    loss = criterion
    if rival == "checkpoint":
        loss = checkpointed(criterion.vgg, criterion.weights)
    elif rival == "compiled":
        loss = torch.compile(criterion)
    elif rival == "features":
        with half:
            real = criterion.features(real)

    def forward(fake):
        with half:
            return loss(fake, real)

    return forward


def measure(rival, dtype, size, rounds, memory_limit):
    """Medians of the rounds after the first, which compiles, lays weights out and touches memory for the first time."""
    warnings.simplefilter("ignore")
    import pix2pixhd

    width, height = size
    fake, real = pictures(width, height)
    found = {"seconds": [], "retained": [], "peak_forward": [], "peak_backward": []}
    warm = False
    with pix2pixhd.backend("fused" if rival in OURS else "reference"):
        forward = make_loss(rival, real, dtype, memory_limit)
        # Small pictures take more rounds than asked for: a few milliseconds are at the mercy of whatever else runs.
        while len(found["seconds"]) < rounds or (rounds > 1 and sum(found["seconds"]) < 3.0):
            fake.grad = None
            gc.collect()
            reset_peak()
            before, begin = resident(), time.perf_counter()
            value = forward(fake)
            middle, peak_forward = resident(), resident("VmHWM")
            reset_peak()
            value.backward()
            took = time.perf_counter() - begin
            if warm:
                found["seconds"].append(took)
                found["retained"].append(middle - before)
                found["peak_forward"].append(peak_forward - before)
                found["peak_backward"].append(resident("VmHWM") - before)
            warm = True
            del value
    return {name: statistics.median(values) for name, values in found.items()}


def run_child(options, size, rival, dtype, exact_memory):
    """One process: for the time, or for the memory."""
    command = ["--sizes", size, "--memory-limit", str(options.memory_limit), "--child", rival, dtype]
    rounds = 1 if exact_memory else options.rounds
    return run_script(__file__, [*command, "--rounds", str(rounds)], exact_memory)


def run_size(options, size):
    """All rivals at one size, by name; prints a table."""
    print(f"VGGLoss, forward + backward at {size}, medians of {options.rounds} rounds in {options.turns} processes")
    columns = ("time", "of plain", "retained", "of plain", "peak forw.", "peak backw.", "of plain")
    print(f"{'rival':<20}" + "".join(f"{column:>12}" for column in columns))
    names = [(rival, dtype) for dtype in options.dtypes for rival in options.rivals]
    names.sort(key=lambda name: name != ("plain", "float32"))  # what all are compared with comes first
    seconds = {name: [] for name in names}
    for _ in range(options.turns):
        for name in names:
            seconds[name].append(run_child(options, size, *name, exact_memory=False)["seconds"])
    rows = {}
    for name in names:
        row = run_child(options, size, *name, exact_memory=True)
        row |= {"seconds": statistics.median(seconds[name]), "peak": max(row["peak_forward"], row["peak_backward"])}
        rows[" ".join(name)] = row
        base = rows[" ".join(names[0])]
        print(
            f"{' '.join(name):<20}{row['seconds']:>10.3f} s{row['seconds'] / base['seconds']:>12.2f}"
            f"{row['retained'] / 1e6:>9.0f} MB{row['retained'] / base['retained']:>12.3f}"
            f"{row['peak_forward'] / 1e6:>9.0f} MB{row['peak_backward'] / 1e6:>9.0f} MB"
            f"{row['peak'] / base['peak']:>12.2f}",
            flush=True,
        )
    return rows


def l1_part(size, rounds):
    """What comparing adds to running the VGG: the operators that compare against those that do ReLU alone."""
    warnings.simplefilter("ignore")
    import torch

    from pix2pixhd.bench.timing import compare
    from pix2pixhd.losses import VGGLoss

    width, height = size
    criterion = VGGLoss(vgg="random")
    fake, real = pictures(width, height)
    ops = torch.ops.pix2pixhd
    maps = [(x.detach(), torch.rand_like(x)) for x in criterion.vgg(fake.detach())]
    kept = [ops.relu_distance_(x, y, None, None, False, False, True)[1:] for x, y in maps]
    gradients = [torch.rand_like(x) for x, _ in maps]

    def comparing():
        for (x, y), (mask, signs), g in zip(maps, kept, gradients, strict=True):
            ops.relu_distance_(x, y, None, None, False, False, True)
            ops.relu_distance_backward_(g, mask, signs, None, False, 1e-9)

    def relu_alone():
        for (x, y), (mask, _), g in zip(maps, kept, gradients, strict=True):
            ops.relu_mask_(x, None, True)
            ops.relu_mask_(y, None, False)
            ops.relu_backward_(g, mask)

    def whole():
        criterion(fake, real).backward()

    times = {name: t.median for name, t in compare({"c": comparing, "r": relu_alone, "w": whole}, rounds).items()}
    added = times["c"] - times["r"]
    print(
        f"VGGLoss at {width}x{height}, float32: {times['w']:.3f} s, of which the operators of the five compared maps "
        f"take {times['c'] * 1e3:.1f} ms, with ReLU alone {times['r'] * 1e3:.1f} ms: L1 adds "
        f"{added / (times['w'] - added):.2%}"
    )


def plot(results, path):
    """Time and peak of every rival against plain float32, over the size of the picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 5))
    sizes = list(results)
    for axis, key, title in zip(axes, ("seconds", "peak"), ("time", "peak memory"), strict=True):
        for rival in results[sizes[0]]:
            name, dtype = rival.split()
            ys = [results[size][rival][key] / results[size]["plain float32"][key] for size in sizes]
            style = "-" if dtype == "float32" else "--"
            axis.plot(sizes, ys, style, marker="o", color=f"C{RIVALS.index(name)}", label=rival)
        axis.set(title=f"VGGLoss, forward + backward: {title}", ylabel="of plain PyTorch in float32", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize="small", ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1024x512"], help=f"width x height; 'all' is {' '.join(SIZES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=1, help="processes per rival, taken in turns")
    parser.add_argument("--rivals", nargs="+", default=RIVALS, choices=RIVALS)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--memory-limit", type=int, default=768, help="MiB, of the rival 'bounded'")
    parser.add_argument("--l1-part", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = SIZES if options.sizes == ["all"] else options.sizes
    sizes = [tuple(int(side) for side in name.split("x")) for name in names]
    if options.child:
        print(json.dumps(measure(*options.child, sizes[0], options.rounds, options.memory_limit)))
    elif options.l1_part:
        for size in sizes:
            l1_part(size, options.rounds)
    else:
        results = {name: run_size(options, name) for name in names}
        if options.json:
            facts = {"memory_limit": options.memory_limit, "rounds": options.rounds, "turns": options.turns}
            options.json.write_text(json.dumps({**facts, "results": results}, indent=2) + "\n")
        if options.plot:
            plot(results, options.plot)


if __name__ == "__main__":
    main()
