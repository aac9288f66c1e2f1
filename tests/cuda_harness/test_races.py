"""The kernels' PTX, checked for data races and missing barriers by SentryWard, for all schedules of small launches.

SentryWard proves that conflicting accesses of all threads are ordered, for given arguments and sizes. Only
``race_free`` passes; an inconclusive result fails. The PTX is that of the built library.

Not covered: 16-bit types, because the code of their ReLU has branches that depend on data, which SentryWard does not
support; LPIPS, which takes long; norm_act, its statistics, which have such branches too, and its backward.
ThreadSanitizer checks these in test_harness.py.
"""

import ctypes
import json
import pathlib
import re
import subprocess

import pytest

from build_tools.messages import BuildError
from build_tools.sass.disassembly import readable_name
from build_tools.sass.library import LIBRARY, find_tools

sentryward = pytest.importorskip("sentryward", reason="needs the package sentryward, which has wheels for Linux")
pytestmark = pytest.mark.slow

POINTER = ctypes.c_void_p


# The kernels' arguments, as in csrc/cuda: launch_plan.h, kernels.h, perceptual.h, perceptual_pool.cu.
class TensorArgs(ctypes.Structure):
    _fields_ = (
        ("data", POINTER * 2),
        ("signs", POINTER),
        ("numel", ctypes.c_int64),
        ("factor", ctypes.c_double),
        ("constant", ctypes.c_double),
        ("aligned", ctypes.c_int32),
    )


class LaunchArgs(ctypes.Structure):
    _fields_ = (
        ("tensor", TensorArgs * 64),
        ("block_begin", ctypes.c_int32 * 65),
        ("count", ctypes.c_int32),
        ("first_partial", ctypes.c_int64),
    )


class DeviceScalar(ctypes.Structure):
    _fields_ = (("data", POINTER), ("is_float64", ctypes.c_bool))


class Divisor(ctypes.Structure):
    _fields_ = (("divisor", ctypes.c_int64), ("shift", ctypes.c_int32), ("factor", ctypes.c_int64))


class ChannelVector(ctypes.Structure):
    _fields_ = (("data", POINTER), ("aligned", ctypes.c_bool))


class MapGrid(ctypes.Structure):
    _fields_ = (
        ("elements", ctypes.c_int64),
        ("pixels", ctypes.c_int64),
        ("bias", ChannelVector),
        ("weight", POINTER),
        ("by_blocks", Divisor),
        ("by_channels", Divisor),
    )


class Sides(ctypes.Structure):
    _fields_ = (
        ("x", POINTER),
        ("y", POINTER),
        ("target_is_activated", ctypes.c_bool),
        ("kept", POINTER),
        ("mask", POINTER),
    )


class BackwardArgs(ctypes.Structure):
    _fields_ = (("grad", POINTER), ("mask", POINTER), ("kept", POINTER), ("coefficient", ctypes.c_float))


WINDOWS_FIELDS = ("batch", "channels", "height", "width", "rows", "length", "blocks_per_row")
WINDOWS_DIVISORS = ("by_rows", "by_blocks", "by_channels")


class Windows(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in WINDOWS_FIELDS),
        *((name, Divisor) for name in WINDOWS_DIVISORS),
    )


