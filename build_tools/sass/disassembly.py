"""Kernels of a cubin: their resources, from cuobjdump, and their instructions as basic blocks, from nvdisasm."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
import subprocess

_SECTION = re.compile(r"^//-+ \.text\.(\S+)", re.MULTILINE)
_LABEL_OR_INSTRUCTION = re.compile(
    r"^(?P<label>\.L_x_\d+|\$?\w+):|^\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<guard>@!?\w+)?\s*(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*);",
    re.MULTILINE,
)
_TARGET = re.compile(r"`\((\S+?)\)")
_RESOURCES = re.compile(r"Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_WIDTH = re.compile(r"\.(U8|S8|U16|S16|64|128)\b")
_ARGUMENT = re.compile(r"L[bi](\d+)E|LN\w+?E(\d+)E|(\d+)(__half|__nv_bfloat16)|(S[0-9A-Z]*_)|([fd])")
_LEAVES = ("BRA", "EXIT", "RET", "BRX")
_TYPES = {"f": "float32", "d": "float64", "__half": "float16", "__nv_bfloat16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    opcode: str  # with its modifiers, for example LDG.E.128
    guarded: bool  # by a predicate
    target: str | None  # label of a branch

    @functools.cached_property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def bytes(self) -> int:
        """Bytes per thread of a memory access."""
        match = _WIDTH.search(self.opcode)
        return {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}[match[1]] if match else 4


@dataclasses.dataclass
class Block:
    instructions: list[Instruction]
    successors: list[int]  # indices of blocks


@dataclasses.dataclass
class Kernel:
    """A kernel of one architecture.

    Attributes:
        name: Readable name, for example ``l1_forward<float32, float32, 1>``.
        registers: Per thread.
        stack: Bytes of local memory per thread: spilled registers and arrays that are not in registers.
        shared: Bytes of shared memory per block.
        blocks: Basic blocks in program order.
    """

    name: str
    registers: int
    stack: int
    shared: int
    blocks: list[Block]

    @property
    def instructions(self) -> list[Instruction]:
        """All instructions but the padding behind the last one."""
        return [i for block in self.blocks for i in block.instructions if i.name != "NOP"]

    @property
    def family(self) -> str:
        return self.name.split("<")[0]

    @property
    def arguments(self) -> list[str]:
        return self.name.partition("<")[2].rstrip(">").split(", ")


def readable_name(symbol: str) -> str:
    """``_ZN...17l1_forward_kernelIffLb1EEEv...`` -> ``l1_forward<float32, float32, 1>``."""
    for match in re.finditer(r"(?=(\d{1,2})([a-z]\w*))", symbol):
        name = match[2][: int(match[1])]
        if name.endswith("_kernel") and len(name) == int(match[1]):
            rest = match[2][len(name) :]
            break
    else:
        return symbol
    arguments: list[str] = []
    if rest.startswith("I"):
        at = 1
        while rest[at] != "E":
            argument = _ARGUMENT.match(rest, at)
            if argument is None:
                return symbol
            number, enumerator, _, long_type, repeated, short_type = argument.groups()
            if repeated:  # a substitution can only stand for the class type before it
                arguments.append(arguments[-1])
            else:
                arguments.append(number or enumerator or _TYPES[long_type or short_type])
            at = argument.end()
    return name.removesuffix("_kernel") + (f"<{', '.join(arguments)}>" if arguments else "")


def _is_branch(instruction: Instruction) -> bool:
    target = instruction.target or ""
    return instruction.name == "BRA" or (instruction.name == "CALL" and target.startswith(".L_x_"))


def parse_blocks(text: str) -> list[Block]:
    """Split the instructions at labels and after branches. A call continues behind it; its target is not followed.

    A call of a label within the kernel is a branch: ptxas ends some loops by one, from which nothing returns.
    """
    starts: dict[str, int] = {}
    blocks = [Block([], [])]
    for match in _LABEL_OR_INSTRUCTION.finditer(text):
        if match["label"]:
            if blocks[-1].instructions:
                blocks.append(Block([], []))
            starts[match["label"]] = len(blocks) - 1
            continue
        target = _TARGET.search(match["operands"])
        guarded = match["guard"] is not None or (target is not None and target.start() > 0)  # BRA P1, `(label)
        instruction = Instruction(match["opcode"], guarded, target[1] if target else None)
        blocks[-1].instructions.append(instruction)
        if instruction.name in _LEAVES or _is_branch(instruction):
            blocks.append(Block([], []))
    for index, block in enumerate(blocks):
        if not block.instructions:
            continue
        last = block.instructions[-1]
        # BRA.DIV and BRA.CONV leave the path only in a warp whose threads have diverged, which these kernels avoid.
        diverged = last.opcode in ("BRA.DIV", "BRA.CONV")
        leaves = last.name in _LEAVES or _is_branch(last)
        if _is_branch(last) and last.target in starts and not diverged:
            block.successors.append(starts[last.target])
        if (not leaves or last.guarded or diverged) and index + 1 < len(blocks):
            block.successors.append(index + 1)
    return blocks


def read_kernels(cubin: pathlib.Path, cuobjdump: str, nvdisasm: str) -> list[Kernel]:
    """The kernels of a cubin."""
    usage = subprocess.run([cuobjdump, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    resources = {match[1]: [int(n) for n in match.groups()[1:]] for match in _RESOURCES.finditer(usage)}
    if not resources:
        return []
    text = subprocess.run([nvdisasm, "-c", cubin], capture_output=True, text=True, check=True).stdout
    parts = _SECTION.split(text)[1:]
    code = dict(zip(parts[::2], parts[1::2], strict=True))
    return [
        Kernel(readable_name(symbol), registers, stack + local, shared, parse_blocks(code[symbol]))
        for symbol, (registers, stack, shared, local) in resources.items()
        if symbol in code
    ]
