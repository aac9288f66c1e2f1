"""What can be measured on a GPU only: kernel launches, and the bandwidth of a copy. And the dtypes of a device."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pix2pixhd.bench.timing import compare

__all__ = ["copy_bandwidth", "count_launches", "supported_precisions"]


def copy_bandwidth(device: torch.device) -> float:
    """Returns the bytes that a large copy on the device reads and writes per second."""
    source = torch.randn((1 << 28) if device.type == "cuda" else (1 << 22), device=device)
    target = torch.empty_like(source)
    seconds = compare({"copy": lambda: target.copy_(source)}, rounds=11)["copy"].median
    return 2 * source.nbytes / seconds


def count_launches(run: Callable[[], object]) -> int:
    """Returns the number of GPU kernels that one call launches, including copies and fills."""
    from torch.profiler import ProfilerActivity, profile

    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        run()
        torch.cuda.synchronize()
    events = recorded.key_averages()
    return sum(event.count for event in events if event.device_type.name == "CUDA")


def supported_precisions(device: torch.device) -> list[str]:
    """Returns the dtypes in which the device computes convolutions without emulating them, ``float32`` first."""
    if device.type == "cuda":
        newer = torch.cuda.get_device_capability(device) >= (8, 0)
        return ["float32", "tf32", "bfloat16", "float16"] if newer else ["float32", "float16"]
    found = ["float32"]
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        found.append("bfloat16")
    if torch.ops.mkldnn._is_mkldnn_fp16_supported():
        found.append("float16")
    return found
