"""Where the time of the feature matching loss goes, compared with the memory traffic that it cannot avoid.

    python benchmarks/l1_profile.py [--size 1024x512] [--dtypes float32 bfloat16] [--rounds 30]

Times, interleaved on the CPU: the whole loss with its backward, its two operators alone, the limit of `pix2pixhd bench`
(`torch.add` of both sides into a third tensor), reading both sides (`torch.sum`) and writing one gradient
(`Tensor.fill_`). The limit reads and writes at the same time. A loss cannot: its forward only reads, and its backward
only writes. "read, then write" is the limit of two such passes. What `torch.compile` generates reads both sides in
forward and again in backward, where it writes the gradient: 5/3 of the limit's traffic.
"""

import argparse
import dataclasses

from arguments import image_size, positive
from steps import DTYPES

from pix2pixhd.bench.timing import compare

ROWS = {
    "loss": "forward and backward of the loss",
    "forward": "  of which operator, forward",
    "backward": "  of which operator, backward",
    "limit": "limit: read and write at once",
    "read": "read both sides",
    "write": "write one gradient",
}


def implementations(setup):
    """The timed functions by name, and the bytes that each of them reads and writes."""
    import torch

    from pix2pixhd.bench.cases import feature_matching

    case = feature_matching(setup)
    fake, real = ([x.detach() for x in side] for side in case.inputs[0])
    count = len(fake)
    weights, wanted = [1.0] * count, list(range(count))
    operators = torch.ops.pix2pixhd
    loss, signs = operators.multi_l1(fake, real, weights, wanted)
    gradients = [torch.empty_like(x) for x in fake]
    sizes, ndims = [n for x in fake for n in x.shape], [x.dim() for x in fake]
    dtypes = [{torch.float32: 6, torch.bfloat16: 15}[setup.dtype]] * count
    upstream = torch.ones_like(loss)
    # `sum` is fast in float32 only: bfloat16 values are read in pairs, whose sum has no meaning.
    pairs = [x.flatten()[: x.numel() // 2 * 2].view(torch.float32) for x in (*fake, *real)]

    def forward():
        operators.multi_l1_out(fake, real, weights, wanted, signs)

    def backward():
        operators.multi_l1_backward_out(upstream, signs, weights, sizes, [], ndims, dtypes, wanted, gradients)

    def read():
        for x in pairs:
            x.sum()

    def write():
        for x in gradients:
            x.fill_(1.0)

    side = sum(x.nbytes for x in fake)
    functions = {
        "loss": case.run_of("fused"),
        "forward": forward,
        "backward": backward,
        "limit": case.run_of("limit"),
        "read": read,
        "write": write,
    }
    traffic = [3 * side, 2 * side + signs.nbytes, side + signs.nbytes, 3 * side, 2 * side, side]
    return functions, dict(zip(functions, traffic, strict=True))


def describe(dtype, seconds, traffic):
    limit = seconds["limit"]
    print(dtype)
    for name, title in ROWS.items():
        print(f"  {title:<36}{1e3 * seconds[name]:>8.2f} ms{traffic[name] / seconds[name] / 1e9:>8.1f} GB/s")
    operators = seconds["forward"] + seconds["backward"]
    for title, value in {
        "autograd and Python": seconds["loss"] - operators,
        "read, then write": seconds["read"] + seconds["write"],
    }.items():
        print(f"  {title:<36}{1e3 * value:>8.2f} ms")
    print(
        f"  share of the limit: loss {limit / seconds['loss']:.0%}, operators {limit / operators:.0%}, "
        f"read, then write {limit / (seconds['read'] + seconds['write']):.0%}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=image_size, default="1024x512")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--rounds", type=positive(int), default=30)
    options = parser.parse_args()

    import torch

    from pix2pixhd.bench.case import Setup

    width, height = map(int, options.size.split("x"))
    for dtype in options.dtypes:
        setup = dataclasses.replace(Setup(), width=width, height=height, dtype=getattr(torch, dtype))
        functions, traffic = implementations(setup)
        timings = compare(functions, rounds=options.rounds)
        describe(dtype, {name: timing.median for name, timing in timings.items()}, traffic)


if __name__ == "__main__":
    main()
