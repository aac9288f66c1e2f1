"""Time and memory of VGGLoss or LPIPS from small to large images, each implementation in fresh processes.

    python benchmarks/vgg_loss.py [--sizes 1024x512 …] [--rounds 3] [--processes 1] [--json FILE] [--plot FILE]
    python benchmarks/vgg_loss.py --loss lpips --sizes 512x512 --batch 8
    python benchmarks/vgg_loss.py --empty-convolutions        memory alone, also of bfloat16 on CPUs without AVX-512
    python benchmarks/vgg_loss.py --l1-part        the cost of the L1 terms on top of running the VGG

Implementations, each in float32 and under bfloat16 autocast:

* ``ours``: VGGLoss with the fused operators;
* ``features``: ours, with the features of the real image computed in advance;
* ``bounded``: ours, with ``memory_limit`` set to ``--memory-limit`` MiB;
* ``plain``: the same loss in plain PyTorch;
* ``checkpoint``: plain, with torch.utils.checkpoint over the blocks of the VGG;
* ``compiled``: plain, under torch.compile.

With ``--loss lpips``, LPIPS on VGG16: ``plain`` is the class of the lpips package, ``torchmetrics`` that of
torchmetrics, and there is no ``checkpoint``.

Times are medians of forward + backward. Memory is resident memory above that before the loss was called: *retained*
between forward and backward, and the *peak* of each. It is measured in separate processes, in which freed memory is
returned to the system at once. The VGG weights are random, which changes neither time nor memory.
"""

import argparse
import contextlib
import gc
import itertools
import json
import pathlib
import statistics
import time
import warnings

from pix2pixhd.bench.memory import reset_peak, resident, run_child

IMPLEMENTATIONS = ["ours", "features", "bounded", "plain", "checkpoint", "compiled"]
LPIPS = ["ours", "features", "bounded", "plain", "torchmetrics", "compiled"]
SIZES = ["256x128", "512x256", "1024x512", "2048x1024"]
COLORS = {name: f"C{k}" for k, name in enumerate([*IMPLEMENTATIONS, "torchmetrics"])}
TITLES = {"vgg": "VGGLoss", "lpips": "LPIPS on VGG16"}
OURS = ("ours", "features", "bounded")


def checkpointed(vgg, weights):
    import torch
    import torch.nn.functional as F
    from torch.utils.checkpoint import checkpoint

    ends = [0, *(index + 1 for index, layer in enumerate(vgg.features) if isinstance(layer, torch.nn.ReLU))]
    taps = (1, 3, 5, 9, 13)  # relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1 are these ReLUs, counted from 1
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


def images(width, height, batch=1):
    import torch

    generator = torch.Generator().manual_seed(0)
    fake, real = (torch.rand(batch, 3, height, width, generator=generator) * 2 - 1 for _ in range(2))
    return fake.requires_grad_(), real


def make_criterion(loss, implementation, memory_limit):
    """The class of an implementation; that of the lpips package or torchmetrics for LPIPS."""
    from pix2pixhd import losses

    limit = memory_limit * 2**20 if implementation == "bounded" else None
    if loss == "vgg":
        return losses.VGGLoss(vgg="random", memory_limit=limit)
    if implementation in OURS:
        return losses.LPIPS(net="vgg", pnet_rand=True, memory_limit=limit)
    if implementation == "torchmetrics":
        from torchmetrics.functional.image.lpips import _LPIPS

        return _LPIPS(net="vgg", pnet_rand=True)
    import lpips

    return lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)


def make_loss(kind, implementation, real, dtype, memory_limit):
    """A function from the generated image to the loss."""
    import torch

    criterion = make_criterion(kind, implementation, memory_limit)
    half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16")
    loss = criterion
    if implementation == "checkpoint":
        loss = checkpointed(criterion.vgg, criterion.weights)
    elif implementation == "compiled":
        loss = torch.compile(criterion)
    elif implementation == "features":
        with half:
            real = criterion.features(real)

    def forward(fake):
        with half:
            return loss(fake, real).mean()

    return forward