def divisor(n):
    """The fields that the host computes for a division by ``n``, see device.cuh."""
    shift = 31 + (n - 1).bit_length()
    return {"divisor": n, "shift": shift, "factor": ((1 << shift) + n - 1) // n}


SCALARS = {
    ctypes.c_int64: "u64",
    ctypes.c_int32: "u32",
    ctypes.c_bool: "u8",
    ctypes.c_double: "f64",
    ctypes.c_float: "f32",
}


def leaves(kind, value, offset=0):
    """Yield (offset, kind, value) of the fields that ``value``, a dict or list of the struct's fields, mentions."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from leaves(dict(kind._fields_)[name], part, offset + getattr(kind, name).offset)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from leaves(kind._type_, part, offset + index * ctypes.sizeof(kind._type_))
    else:
        yield offset, kind, value


def configuration(blocks, parameters):
    """SentryWard's input. A parameter is (kind, value); a pointer's value is the name of the memory it points to."""
    declarations, arguments = [], []
    for index, (kind, value) in enumerate(parameters):
        for offset, leaf, content in leaves(kind, value):
            place = {"parameter": index, "offset": offset}
            if leaf is POINTER:
                declarations.append(place | {"type": "pointer", "space": "global", "object": content})
            else:
                arguments.append(
                    place | {"type": SCALARS[leaf], "value": int(content) if leaf is ctypes.c_bool else content}
                )
    return {
        "schema": "spverify.kernel-input/v1",
        "launch": {"grid_dim": [blocks, 1, 1], "block_dim": [256, 1, 1]},
        "declarations": declarations,
        "arguments": arguments,
    }


def tensors(blocks, *each):
    """LaunchArgs of tensors that take ``blocks`` blocks each."""
    begin = [blocks * i for i in range(len(each) + 1)]
    return LaunchArgs, {"tensor": list(each), "block_begin": begin, "count": len(each), "first_partial": 0}


def l1_tensor(i, numel=300, signs=None):
    return {"data": [f"x{i}", f"y{i}"], "signs": signs or f"signs{i}", "numel": numel, "aligned": 1}


SCALAR = {"data": "scalar", "is_float64": False}
TWO_TENSORS = tensors(1, l1_tensor(0), l1_tensor(1))
SIDES = {"x": "x", "y": "y", "target_is_activated": False, "kept": "kept", "mask": "mask"}
GRADIENT = {"grad": "grad", "mask": "mask", "kept": "kept", "coefficient": 1.0}
MAP = (
    MapGrid,
    {
        "elements": 2048,
        "pixels": 32,
        "bias": {"data": "bias", "aligned": True},
        "weight": "weight",
        "by_blocks": divisor(1),
        "by_channels": divisor(64),
    },
)
ALIGNED = (ctypes.c_bool, True)
BIAS = (ChannelVector, {"data": "bias", "aligned": True})


def filled(kind, names, values, divisor_names, divisors):
    """Fields of a structure of numbers and divisors."""
    numbers = dict(zip(names, values, strict=True))
    return kind, numbers | {name: divisor(n) for name, n in zip(divisor_names, divisors, strict=True)}


WINDOWS = filled(Windows, WINDOWS_FIELDS, (1, 64, 8, 8, 4, 256, 1), WINDOWS_DIVISORS, (4, 1, 64))


def pointer(name):
    return POINTER, name


# Number of blocks, and the parameters. Pointers with different names point to different memory.
CASES = {
    "finish_sum": (2, [pointer("partial"), (ctypes.c_int64, 1000), (ctypes.c_double, 0.0), (DeviceScalar, SCALAR)]),
    "l1_forward<float32, float32, 1>": (2, [TWO_TENSORS, pointer("partial")]),
    "l1_backward<float32>": (2, [TWO_TENSORS, (DeviceScalar, SCALAR)]),
    "pointwise_forward<float32, 0>": (1, [tensors(1, l1_tensor(0)), pointer("partial")]),
    "pointwise_backward<float32, 0>": (2, [TWO_TENSORS, (DeviceScalar, SCALAR)]),
    "relu<float32, 1>": (2, [pointer("x"), pointer("mask"), MAP, ALIGNED]),
    "relu_distance<float32, 0, 1>": (1, [(Sides, SIDES), pointer("partial"), MAP, ALIGNED]),
    "relu_backward<float32, 1>": (1, [(BackwardArgs, GRADIENT), MAP, ALIGNED]),
    "relu_pool<float32, 1, 1>": (4, [*map(pointer, ("x", "out", "codes")), BIAS, WINDOWS]),
    "relu_pool_backward<float32, 1>": (4, [*map(pointer, ("grad", "codes", "out")), WINDOWS]),
}


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    """The PTX of each kernel as a module of its own, by readable name."""
    if not LIBRARY.exists():
        pytest.skip("no CUDA kernels were built")
    try:
        cuobjdump = find_tools()[0]
    except BuildError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("ptx")
    subprocess.run([cuobjdump, "-xptx", "all", LIBRARY], cwd=folder, capture_output=True, check=True)
    found = {}
    for file in folder.glob("*.ptx"):
        head, *parts = re.split(r"^(?=(?:\.visible )?\.(?:entry|func)\b)", file.read_text(), flags=re.MULTILINE)
        # Definitions; a declaration has no body.
        functions = {re.search(r"(\w+)\(", p)[1]: p for p in parts if p.startswith(".func") and "{" in p}
        for part in parts:
            if ".entry" in part[:20]:
                called = "".join(text for name, text in functions.items() if name in part)
                found[readable_name(re.search(r"\.entry (\w+)", part)[1])] = head + called + part
    if not found:
        pytest.skip("the library contains no PTX")
    return found


def verdict(ptx, blocks, parameters, folder: pathlib.Path):
    (folder / "kernel.ptx").write_text(ptx)
    (folder / "input.json").write_text(json.dumps(configuration(blocks, parameters)))
    result = sentryward.verify(folder / "kernel.ptx", input=folder / "input.json", timeout_seconds=120)
    return result["result"], result["diagnostics"]


@pytest.mark.parametrize("name", CASES)
def test_no_schedule_has_a_race(entries, name, tmp_path):
    assert verdict(entries[name], *CASES[name], tmp_path) == ("race_free", [])


@pytest.mark.parametrize("name", ["finish_sum", "relu_distance<float32, 0, 1>"])
def test_a_missing_barrier_is_detected(entries, name, tmp_path):
    assert "bar.sync" in entries[name]
    assert verdict(entries[name].replace("bar.sync", "//"), *CASES[name], tmp_path)[0] == "potential_race"


def test_two_blocks_that_write_the_same_signs_are_detected(entries, tmp_path):
    shared = tensors(1, l1_tensor(0, signs="signs"), l1_tensor(1, signs="signs"))
    result = verdict(entries["l1_forward<float32, float32, 1>"], 2, [shared, pointer("partial")], tmp_path)
    assert result[0] == "potential_race"
