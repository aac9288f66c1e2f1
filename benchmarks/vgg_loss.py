"""Time and memory of VGGLoss at one size, each rival in a fresh process.

    python benchmarks/vgg_loss.py [--size 1024x512] [--rounds 5]

Rivals: ``ours``, ``plain`` (the same loss in plain PyTorch), ``checkpoint`` (plain, with torch.utils.checkpoint over
the VGG's blocks), ``compiled`` (plain under torch.compile), each in float32 and under bfloat16 autocast. Times are
medians of forward + backward. Memory is resident memory above what stood before the loss was called: *retained* between
forward and backward, and the *peak* of both. VGG weights are random: they change neither.
"""

import argparse
import gc
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import time
import warnings

RIVALS = ["ours", "plain", "checkpoint", "compiled"]


def resident(key="VmRSS"):
    line = next(x for x in pathlib.Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def reset_peak():
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def checkpointed(vgg, weights):
    import torch.nn.functional as F
    from torch.utils.checkpoint import checkpoint

    from pix2pixhd.models.vgg import TAPS

    ends = [0, *(index + 1 for index in TAPS.values())]
    blocks = [vgg.features[a:b] for a, b in itertools.pairwise(ends)]

    def loss(fake, real):
        import torch

        total = 0.0
        for block, weight in zip(blocks, weights, strict=True):
            fake = checkpoint(block, fake, use_reentrant=False)
            with torch.no_grad():
                real = block(real)
            total = total + weight * F.l1_loss(fake, real)
        return total

    return loss


def measure(rival, dtype, width, height, rounds):
    warnings.simplefilter("ignore")
    import torch

    import pix2pixhd
    from pix2pixhd.losses import VGGLoss

    criterion = VGGLoss(vgg="random")
    loss = criterion
    if rival == "checkpoint":
        loss = checkpointed(criterion.vgg, criterion.weights)
    elif rival == "compiled":
        loss = torch.compile(criterion)
    generator = torch.Generator().manual_seed(0)
    fake, real = (torch.rand(1, 3, height, width, generator=generator) * 2 - 1 for _ in range(2))
    fake.requires_grad_()

    def forward():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            return loss(fake, real)

    seconds, retained, peak = [], [], []
    with pix2pixhd.backend("fused" if rival == "ours" else "reference"):
        for turn in range(rounds + 1):
            fake.grad = None
            gc.collect()
            reset_peak()
            before, begin = resident(), time.perf_counter()
            value = forward()
            middle = resident()
            value.backward()
            took = time.perf_counter() - begin
            if turn > 0:  # the first one compiles, lays weights out and touches memory for the first time
                seconds.append(took)
                retained.append(middle - before)
                peak.append(resident("VmHWM") - before)
            del value
    return {name: statistics.median(v) for name, v in (("seconds", seconds), ("retained", retained), ("peak", peak))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1024x512", help="width x height (default: 1024x512)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rivals", nargs="+", default=RIVALS, choices=RIVALS)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    if options.child:
        print(json.dumps(measure(*options.child, width, height, options.rounds)))
        return
    results = {}
    print(f"VGGLoss, forward + backward at {options.size}, medians of {options.rounds}")
    print(f"{'rival':<22} {'time':>9} {'of plain':>9} {'retained':>10} {'of plain':>9} {'peak':>10} {'of plain':>9}")
    for dtype in options.dtypes:
        for rival in sorted(options.rivals, key=lambda name: name != "plain"):
            command = [sys.executable, __file__, "--size", options.size, "--rounds", str(options.rounds)]
            out = subprocess.run([*command, "--child", rival, dtype], capture_output=True, text=True, check=True).stdout
            row = results[f"{rival} {dtype}"] = json.loads(out.splitlines()[-1])
            base = results.get("plain float32", row)
            print(
                f"{rival + ' ' + dtype:<22} {row['seconds']:>7.2f} s {row['seconds'] / base['seconds']:>9.2f} "
                f"{row['retained'] / 1e6:>7.0f} MB {row['retained'] / base['retained']:>9.3f} "
                f"{row['peak'] / 1e6:>7.0f} MB {row['peak'] / base['peak']:>9.2f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({"size": options.size, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