def measure(kind, implementation, dtype, size, batch, rounds, memory_limit, empty=False):
    """Medians over the rounds after the first, which includes compilation, weight conversion and first allocations.

    ``empty`` leaves out the convolutions, which makes the times meaningless; see benchmarks/empty_convolutions.py.
    """
    warnings.simplefilter("ignore")
    from empty_convolutions import empty_convolutions

    import pix2pixhd

    width, height = size
    fake, real = images(width, height, batch)
    found = {"seconds": [], "retained": [], "peak_forward": [], "peak_backward": []}
    warm = False
    convolutions = empty_convolutions("cpu") if empty else contextlib.nullcontext()
    with convolutions, pix2pixhd.backend("fused" if implementation in OURS else "reference"):
        forward = make_loss(kind, implementation, real, dtype, memory_limit)
        # At least 3 seconds of rounds, because timings of a few milliseconds are noisy.
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


def measured(options, size, implementation, dtype, exact_memory):
    """Measure the time or the memory in a child process."""
    command = ["--loss", options.loss, "--sizes", size, "--batch", str(options.batch)]
    command += ["--memory-limit", str(options.memory_limit), "--child", implementation, dtype]
    command += ["--empty-convolutions"] if options.empty_convolutions else []
    rounds = 1 if exact_memory else options.rounds
    return run_child([__file__, *command, "--rounds", str(rounds)], exact_memory)


def run_size(options, size):
    """Measure all implementations at one size, print a table and return its rows by name."""
    title = TITLES[options.loss] + (f" of {options.batch} images" if options.batch > 1 else "")
    print(f"{title}, forward + backward at {size}, medians of {options.rounds} rounds in {options.processes} processes")
    columns = ("time", "of plain", "retained", "of plain", "peak forw.", "peak backw.", "of plain")
    print(f"{'implementation':<20}" + "".join(f"{column:>12}" for column in columns))
    names = [(implementation, dtype) for dtype in options.dtypes for implementation in options.implementations]
    names.sort(key=lambda name: name != ("plain", "float32"))  # the baseline comes first
    seconds = {name: [] for name in names}
    for _ in range(0 if options.empty_convolutions else options.processes):
        for name in names:
            seconds[name].append(measured(options, size, *name, exact_memory=False)["seconds"])
    rows = {}
    for name in names:
        row = measured(options, size, *name, exact_memory=True)
        del row["seconds"]  # this process is the one of the memory
        row["peak"] = max(row["peak_forward"], row["peak_backward"])
        time_columns = f"{'–':>12}{'–':>12}"
        rows[" ".join(name)] = row
        base = rows[" ".join(names[0])]
        if seconds[name]:
            row["seconds"] = statistics.median(seconds[name])
            time_columns = f"{row['seconds']:>10.3f} s{row['seconds'] / base['seconds']:>12.2f}"
        print(
            f"{' '.join(name):<20}{time_columns}"
            f"{row['retained'] / 1e6:>9.0f} MB{row['retained'] / base['retained']:>12.3f}"
            f"{row['peak_forward'] / 1e6:>9.0f} MB{row['peak_backward'] / 1e6:>9.0f} MB"
            f"{row['peak'] / base['peak']:>12.2f}",
            flush=True,
        )
    return rows


