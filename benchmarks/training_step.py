"""Time and memory of a whole training step: this package against NVIDIA's pix2pixHD, with the same weights.

    python benchmarks/training_step.py [--size 1024x512] [--rounds 3] [--json FILE]

Implementations: ``original`` (benchmarks/original_step.py, plain PyTorch) and ``ours`` (pix2pixhd.training), in float32
and under bfloat16 autocast, each in fresh processes. Global generator, two discriminator scales, LSGAN + feature
matching + VGG loss. The VGG weights are random, which changes neither time nor memory. Memory is the peak resident
memory during a step minus that before the step, when the weights and the optimizer state exist already.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import time
import warnings

from processes import reset_peak, resident, run_script

IMPLEMENTATIONS = ["original", "ours"]


def networks(options, device="cpu"):
    import torch

    from pix2pixhd.models import define_D, define_G

    torch.manual_seed(0)
    channels = options.label_nc + 1  # one-hot labels and instance edges
    netG = define_G(channels, 3, options.ngf, "global", 4, options.n_blocks)
    netD = define_D(channels + 3, options.ndf, 3, num_D=2, getIntermFeat=True)
    return netG.to(device), netD.to(device)


def batch(options, device="cpu"):
    """An encoded label map of 16×16 regions, and an image."""
    import torch
    import torch.nn.functional as F

    width, height = (int(side) for side in options.size.split("x"))
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, options.label_nc, (1, height // 16, width // 16), generator=generator)
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    one_hot = F.one_hot(labels, options.label_nc).permute(0, 3, 1, 2).float()
    condition = torch.cat([one_hot, torch.zeros(1, 1, height, width)], dim=1)
    real = torch.rand(1, 3, height, width, generator=generator) * 2 - 1
    return condition.to(device), real.to(device)


def adam(netG, netD, fused=False):
    import torch

    from pix2pixhd.training.optimizer import Adam

    kind = Adam if fused else torch.optim.Adam
    return [kind(net.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=fused) for net in (netG, netD)]


def make_step(implementation, options, device="cpu", channels_last=False):
    """A function from the encoded input and the image to the loss terms, which updates the weights."""
    import torch
    from original_step import OriginalStep

    from pix2pixhd.losses import DiscriminatorLoss, GeneratorLoss
    from pix2pixhd.models.vgg import load_vgg
    from pix2pixhd.training.step import compute_gradients

    netG, netD = networks(options, device)
    vgg = load_vgg("random").to(device)
    optimizers = adam(netG, netD, fused=implementation == "ours")  # as in the training package
    if implementation == "original":
        vgg.to(memory_format=torch.contiguous_format)
        return OriginalStep(netG, netD, vgg, optimizers)
    if channels_last:
        for net in (netG, netD):
            net.to(memory_format=torch.channels_last)
    loss_G, loss_D = GeneratorLoss(preset="nvidia", vgg=vgg).to(device), DiscriminatorLoss(preset="nvidia")

    def step(condition, real):
        for optimizer in optimizers:
            optimizer.zero_grad()
        terms = compute_gradients(netG, netD, loss_G, loss_D, condition, real)
        for optimizer in optimizers:
            optimizer.step()
        return terms

    return step


def measure(implementation, dtype, options):
    warnings.simplefilter("ignore")
    import torch

    import pix2pixhd

    condition, real = batch(options)
    half = torch.autocast("cpu", dtype=torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
    seconds, peaks = [], []
    with pix2pixhd.backend("reference" if implementation == "original" else "fused"):
        step = make_step(implementation, options, channels_last=dtype == "bfloat16")  # as in the training package
        for step_index in range(options.rounds + 1):
            reset_peak()
            before, begin = resident(), time.perf_counter()
            with half:
                step(condition, real)
            if step_index > 0:  # the first step creates the optimizer state
                seconds.append(time.perf_counter() - begin)
                peaks.append(resident("VmHWM") - before)
    return {"seconds": statistics.median(seconds), "peak": statistics.median(peaks)}


def run_child(options, implementation, dtype):
    """Measure the time in one process and the memory in another."""
    command = ["--size", options.size, "--ngf", str(options.ngf), "--ndf", str(options.ndf)]
    command += [
        "--n-blocks",
        str(options.n_blocks),
        "--label-nc",
        str(options.label_nc),
        "--child",
        implementation,
        dtype,
    ]
    timed = run_script(__file__, [*command, "--rounds", str(options.rounds)])
    return {**timed, "peak": run_script(__file__, [*command, "--rounds", "1"], exact_memory=True)["peak"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1024x512", help="width x height")
    parser.add_argument("--ngf", type=int, default=64)
    parser.add_argument("--ndf", type=int, default=64)
    parser.add_argument("--n-blocks", type=int, default=9)
    parser.add_argument("--label-nc", type=int, default=35)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--implementations", nargs="+", default=IMPLEMENTATIONS, choices=IMPLEMENTATIONS)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*options.child, options)))
        return
    print(f"training step at {options.size}, medians of {options.rounds} rounds")
    print(f"{'implementation':<20}{'time':>10}{'speed-up':>10}{'peak':>12}{'of original':>13}")
    rows = {}
    for dtype in options.dtypes:
        for implementation in options.implementations:
            row = rows[f"{implementation} {dtype}"] = run_child(options, implementation, dtype)
            base = next(iter(rows.values()))
            print(
                f"{implementation + ' ' + dtype:<20}{row['seconds']:>8.2f} s{base['seconds'] / row['seconds']:>10.2f}"
                f"{row['peak'] / 1e6:>9.0f} MB{row['peak'] / base['peak']:>13.2f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({"size": options.size, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
