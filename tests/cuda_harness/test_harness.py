"""Run every CUDA kernel on the CPU: plain, under Address- and UndefinedBehaviorSanitizer, and under ThreadSanitizer.

The kernels' sources are compiled with g++; their tests are the C++ files in this folder. Faults injected into a copy of
the sources show that the harness detects them.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from . import build
from .build import ADDRESS, PLAIN, THREAD, Builder, Run, Variant

L1, POINTWISE, PLAN = "multi_l1.cu", "multi_pointwise.cu", "launch_plan.cpp"
PERCEPTUAL, RELU, POOL = "perceptual.cuh", "perceptual_relu.cu", "perceptual_pool.cu"
LPIPS = "perceptual_lpips.cu"
HALF, BFLOAT16 = "__half", "__nv_bfloat16"
NORM, NORM_FORWARD, NORM_BACKWARD = "norm_act.cuh", "norm_act.cu", "norm_act_backward.cu"


class Fault(NamedTuple):
    """A replacement in one source, the test that must detect it, and a pattern of the message that must result."""

    name: str
    source: str
    old: str
    new: str
    variant: Variant
    tests: str
    found_by: str
    affected: tuple[str, ...] = ()
    # The dtypes of the build. Every test uses float32 first, and a faulty executable stops at its first failure.
    dtypes: tuple[str, ...] = ("float",)

    @property
    def compiled(self) -> tuple[str, ...]:
        return self.affected or (self.source,)


FAULTS = [
    Fault("missing barrier, race", "device.cuh", "  __syncthreads();\n", "", THREAD, "finish_sum", "data race", (L1,)),
    Fault("missing barrier, wrong value", "device.cuh", "  __syncthreads();\n", "", PLAIN, "l1", "partial sum 0",
          (L1,)),
    Fault("barrier in a branch", "device.cuh", "  __syncthreads();\n", "  if (threadIdx.x < 224) __syncthreads();\n",
          PLAIN, "l1", r"deadlock: 32 of 256 threads have ended, thread \d+ still waits at __syncthreads", (L1,)),
    Fault("warp sum one step short", "device.cuh", "offset > 0", "offset > 1", PLAIN, "l1", "partial sum", (L1,)),
    Fault("block sum one warp short", "device.cuh", "warp < kWarps", "warp < kWarps - 1", PLAIN, "l1", "partial sum",
          (L1,)),
    Fault("shared memory too small", "device.cuh", "warp_sum[kWarps]", "warp_sum[kWarps - 1]", ADDRESS, "l1",
          "out of bounds|overflow", (L1,)),
    Fault("load out of bounds", "device.cuh", "aligned && at + N <= count) return load", "aligned) return load",
          ADDRESS, "l1", "AddressSanitizer: use-after-poison", (L1,)),
    Fault("load skips the tail", "device.cuh", "at + i < count ? x[at + i] : narrow<T>(0.0)", "narrow<T>(0.0)", PLAIN,
          "l1", "partial sum 0", (L1,)),
    Fault("store out of bounds", "device.cuh", "if (at + i < count) x", "if (at + i <= count) x", PLAIN, "l1",
          "gradient: a write out of bounds", (L1,)),
    Fault("store skips the tail", "device.cuh", "if (at + i < count) x", "if (at + N <= count) x", PLAIN, "l1",
          "gradient of input", (L1,)),
    Fault("alignment not checked", "device.cuh", "chunk.aligned = tensor.aligned != 0;", "chunk.aligned = true;",
          ADDRESS, "l1", "misaligned address", (L1,)),
    Fault("wrong tensor", "device.cuh", "args.block_begin[middle] <= block", "args.block_begin[middle] < block", PLAIN,
          "l1", "partial sum", (L1,)),
    Fault("launch on another stream", "device.cuh", "  config.stream = static_cast<cudaStream_t>(stream);\n",
          "  (void)stream;\n", PLAIN, "simulator", "another stream", (L1,)),
    Fault("launch error not cleared", "device.cuh", "  if (error != cudaSuccess) cudaGetLastError();\n", "", PLAIN,
          "simulator", "leaves its error", (L1,)),
    Fault("divergent ballot", L1, "tile < stop;", "tile + lane * V < count;", PLAIN, "l1",
          "SIMULATOR: .*(deadlock|divergent warp).*__ballot_sync"),
    Fault("half of the signs missing", L1, "lane < kTileWords)", "lane < V)", PLAIN, "l1", "sign bits instead of"),
    Fault("same ballot for both signs", L1, "__ballot_sync(kFullWarp, difference < 0)",
          "__ballot_sync(kFullWarp, difference > 0)", PLAIN, "l1", "sign bits instead of|gradient of input"),
    Fault("sign words exchanged", L1, "lane == 2 * c ? positive", "lane == 2 * c ? negative", PLAIN, "l1",
          "gradient of input|sign bits"),
    Fault("bit of another lane", L1, ">> lane & 1u", ">> (lane ^ 1) & 1u", PLAIN, "l1", "gradient of input"),
    Fault("signs of the previous tile", L1, "signs[start / 16 + lane]", "signs[start / 16 + lane - 1]", PLAIN, "l1",
          "sign bits|write out of bounds"),
    Fault("padding not written", L1, "(count + kSignTile - 1) / kSignTile * kSignTile", "count", PLAIN, "l1",
          "sign bits instead of"),
    Fault("partial chunk treated as whole", "device.cuh", "chunk.aligned && chunk.count == kBlockChunk",
          "chunk.aligned", ADDRESS, "l1", "AddressSanitizer: use-after-poison", (L1,)),
    Fault("tile size depends on the gradient's dtype", L1, "  const int lane = threadIdx.x % 32;\n  const T plus",
          "  constexpr int V = kVector<T>;\n  constexpr int kTile = 32 * V;\n  constexpr int kTileWords = 2 * V;\n"
          "  constexpr int kRow = kWarps * kTile;\n  constexpr int kUnroll = 2;\n"
          "  const int lane = threadIdx.x % 32;\n  const T plus", PLAIN, "l1",
          "gradient of (input|target)", dtypes=("float", "double", HALF)),
    Fault("partial sums of all launches overlap", L1, "args.first_partial + blockIdx.x", "blockIdx.x", PLAIN, "l1",
          "partial sum", dtypes=build.DTYPES),
    Fault("32-bit index", "device.cuh", "int64_t begin;", "uint32_t begin;", PLAIN, "huge_tensors",
          "huge tensors: l1_forward", (L1,), dtypes=(BFLOAT16,)),
    Fault("final sum with a wrong stride", L1, "first + k * kThreads", "first + k * (kThreads + 1)", PLAIN,
          "finish_sum", "finish_sum of 257"),
    Fault("final sum of one round", L1, "first < count; first +=", "first < kThreads; first +=", PLAIN, "finish_sum",
          "finish_sum of 4097"),
    Fault("final sum out of bounds", L1, "value[k] = i < count", "value[k] = i <= count", ADDRESS, "finish_sum",
          "AddressSanitizer: use-after-poison"),
    Fault("no wait for the partial sums", L1, "  wait_for_previous_kernel();\n", "", PLAIN, "perceptual",
          "SIMULATOR: .*does not wait for the previous grid"),
    Fault("partial sums read before the wait", L1, "  wait_for_previous_kernel();\n  double sum = 0.0;\n",
          "  double sum = 0.0 * (threadIdx.x < count ? partial[threadIdx.x] : 0.0);\n  wait_for_previous_kernel();\n",
          THREAD, "perceptual", "data race"),
    Fault("statistics do not wait", NORM_FORWARD, "  wait_for_previous_kernel();\n", "", PLAIN, "norm_act",
          "SIMULATOR: .*does not wait for the previous grid"),
    Fault("sums of gradients do not wait", NORM_BACKWARD, "  wait_for_previous_kernel();\n", "", PLAIN, "norm_act",
          "SIMULATOR: .*does not wait for the previous grid"),
    Fault("overlap of code that does not wait", "device.cuh", "code.ptxVersion >= kOldestCode", "true", PLAIN,
          "simulator", "code that does not wait overlaps", (L1,)),
    Fault("overlap with the kernels of others", "device.cuh", "previous > 0 && kernels_wait", "kernels_wait", PLAIN,
          "simulator", "without a kernel of ours", (L1,)),
    Fault("padding included in the sum", POINTWISE, "      if (!kWhole && at + c >= count) break;\n", "", PLAIN,
          "pointwise", "partial sum"),
    Fault("hinge slope at the margin", POINTWISE, "constant * value <= 0 ? C(0)", "constant * value < 0 ? C(0)", PLAIN,
          "pointwise", "hinge.*gradient of tensor"),
    Fault("logistic loss overflows", POINTWISE, "log1p_of(exp_of(x < 0 ? x : -x))", "log1p_of(exp_of(-x))", PLAIN,
          "pointwise", "logistic.*partial sum"),
    Fault("logistic slope near zero", POINTWISE, "return x < 0 ? tail - label :", "return x < -1 ? tail - label :",
          PLAIN, "pointwise", "logistic.*gradient of tensor"),
    Fault("relu blocks NaN", PERCEPTUAL, "return !(x <= 0);", "return x > 0;", PLAIN, "perceptual",
          r"max\(0, x\).* is 0, not nan", (RELU,)),
    Fault("half of a byte missing", PERCEPTUAL, "bits, 1) << 4;", "bits, 1) << 4 & 0u;", PLAIN, "perceptual",
          "mask: word", (RELU,)),
    Fault("byte from the wrong neighbour", PERCEPTUAL, "__shfl_down_sync(kFullWarp, bits, 1)",
          "__shfl_down_sync(kFullWarp, bits, 2)", PLAIN, "perceptual", "mask: word", (RELU,)),
    Fault("divergent shuffle", PERCEPTUAL, "if constexpr (V == 4) bits |=",
          "if constexpr (V == 4) if (threadIdx.x % 4 != 3) bits |=", PLAIN, "perceptual",
          "SIMULATOR: .*(deadlock|divergent warp).*__shfl_down_sync", (RELU,)),
    Fault("overlapping bytes", PERCEPTUAL, "at / 8 % 4;", "at / 16 % 4;", THREAD, "perceptual", "data race", (RELU,)),
    Fault("wrong bias", PERCEPTUAL, "narrow<T>(widen(pack.value[c]) + widen(bias.value[c]))",
          "narrow<T>(widen(pack.value[c]) + 1.001f * widen(bias.value[c]))", PLAIN, "perceptual", r"max\(0, x\)",
          (RELU,)),
    Fault("bias of the wrong channels", RELU, "divide(chunk.channel + at).remainder", "divide(at).remainder", PLAIN,
          "perceptual", r"max\(0, x\)"),
    Fault("weight of the wrong pixels", RELU, "map.weight[chunk.pixel + map", "map.weight[map", PLAIN, "perceptual",
          "partial sum"),
    Fault("chunk across two images", RELU, "map.elements - within < kMapChunk ? map.elements - within : kMapChunk",
          "(image == 0 ? 2 : 1) * map.elements - within < kMapChunk\n"
          "    ? (image == 0 ? 2 : 1) * map.elements - within : kMapChunk", PLAIN, "perceptual",
          "partial sum"),
    Fault("mask out of bounds", RELU, "if (kWhole || at < count) put_bits<1>(mask, at, bytes);",
          "put_bits<1>(mask, at, bytes);", ADDRESS, "perceptual", "AddressSanitizer: use-after-poison"),
    Fault("alignment of the bias not checked", PERCEPTUAL, "aligned(is_aligned(data_))", "aligned(true)", ADDRESS,
          "perceptual", "misaligned address", (RELU,)),
    Fault("alignment of one side checked only", RELU, "is_aligned(input) && is_aligned(target)", "is_aligned(input)",
          ADDRESS, "perceptual", "misaligned address"),
    Fault("alignment in pooling not checked", POOL, "is_aligned(x) && is_aligned(out)", "true", ADDRESS, "pool",
          "misaligned address"),
    Fault("partial map chunk treated as whole", RELU, "aligned && count == kMapChunk", "aligned", ADDRESS, "perceptual",
          "AddressSanitizer: (use-after-poison|heap-buffer-overflow)"),
    Fault("32-bit start of a map chunk", RELU, "static_cast<int64_t>(block.remainder) * kMapChunk",
          "block.remainder * static_cast<unsigned>(kMapChunk)", PLAIN, "huge_tensors",
          "huge tensors: relu", dtypes=(BFLOAT16,)),
    Fault("32-bit corner of a window", POOL, "int64_t corner;", "uint32_t corner;", PLAIN, "huge_tensors",
          "relu_pool: ", dtypes=(BFLOAT16,)),
    Fault("target without relu", RELU, "      relu_vector(b[u]);\n", "", PLAIN, "perceptual",
          r"max\(0, target\)"),
    Fault("relu of an activated target", RELU, "if (!sides.target_is_activated) {", "{", PLAIN, "perceptual",
          r"max\(0, target\)"),
    Fault("padding compared", RELU,
          "    if (!kWhole && at >= count) a[u] = b[u];  // padding: contributes no distance and no signs\n",
          "    if (!kWhole && at >= count) sum += 1.0;\n", PLAIN, "perceptual", "partial sum"),
    Fault("signs exchanged", RELU, "difference > 0 ? 0x100u << c", "difference < 0 ? 0x100u << c", PLAIN, "perceptual",
          "signs: word"),
    Fault("difference not squared", RELU, "terms += difference * difference;", "terms += difference;", PLAIN,
          "perceptual", "partial sum"),
    Fault("sum instead of mean", RELU, "total / static_cast<double>(map.elements)", "total", PLAIN, "perceptual",
          "partial sum"),
    Fault("mask not applied", RELU, "pack[u].value[c] = passed[u] >> c & 1u ? value", "pack[u].value[c] = true ? value",
          PLAIN, "perceptual", "masked gradient"),
    Fault("term rounded separately", RELU, "narrow<T>(widen(value) + term)",
          "narrow<T>(widen(value) + widen(narrow<T>(term)))", PLAIN, "perceptual", "gradient of a distance",
          dtypes=("float", "double", HALF)),
    Fault("missing factor 2 of the square's derivative", RELU, "kept, 2.0 * coefficient", "kept, coefficient", PLAIN,
          "perceptual", "gradient of a distance"),
    Fault("coefficient replaced by the weight", RELU, "coefficient *= weight_at", "coefficient = weight_at", PLAIN,
          "perceptual", "gradient of a distance"),
    Fault("sum of the first image for all images", L1, "partial + blockIdx.x * count", "partial", PLAIN, "perceptual",
          "mean 1 is"),
    Fault("sum of another pixel's lanes", LPIPS, "threadIdx.x) % kWarp / kGroup * kGroup);", "threadIdx.x) * 0);",
          PLAIN, "lpips", "partial sum"),
    Fault("sum over a pixel one step short", LPIPS, "offset > 0", "offset > 1", PLAIN, "lpips", "partial sum"),
    Fault("lanes of missing pixels leave the sums", LPIPS, "    const Compute<T> distance = one.run();",
          "    if (!exists) continue;\n    const Compute<T> distance = one.run();", PLAIN, "lpips",
          "SIMULATOR: .*(deadlock|divergent warp).*__shfl"),
    Fault("norm without epsilon", LPIPS, "C(1) / (norm + C(kLpipsEps))", "C(1) / norm", PLAIN, "lpips",
          "partial sum .* is -?nan"),
    Fault("derivative of the norm missing", LPIPS, " - radial * p", "", PLAIN, "lpips", "derivative"),
    Fault("derivative at a norm of zero is NaN", LPIPS, "norm > C(kLpipsTiny) ?", "true ?", PLAIN, "lpips",
          "derivative .* is -?nan"),
    Fault("derivative overflows in float16", PERCEPTUAL, "std::is_same_v<T, __half>", "false", PLAIN, "lpips",
          "derivative .* is -?inf, not -?65504", (LPIPS,), dtypes=("float", "double", HALF)),
    Fault("mask of missing channels", LPIPS, "if (has(c)) put_bits", "put_bits", PLAIN, "lpips", "mask: "),
    Fault("pixels of the first image", LPIPS, "image * args.pixels + (exists", "(exists", PLAIN, "lpips",
          r"max\(0, input\)"),
    Fault("channels beyond the registers skipped", LPIPS, "k * kStep < args.channels; ++k", "k < 0; ++k", PLAIN,
          "lpips", r"max\(0, input\)"),
    Fault("weight of the wrong channels in lpips", LPIPS, "args.linear.template at<V>(static_cast<uint32_t>(c))",
          "args.linear.template at<V>(0)", PLAIN, "lpips", "partial sum"),
    Fault("alignment of the derivative not checked", LPIPS, "(kept == nullptr || is_aligned(kept))", "true", ADDRESS,
          "lpips", "misaligned address"),
    Fault("32-bit index of a pixel's channels", LPIPS, "pixel * args.channels,",
          "static_cast<uint32_t>(pixel * args.channels),", PLAIN, "huge_tensors", "relu_lpips: ", dtypes=(BFLOAT16,)),
    Fault("tie keeps the last element", POOL, "if (value > widen(best.value[c])", "if (value >= widen(best.value[c])",
          PLAIN, "pool", "codes: word"),
    Fault("pooling ignores NaN", POOL, " || value != value) {", ") {", PLAIN, "pool", "pooled"),
    Fault("rows and columns of a window exchanged", POOL, "(position & 1u) << c", "(position >> 1 & 1u) << c", PLAIN,
          "pool", "codes: word"),
    Fault("wrong offset in the batch", POOL, "window.batch * windows.map.height + 2",
          "window.batch * 2 * windows.rows + 2", PLAIN, "pool", "pooled"),
    Fault("bias of the wrong channels in pooling", POOL, "window.channel, out + to", "0, out + to", PLAIN, "pool",
          "pooled"),
    Fault("odd last column not written", POOL, "(shape.width + 1) / 2", "shape.width / 2", PLAIN, "pool", "gradient"),
    Fault("odd last row not written", POOL, "(shape.height + 1) / 2", "shape.height / 2", PLAIN, "pool", "gradient"),
    Fault("row out of bounds", POOL, "2 * window.row + 1 < map.height;", "true;", ADDRESS, "pool",
          "AddressSanitizer: use-after-poison"),
    Fault("column out of bounds", POOL, "2 * window.column + map.channels < map.width * map.channels;", "true;", PLAIN,
          "pool", "gradient"),
    Fault("barrier between two sums missing", NORM, "    __syncthreads();  // block_sum", "    // block_sum", THREAD,
          "norm_act", "data race", (NORM_BACKWARD,)),
    Fault("barrier before the sum of warps missing", NORM, "    __syncthreads();\n    if (threadIdx.x >= 32)",
          "    if (threadIdx.x >= 32)", PLAIN, "norm_act", "mean", (NORM_FORWARD,)),
    Fault("pixels beyond the chunk", NORM, "if (pixel + u * kStep < chunk.end) f", "f", PLAIN, "norm_act", "mean",
          (NORM_FORWARD,)),
    Fault("channels beyond the map read", NORM, "if (chunk.channel >= grid.channels) return sums;", "", ADDRESS,
          "norm_act", "AddressSanitizer", (NORM_FORWARD,)),
    Fault("channels beyond the map written", NORM, "  if (channel >= grid.channels) return;\n", "", PLAIN, "norm_act",
          "variance|mean|out of bounds", (NORM_FORWARD,)),
    Fault("inexact division", "device.cuh", "static_cast<uint64_t>(small) - 1) /", "0) /", PLAIN, "norm_act", "result",
          (NORM_FORWARD,)),
    Fault("rows beyond the image", NORM, "grid.rows - first_row < grid.rows_per_block ? grid.rows - first_row",
          "false ? grid.rows - first_row", ADDRESS, "norm_act", "AddressSanitizer", (NORM_FORWARD,)),
    Fault("reflection repeats the border", NORM, "return i < 0 ? -i :", "return i < 0 ? -i - 1 :", PLAIN, "norm_act",
          "result", (NORM_FORWARD,)),
    Fault("large means cancel", NORM_FORWARD, "origin = value - value == 0 ? value : C(0);", "origin = 0;", PLAIN,
          "norm_act", "variance"),
    Fault("chunks' means ignored", NORM_FORWARD, " + size * difference * difference;", ";", PLAIN, "norm_act",
          "variance"),
    Fault("image of the wrong map", NORM_FORWARD, "source_map = map * image.height",
          "source_map = map * grid.rows", PLAIN, "norm_act", "result"),
    Fault("residual before the activation", NORM_FORWARD, "      result = z;\n",
          "      result = z;\n      if (residual != nullptr) result = result + C(1);\n", PLAIN, "norm_act", "result"),
    Fault("32-bit index of a pixel", NORM_FORWARD, "const int64_t from =", "const uint32_t from =", PLAIN,
          "huge_tensors", "norm_act: ", dtypes=(BFLOAT16,)),
    Fault("32-bit index of a gradient", NORM_BACKWARD, "const int64_t at = first +", "const uint32_t at = first +",
          PLAIN, "huge_tensors", "norm_act_backward: ", dtypes=(BFLOAT16,)),
    Fault("gradient of the left border missing", NORM_BACKWARD,
          "if (i >= 1 && i <= before) copies.set(1, before - i, 1);", "", PLAIN, "norm_act", "sum"),
    Fault("gradient of a replicated border missing", NORM_BACKWARD,
          "if (i == size - 1) copies.set(2, before + size, after);", "", PLAIN, "norm_act", "sum"),
    Fault("border pixel treated as an inner one", NORM_BACKWARD, "row > image.top &&", "row >= image.top &&", PLAIN,
          "norm_act", "sum"),
    Fault("slope at zero", NORM_BACKWARD, "gradient = sign > 0 ?", "gradient = sign >= 0 ?", PLAIN, "norm_act", "sum"),
    Fault("activation not inverted", NORM_BACKWARD, "z = source * (C(1) / slope)", "z = source", PLAIN, "norm_act",
          "product"),
    Fault("statistics of the first image", NORM_BACKWARD, "const int64_t at = (per_image ? n : 0) * channels + c;",
          "const int64_t at = c;", PLAIN, "norm_act", "result"),
    Fault("parameters of another channel", NORM_BACKWARD, "n * kNormParameters * depth + c : i",
          "n * kNormParameters * depth : i", PLAIN, "norm_act", "result"),
    Fault("gradient of weight of one image", NORM_BACKWARD, "n < images; ++n", "n < images && n < 1; ++n", PLAIN,
          "norm_act", "gradient of (weight|bias)"),
    Fault("mean of the products missing", NORM_BACKWARD, "result = result + mean;", "", PLAIN, "norm_act",
          "gradient of x"),
    Fault("residual's gradient after the mask", NORM_BACKWARD, "out.residual[at] = narrow<T>(g);",
          "out.residual[at] = narrow<T>(widen(source[at]) > 0 ? g : C(0));", PLAIN, "norm_act",
          "gradient of the residual"),
    Fault("one tensor too many in a launch", PLAN, "open->args.count == kMaxTensors",
          "open->args.count == kMaxTensors + 1", ADDRESS, "plan", "out of bounds"),
    Fault("empty tensors planned", PLAN, "      if (blocks == 0) continue;\n", "", PLAIN, "plan", "FAILED: plan"),
    Fault("too many blocks", PLAN, "blocks > kMaxBlocks) {\n        plan", "blocks < 0) {\n        plan", PLAIN, "plan",
          "FAILED: plan of one block more"),
]  # fmt: skip

MISUSES = {
    "missing_lane": "deadlock: 33 of 64 threads have ended, thread 0 still waits at __ballot_sync",
    "two_places": "divergent warp: lane 16 is at __ballot_sync",
    "foreign_mask": "lane 16 is not in its own mask",
    "missing_thread": "deadlock: 32 of 64 threads have ended, thread 0 still waits at __syncthreads",
    "no_wait": "thread 7 does not wait for the previous grid",
    "two_barriers": "divergent block: thread 32 is at __syncthreads",
}


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    gxx = build.compiler()
    if gxx is None:
        pytest.skip("the harness needs g++, and none is on the PATH")
    return Builder(tmp_path_factory.mktemp("cuda_harness"), gxx)


@pytest.fixture(scope="session")
def executables(builder: Builder) -> dict[Variant, pathlib.Path]:
    return builder.build([variant for variant in build.VARIANTS if builder.links(variant)])


def executable_of(executables: dict[Variant, pathlib.Path], variant: Variant) -> pathlib.Path:
    if variant not in executables:
        pytest.skip(f"the library of {variant.sanitizer[0]} is not installed")
    return executables[variant]


@pytest.fixture(scope="session")
def full_runs(executables: dict[Variant, pathlib.Path]) -> dict[Variant, Run]:
    # The shim and plan tests run no kernels, so they cannot have races.
    tests = {THREAD: ["quick", "simulator", "l1", "pointwise", "finish_sum", "perceptual", "pool", "lpips", "norm_act"]}
    slowest_first = sorted(executables, key=build.VARIANTS.index, reverse=True)
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(lambda variant: build.run(executables[variant], *tests.get(variant, ["all"])), slowest_first)
        return dict(zip(slowest_first, runs, strict=True))


@pytest.fixture(scope="session")
def fault_runs(
    builder: Builder, executables: dict[Variant, pathlib.Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Run | Exception]:
    folder = tmp_path_factory.mktemp("faults")

    def run_one(numbered: tuple[int, Fault]) -> Run | Exception:
        number, fault = numbered
        if fault.variant not in executables:
            return Run(0, "")
        try:
            executable = builder.build_with_fault(
                fault.variant,
                folder / str(number),
                fault.source,
                fault.old,
                fault.new,
                fault.compiled,
                fault.dtypes,
            )
        except (LookupError, RuntimeError) as error:
            return error
        return build.run(executable, "stop", fault.tests)

    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(run_one, enumerate(FAULTS))
        return {fault.name: run for fault, run in zip(FAULTS, runs, strict=True)}


@pytest.mark.parametrize("variant", build.VARIANTS, ids=lambda variant: variant.name)
def test_every_kernel_runs_and_is_correct(
    variant: Variant,
    executables: dict[Variant, pathlib.Path],
    full_runs: dict[Variant, Run],
    record_property: Callable[[str, object], None],
) -> None:
    executable = executable_of(executables, variant)
    returncode, output = full_runs[variant]
    assert returncode == 0, output[-5000:]
    executed = {int(address, 16) for address in re.findall(r"^kernel (\w+) \d+$", output, re.M)}
    kernels = build.kernels_in(executable)
    missed = [name for address, name in kernels.items() if address not in executed]
    assert not missed, f"{len(missed)} of {len(kernels)} kernels were never executed: {missed}"
    text = "".join((build.ROOT / source).read_text() for source in build.sources())
    for name in re.findall(r"__global__[^;{]*?(\w+_kernel)\(", text):
        assert any(f"::{name}" in kernel for kernel in kernels.values()), f"{name} was built for no dtype"
    summary = re.search(r"^\d+ kernels executed.*$", output, re.M)
    assert summary is not None
    assert " 0 failed" in summary[0]
    record_property("cuda_harness", f"{variant.name}: {len(kernels)} kernels of csrc/cuda; {summary[0]}")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_injected_fault_is_detected(
    fault: Fault, executables: dict[Variant, pathlib.Path], fault_runs: dict[str, Run | Exception]
) -> None:
    executable_of(executables, fault.variant)
    result = fault_runs[fault.name]
    if isinstance(result, Exception):
        raise result
    assert result.returncode != 0, f"the harness does not detect it:\n{result.output[-2000:]}"
    assert re.search(fault.found_by, result.output), (
        f"detected by another check than expected:\n{result.output[-5000:]}"
    )


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_of_barriers_and_warp_operations_is_detected(
    misuse: str, executables: dict[Variant, pathlib.Path]
) -> None:
    returncode, output = build.run(executables[PLAIN], "misuse", misuse)
    assert returncode == 3
    assert MISUSES[misuse] in output


def test_data_race_is_detected(executables: dict[Variant, pathlib.Path]) -> None:
    returncode, output = build.run(executable_of(executables, THREAD), "misuse", "race")
    assert returncode != 0
    assert "ThreadSanitizer: data race" in output
