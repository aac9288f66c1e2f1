"""What is counted in each kernel: its main path, and what that path does per element.

The *main path* is the code for whole, aligned chunks:

* Anchors are the widest global loads (or stores) of the kernel, 16 bytes per thread where the data is aligned. A kernel
  has them in its main path and again in its path for incomplete or unaligned chunks.
* If anchors are in loops, a region is such a loop; otherwise a region is all code between anchors. Regions whose path
  also accesses single elements are not the main one. Of several loops, the one with the fewest instructions per element
  counts, the unrolled one. Of several straight paths, the one with the most, for example with a bias.
* ``elements`` of a region are the bytes of its anchors over the anchored bytes per element. If the compiler has
  duplicated code for a condition, for example with and without bias, both copies are counted, instructions and bytes.
* The rest of the main path, the code before and after the region, is executed once per thread and divided by the
  elements per thread.

Instructions are counted statically. Where the region contains branches, for example over the kind of activation or the
slow path of a 64-bit division, all alternatives count, which is an upper bound. Functions that are called, code for
diverged warps, and the loop that finds a block's tensor (counted once) are not followed.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterable

from build_tools.sass.disassembly import Instruction, Kernel

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
THREADS = 256
_FLOAT64 = ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX")


@functools.cache
def constant(name: str) -> int:
    """The value of a constant in the CUDA headers."""
    for header in sorted((ROOT / "csrc" / "cuda").iterdir()):
        match = re.search(rf"\b{name} = (\d+);", header.read_text(encoding="utf-8"))
        if match:
            return int(match[1])
    raise LookupError(f"csrc/cuda has no constant {name}; update build_tools/sass/kernels.py.")


@dataclasses.dataclass(frozen=True)
class Work:
    """What a kernel does per element.

    Attributes:
        anchor: LDG or STG.
        anchored: Bytes per element of the anchors.
        moved: Bytes per element that the kernel must read and write.
        per_thread: Elements per thread.
        element: Bytes of an element; of two dtypes, of the smaller one.
    """

    anchor: str
    anchored: float
    moved: float
    per_thread: float
    element: int


def _vector(dtype: str) -> int:
    return 8 if SIZE[dtype] == 2 else 4


def _l1_forward(a: str, b: str, signs: str) -> Work:
    size = SIZE[a] + SIZE[b]
    widest = max(SIZE[a], SIZE[b])
    anchored = size if SIZE[a] == SIZE[b] else widest
    return Work("LDG", anchored, size + 0.25 * int(signs), constant("kBlockChunk") / THREADS, min(SIZE[a], SIZE[b]))


def _l1_backward(t: str) -> Work:
    return Work("STG", SIZE[t], SIZE[t] + 0.25, constant("kBlockChunk") / THREADS, SIZE[t])


def _pointwise_forward(t: str, kind: str) -> Work:
    return Work("LDG", SIZE[t], SIZE[t], constant("kBlockChunk") / THREADS, SIZE[t])


def _pointwise_backward(t: str, kind: str) -> Work:
    reads = 0 if kind == "2" else 1  # the derivative of a linear function is constant
    return Work("STG", SIZE[t], (reads + 1) * SIZE[t], constant("kBlockChunk") / THREADS, SIZE[t])


def _relu(t: str, mask: str) -> Work:
    return Work("STG", SIZE[t], 2 * SIZE[t] + int(mask) / 8, constant("kMapChunk") / THREADS, SIZE[t])


def _relu_distance(t: str, distance: str, keep: str) -> Work:
    kept = {"00": 0.0, "01": 3 / 8, "10": 0.0, "11": SIZE[t] + 1 / 8}[distance + keep]
    stores = 3 if distance + keep == "11" else 2
    return Work("STG", stores * SIZE[t], 4 * SIZE[t] + kept, constant("kMapChunk") / THREADS, SIZE[t])


def _relu_backward(t: str, term: str) -> Work:
    extra = {"0": 0.0, "1": 2 / 8, "2": SIZE[t]}[term]
    return Work("STG", SIZE[t], 2 * SIZE[t] + 1 / 8 + extra, constant("kMapChunk") / THREADS, SIZE[t])


def _relu_pool(t: str, aligned: str, codes: str) -> Work:  # per element of the map before pooling
    return Work("STG", SIZE[t] / 4, 1.25 * SIZE[t] + int(codes) * 3 / 32, 4 * _vector(t), SIZE[t])


def _relu_pool_backward(t: str, aligned: str) -> Work:
    return Work("STG", SIZE[t], 1.25 * SIZE[t] + 3 / 32, 4 * _vector(t), SIZE[t])


def _relu_lpips(t: str, group: str, keep: str) -> Work:
    channels = constant("kHeldChannels") if group == "32" else int(group) * _vector(t)
    stores = 2 + int(keep)
    per_thread = constant("kLpipsPixels") * channels / THREADS
    return Work("STG", stores * SIZE[t], (2 + stores) * SIZE[t] + int(keep) / 8, per_thread, SIZE[t])


def _norm_statistics(t: str, last: str) -> Work:
    return Work("LDG", SIZE[t], SIZE[t], _norm_chunk(t, last), SIZE[t])


def _norm_act_sums(t: str, last: str) -> Work:
    return Work("LDG", 2 * SIZE[t], 2 * SIZE[t], _norm_chunk(t, last), SIZE[t])


def _norm_chunk(t: str, last: str) -> float:
    deep = constant("kDeepChunk") * constant("kChannelVectors") * (16 // SIZE[t])
    return (deep if last == "1" else constant("kPlaneChunk")) / THREADS


def _norm_act(t: str, last: str) -> Work:
    return Work("STG", SIZE[t], 2 * SIZE[t], constant("kLoads") * (16 // SIZE[t]), SIZE[t])


def _norm_act_backward(t: str, last: str) -> Work:
    return Work("STG", 2 * SIZE[t], 3 * SIZE[t], constant("kLoads") * (16 // SIZE[t]), SIZE[t])


WORK: dict[str, Callable[..., Work]] = {
    "l1_forward": _l1_forward,
    "l1_backward": _l1_backward,
    "pointwise_forward": _pointwise_forward,
    "pointwise_backward": _pointwise_backward,
    "relu": _relu,
    "relu_distance": _relu_distance,
    "relu_backward": _relu_backward,
    "relu_pool": _relu_pool,
    "relu_pool_backward": _relu_pool_backward,
    "relu_lpips": _relu_lpips,
    "norm_statistics": _norm_statistics,
    "norm_act_sums": _norm_act_sums,
    "norm_act": _norm_act,
    "norm_act_backward": _norm_act_backward,
}
# Kernels of a few thousand threads, which are not counted per element.
SMALL = ("finish_sum", "finish_statistics", "finish_gradient_sums", "norm_parameters", "norm_affine")


def work_of(kernel: Kernel) -> Work | None:
    """What a kernel does per element; None for a kernel of few threads.

    Raises:
        LookupError: If this file does not describe the kernel, or describes other template arguments.
    """
    if kernel.family in SMALL:
        return None
    try:
        return WORK[kernel.family](*kernel.arguments)
    except (KeyError, TypeError) as error:
        raise LookupError(
            f"build_tools/sass/kernels.py does not describe {kernel.name}: update WORK or SMALL."
        ) from error


@dataclasses.dataclass(frozen=True)
class Path:
    """The main path of a kernel; see above.

    Attributes:
        instructions: Per element.
        float64: float64 arithmetic instructions and conversions per element.
        load: Bytes of the widest global load per thread in the region; 0 without a load.
        store: Bytes of the widest global store.
        narrow_loads: Global loads of less than 16 bytes per thread, per element.
        loaded: Bytes per element of the widest loads.
        in_flight: Bytes of the widest loads that a thread issues together: of one pass through the region.
        local: Accesses to local memory, which spilled registers cause, in the region.
    """

    instructions: float
    float64: float
    load: int
    store: int
    narrow_loads: float
    loaded: float
    in_flight: float
    local: int


def _closure(start: Iterable[int], neighbours: list[list[int]]) -> set[int]:
    """The blocks that can be reached from ``start``, and ``start`` itself."""
    seen = set(start)
    open_blocks = list(seen)
    while open_blocks:
        for block in neighbours[open_blocks.pop()]:
            if block not in seen:
                seen.add(block)
                open_blocks.append(block)
    return seen


def _is_float64(instruction: Instruction) -> bool:
    return instruction.name in _FLOAT64 or (instruction.name in ("F2F", "I2F", "F2I") and ".F64" in instruction.opcode)


def _straight_region(
    start: int, anchored: list[int], after: dict[int, set[int]], before: dict[int, set[int]]
) -> frozenset[int]:
    """The blocks between the anchors that are on a common path with ``start``, directly or through other anchors."""
    connected = _closure(
        [start],
        [[b for b in anchored if b in after.get(a, ()) or b in before.get(a, ())] for a in range(max(anchored) + 1)],
    )
    between = set().union(*(after[block] for block in connected)) & set().union(*(before[block] for block in connected))
    return frozenset(connected | between)


def main_path(kernel: Kernel, work: Work) -> Path:
    """Count the main path of a kernel.

    Raises:
        LookupError: If the kernel has no anchor.
    """
    forward = [block.successors for block in kernel.blocks]
    backward: list[list[int]] = [[] for _ in kernel.blocks]
    for index, successors in enumerate(forward):
        for successor in successors:
            backward[successor].append(index)
    reachable = _closure([0], forward)

    def anchors(block: int) -> list[Instruction]:
        return [i for i in kernel.blocks[block].instructions if i.name == work.anchor]

    widths = [i.bytes for block in reachable for i in anchors(block)]
    if not widths:
        raise LookupError(f"{kernel.name} has no {work.anchor}.")
    anchored = [block for block in reachable if any(i.bytes == max(widths) for i in anchors(block))]
    after = {block: _closure(forward[block], forward) for block in anchored}
    before = {block: _closure(backward[block], backward) & reachable for block in anchored}
    loops = {frozenset(after[block] & before[block]) for block in anchored if block in after[block]}
    regions = loops or {_straight_region(block, anchored, after, before) for block in anchored}

    def count(blocks: Iterable[int]) -> list[Instruction]:
        return [i for block in blocks for i in kernel.blocks[block].instructions if i.name != "NOP"]

    def elements(region: frozenset[int]) -> float:
        return sum(i.bytes for block in region for i in anchors(block) if i.bytes == max(widths)) / work.anchored

    def around(region: frozenset[int]) -> set[int]:
        return (_closure(region, forward) | _closure(region, backward) & reachable) - region

    def per_element(region: frozenset[int], wanted: Callable[[Instruction], bool] = lambda i: True) -> float:
        within = sum(map(wanted, count(region))) / elements(region)
        return round(within + sum(map(wanted, count(around(region)))) / work.per_thread, 2)

    def is_whole(region: frozenset[int]) -> bool:
        path = region if loops else region | around(region)
        return all(i.name != work.anchor or i.bytes != work.element for i in count(path))

    whole = [region for region in regions if is_whole(region)] if max(widths) > work.element else []
    costs = sorted((per_element(region), sorted(region)) for region in whole or regions)
    region = frozenset(costs[-1 if whole and not loops else 0][1])
    inside, outside = count(region), count(around(region))
    accesses = [i for i in (inside if loops else inside + outside) if i.name in ("LDG", "STG", "LDL", "STL")]
    loads = [i.bytes for i in accesses if i.name == "LDG"]
    wide = sum(size for size in loads if size == max(loads))
    passes = 1.0 if loops else max(1.0, elements(region) / work.per_thread)

    return Path(
        instructions=per_element(region),
        float64=per_element(region, _is_float64),
        load=max(loads, default=0),
        store=max((i.bytes for i in accesses if i.name == "STG"), default=0),
        narrow_loads=per_element(region, lambda i: i.name == "LDG" and i.bytes < 16),
        loaded=wide / (passes * elements(region) if loops else passes * work.per_thread),
        in_flight=round(wide / passes),
        local=sum(i.name in ("LDL", "STL") for i in accesses),
    )