def l1_part(size, rounds):
    """The cost of the L1 terms: time of the operators with the distance minus time of the operators with ReLU only."""
    warnings.simplefilter("ignore")
    import torch

    from pix2pixhd.bench.timing import compare
    from pix2pixhd.losses import VGGLoss

    width, height = size
    criterion = VGGLoss(vgg="random")
    fake, real = images(width, height)
    ops = torch.ops.pix2pixhd
    maps = [(x.detach(), torch.rand_like(x)) for x in criterion.vgg(fake.detach())]
    saved = [ops.relu_distance_(x, y, None, None, False, False, True)[1:] for x, y in maps]
    gradients = [torch.rand_like(x) for x, _ in maps]

    def with_distance():
        for (x, y), (mask, signs), g in zip(maps, saved, gradients, strict=True):
            ops.relu_distance_(x, y, None, None, False, False, True)
            ops.relu_distance_backward_(g, mask, signs, None, False, 1e-9)

    def relu_only():
        for (x, y), (mask, _), g in zip(maps, saved, gradients, strict=True):
            ops.relu_mask_(x, None, True)
            ops.relu_mask_(y, None, False)
            ops.relu_backward_(g, mask)

    def whole():
        criterion(fake, real).backward()

    times = {name: t.median for name, t in compare({"c": with_distance, "r": relu_only, "w": whole}, rounds).items()}
    added = times["c"] - times["r"]
    print(
        f"VGGLoss at {width}x{height}, float32: {times['w']:.3f} s, of which the operators at the five tapped "
        f"layers take {times['c'] * 1e3:.1f} ms with L1 and {times['r'] * 1e3:.1f} ms with ReLU only: L1 adds "
        f"{added / (times['w'] - added):.2%}"
    )


def plot(results, path, title):
    """Plot time and peak memory of every implementation relative to plain float32, over the image size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 5))
    sizes = list(results)
    for axis, key, what in zip(axes, ("seconds", "peak"), ("time", "peak memory"), strict=True):
        for implementation in results[sizes[0]]:
            name, dtype = implementation.split()
            ys = [results[size][implementation][key] / results[size]["plain float32"][key] for size in sizes]
            style = "-" if dtype == "float32" else "--"
            axis.plot(sizes, ys, style, marker="o", color=COLORS[name], label=implementation)
        axis.set(title=f"{title}, forward + backward: {what}", ylabel="of plain PyTorch in float32", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize="small", ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", default="vgg", choices=list(TITLES))
    parser.add_argument("--batch", type=int, default=1, help="images")
    parser.add_argument("--sizes", nargs="+", default=["1024x512"], help=f"width x height; 'all' is {' '.join(SIZES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="timed processes per implementation, interleaved")
    parser.add_argument("--implementations", nargs="+", choices=list(COLORS), help="default: all of the loss")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--memory-limit", type=int, default=768, help="MiB, for the implementation 'bounded'")
    parser.add_argument("--l1-part", action="store_true")
    parser.add_argument(
        "--empty-convolutions", action="store_true", help="memory alone; see benchmarks/empty_convolutions.py"
    )
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = LPIPS if options.loss == "lpips" else IMPLEMENTATIONS
    options.implementations = options.implementations or known
    if options.empty_convolutions and (options.l1_part or options.plot):
        parser.error("--empty-convolutions measures memory alone; leave out --l1-part and --plot")
    if unknown := [name for name in options.implementations if name not in known]:
        parser.error(
            f"--implementations: {', '.join(unknown)} is not one of {', '.join(known)} of --loss {options.loss}"
        )
    names = SIZES if options.sizes == ["all"] else options.sizes
    sizes = [tuple(int(side) for side in name.split("x")) for name in names]
    if options.child:
        own = sizes[0], options.batch, options.rounds, options.memory_limit, options.empty_convolutions
        print(json.dumps(measure(options.loss, *options.child, *own)))
    elif options.l1_part:
        for size in sizes:
            l1_part(size, options.rounds)
    else:
        results = {name: run_size(options, name) for name in names}
        if options.json:
            settings = {
                "loss": options.loss,
                "batch": options.batch,
                "memory_limit": options.memory_limit,
                "rounds": options.rounds,
                "processes": options.processes,
            }
            options.json.write_text(json.dumps({**settings, "results": results}, indent=2) + "\n")
        if options.plot:
            plot(results, options.plot, TITLES[options.loss])


if __name__ == "__main__":
    main()
