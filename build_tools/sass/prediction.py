"""The predicted speed of a kernel on a GPU. A prediction, not a measurement: it finds what cannot be fast.

The share of the bandwidth is the time of a device copy of the same bytes over the time of the kernel. Both need the
ramp ``LATENCY`` until the first bytes arrive, and both reach at most ``COPY`` of the published bandwidth. The time of
the kernel is the longest of

* memory: the bytes that it must move, at the speed of the copy;
* issue: its instructions per element, at 4 warp instructions per clock and multiprocessor;
* float64: its float64 instructions, at their own rate;
* latency: its loads, if each resident thread has ``Path.in_flight`` bytes in flight for ``LATENCY`` (Little's law);

plus the tail, in which the multiprocessors without a block of the last wave wait for the time of one block that is
bound by latency, plus the launches that wait for it. Caches and the time until the first launch are not modelled, and
what keeps the issue rate below its peak is not either. Instructions are upper bounds; see ``kernels``.
"""

from __future__ import annotations

import dataclasses
import math

from build_tools.sass.disassembly import Kernel
from build_tools.sass.kernels import THREADS, Path, Work, main_path, work_of

COPY = 0.92  # assumed share of the published bandwidth that a device copy reaches
LATENCY = 0.7e-6  # assumed seconds until a load from a busy memory arrives
DEPENDENT_LAUNCH = 4.5e-6  # assumed seconds of a kernel of one block that waits for the one before
OVERLAPPED_LAUNCH = 1.5e-6  # the same with programmatic dependent launch, which the GPU code shows as ACQBULK
REGISTERS = 65536  # per multiprocessor, of all GPUs below


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Published peak numbers.

    Attributes:
        name: The product.
        archs: Architectures of its GPU code in order of preference.
        multiprocessors: Number of enabled multiprocessors.
        clock: Boost clock in Hz.
        bandwidth: Of the device memory, bytes/s.
        float64: float64 instructions of a thread per clock and multiprocessor.
        threads: Resident threads per multiprocessor.
        shared: Bytes of shared memory per multiprocessor.
    """

    name: str
    archs: tuple[str, ...]
    multiprocessors: int
    clock: float
    bandwidth: float
    float64: int
    threads: int
    shared: int


# Multiprocessors, clock and bandwidth: NVIDIA's A100 (SXM, 80 GB) and H100 (SXM) data sheets and architecture
# whitepapers, and the Ada architecture whitepaper. H100's clock follows from its 67 TFLOPS in float32. float64, threads
# and shared memory: tables of the CUDA C++ Programming Guide. An RTX 4090 runs the code for sm_80 of the default build.
GPUS = (
    Gpu("A100", ("sm_80",), 108, 1.41e9, 2039e9, 32, 2048, 164 << 10),
    Gpu("H100", ("sm_90",), 132, 1.98e9, 3350e9, 64, 2048, 228 << 10),
    Gpu("RTX 4090", ("sm_89", "sm_80"), 128, 2.52e9, 1008e9, 2, 1536, 100 << 10),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A kernel at a size of the paper's 512p setting (1024x512, batch 1, num_D 2, n_layers_D 3).

    Attributes:
        label: The row of the table.
        kernel: Name by dtype.
        elements: Elements of the tensors that it reads.
        then: The family of the kernel that adds the partial sums.
    """

    label: str
    kernel: dict[str, str]
    elements: int
    then: str | None = None


def _all(name: str) -> dict[str, str]:
    return {dtype: name.format(t=dtype) for dtype in ("float32", "bfloat16")}


FEATURES = 24_114_048  # of both scales of the discriminator, without the predictions
MAPS = 63_963_136  # of relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1
LARGE = 64 * 512 * 1024  # VGG's relu1_1, or 64 channels of a generator
CASES = (
    Case("feature matching, forward", _all("l1_forward<{t}, {t}, 1>"), FEATURES, "finish_sum"),
    Case("feature matching, backward", _all("l1_backward<{t}>"), FEATURES),
    Case("L1 of VGG's feature maps, forward", _all("l1_forward<{t}, {t}, 1>"), MAPS, "finish_sum"),
    Case("L1 of VGG's feature maps, backward", _all("l1_backward<{t}>"), MAPS),
    Case("squared error of a large tensor, forward", _all("pointwise_forward<{t}, 0>"), LARGE, "finish_sum"),
    Case("VGG loss, ReLU (256x128x256)", _all("relu<{t}, 1>"), LARGE // 4),
    Case("VGG loss, tap (64x512x1024)", _all("relu_distance<{t}, 0, 1>"), LARGE, "finish_sum"),
    Case("VGG loss, tap, backward", _all("relu_backward<{t}, 1>"), LARGE),
    Case("VGG loss, pooling", _all("relu_pool<{t}, 1, 1>"), LARGE),
    Case("VGG loss, pooling, backward", _all("relu_pool_backward<{t}, 1>"), LARGE),
    Case(
        "LPIPS, tap",
        {"float32": "relu_lpips<float32, 16, 1>", "bfloat16": "relu_lpips<bfloat16, 8, 1>"},
        LARGE,
        "finish_sum",
    ),
    *(
        case
        for last, layout in enumerate(("contiguous", "channels-last"))
        for case in (
            Case(
                f"norm_act, statistics, {layout}", _all(f"norm_statistics<{{t}}, {last}>"), LARGE, "finish_statistics"
            ),
            Case(f"norm_act, forward, {layout}", _all(f"norm_act<{{t}}, {last}>"), LARGE),
            Case(
                f"norm_act, sums of the backward, {layout}",
                _all(f"norm_act_sums<{{t}}, {last}>"),
                LARGE,
                "finish_gradient_sums",
            ),
            Case(f"norm_act, backward, {layout}", _all(f"norm_act_backward<{{t}}, {last}>"), LARGE),
        )
    ),
)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The share of a copy's bandwidth, and what bounds the kernel itself: memory, issue, float64 or latency."""

    share: float
    bound: str
    microseconds: float


def blocks_by_registers(registers: int) -> int:
    """Blocks for which a multiprocessor has registers, which are allocated in units of 8 per thread."""
    return REGISTERS // (math.ceil(registers / 8) * 8 * THREADS)


def resident_blocks(kernel: Kernel, gpu: Gpu) -> int:
    """Blocks that run on one multiprocessor at a time. Each block reserves 1 KiB of shared memory in addition."""
    return min(gpu.threads // THREADS, blocks_by_registers(kernel.registers), gpu.shared // (kernel.shared + 1024))


def predict(kernel: Kernel, work: Work, path: Path, elements: int, gpu: Gpu, then: Kernel | None = None) -> Prediction:
    """Predict one launch over ``elements``, and the launch of ``then`` that waits for it."""
    resident = resident_blocks(kernel, gpu)
    per_second = gpu.multiprocessors * gpu.clock
    copy = elements * work.moved / (COPY * gpu.bandwidth)
    bounds = {
        "memory": copy,
        "issue": elements * path.instructions / (4 * 32 * per_second),
        "float64": elements * path.float64 / (gpu.float64 * per_second),
    }
    passes = 1
    if path.in_flight:
        in_flight = gpu.multiprocessors * resident * THREADS * path.in_flight
        bounds["latency"] = elements * path.loaded / in_flight * LATENCY
        passes = math.ceil(work.per_thread * path.loaded / path.in_flight)
    bound = max(bounds, key=lambda name: bounds[name])
    blocks = math.ceil(elements / (work.per_thread * THREADS))
    filled = blocks % (resident * gpu.multiprocessors) / (resident * gpu.multiprocessors)
    tail = passes * LATENCY * (1 - filled)
    after = 0.0
    if then is not None:
        overlaps = any(i.name == "ACQBULK" for i in then.instructions)
        after = OVERLAPPED_LAUNCH if overlaps else DEPENDENT_LAUNCH
    time = LATENCY + bounds[bound] + tail + after
    return Prediction((LATENCY + copy) / time, bound, time * 1e6)


def predictions(kernels: dict[str, list[Kernel]]) -> dict[str, dict[str, dict[str, Prediction]]]:
    """Predictions of ``CASES`` by label, dtype and GPU, for the architectures that are given."""
    table: dict[str, dict[str, dict[str, Prediction]]] = {}
    for gpu in GPUS:
        arch = next((arch for arch in gpu.archs if arch in kernels), None)
        if arch is None:
            continue
        by_name = {kernel.name: kernel for kernel in kernels[arch]}
        by_family = {kernel.family: kernel for kernel in kernels[arch]}
        for case in CASES:
            for dtype, name in case.kernel.items():
                kernel, then = by_name.get(name), by_family.get(case.then) if case.then else None
                work = work_of(kernel) if kernel else None
                if kernel is None or work is None or (case.then and then is None):
                    raise LookupError(f"the library has no {name} or {case.then}: update CASES in {__name__}.")
                row = table.setdefault(case.label, {}).setdefault(dtype, {})
                row[gpu.name] = predict(kernel, work, main_path(kernel, work), case.elements, gpu, then)
    return table
