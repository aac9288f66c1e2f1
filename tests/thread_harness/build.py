"""Compiles the CPU operators and their loop over threads for ThreadSanitizer, without PyTorch."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SANITIZER = "-fsanitize=thread"
FLAGS = ("-std=c++20", "-g1", "-ffp-contract=off", SANITIZER)
AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2")
SETS = {"baseline": (), "avx2": AVX2, "avx512": (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")}
TIMEOUT = 600  # seconds


class Fault(NamedTuple):
    """An error in a source, and the test that must detect it."""

    name: str
    file: str
    old: str
    new: str
    test: str


FAULTS = (
    Fault(
        "chunks of tensors overlap",
        "csrc/torch/multi_tensor_cpu.cpp",
        "std::min(cpu::kChunk, numels[k] - begin)});",
        "std::min(cpu::kChunk + 32, numels[k] - begin)});",
        "multi_tensor",
    ),
    Fault(
        "partial sums in one place",
        "csrc/torch/multi_tensor_cpu.cpp",
        "partial[i] = kernels.l1_forward",
        "partial[i % 2] = kernels.l1_forward",
        "multi_tensor",
    ),
    Fault(
        "every chunk writes the padding of the signs",
        "csrc/torch/multi_tensor_cpu.cpp",
        "if (own_signs != nullptr && chunk.begin + chunk.size == pair.numel) {",
        "if (own_signs != nullptr) {",
        "multi_tensor",
    ),
    Fault(
        "rows of images overlap",
        "csrc/torch/norm_act_cpu.cpp",
        "std::min(row + rows, height)",
        "std::min(row + rows + 1, height)",
        "norm_act_channels_last",
    ),
    Fault(
        "chunks of feature maps overlap",
        "csrc/torch/perceptual_cpu.cpp",
        "cpu::MapChunk{std::min(cpu::kChunk,",
        "cpu::MapChunk{std::min(cpu::kChunk + 64,",
        "perceptual",
    ),
    Fault(
        "the table of the instruction set without synchronisation",
        "csrc/cpu/dispatch.cpp",
        "std::atomic<const Kernels*>",
        "Unsynchronised",
        "concurrent",
    ),
)
_UNSYNCHRONISED = """struct Unsynchronised {
  const Kernels* table;
  const Kernels* load(std::memory_order) const { return table; }
  void store(const Kernels* other, std::memory_order) { table = other; }
};
struct Candidates {"""


def compiler() -> str | None:
    """The path of g++, if it links ThreadSanitizer."""
    gxx = shutil.which(os.environ.get("CXX", "g++"))
    if gxx is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, "empty.cpp")
        source.write_text("int main() {}\n")
        command = [gxx, SANITIZER, str(source), "-o", str(source.with_suffix(""))]
        return gxx if subprocess.run(command, capture_output=True, check=False).returncode == 0 else None


class Builder:
    """Compiles into one folder. A fault recompiles its own source only.

    Args:
        folder: Where the objects go.
        gxx: The compiler.
        short: float32 and the baseline instruction set only.
    """

    def __init__(self, folder: pathlib.Path, gxx: str, short: bool) -> None:
        self.folder, self.gxx, self.short = folder, gxx, short
        shutil.copytree(HERE / "shim", folder / "shim")
        shutil.copytree(ROOT / "csrc", folder / "csrc", ignore=shutil.ignore_patterns("cuda"))
        if short:
            header = folder / "csrc/cpu/kernels_impl.h"
            text = header.read_text()
            for other in ("double", "Half", "BFloat16"):
                assert f"return f({other}{{}});" in text
                text = text.replace(f"return f({other}{{}});", "__builtin_trap();")
            header.write_text(text)
            dispatch = folder / "csrc/cpu/dispatch.cpp"
            dispatch.write_text(dispatch.read_text().replace("#if defined(__x86_64__)", "#if 0"))
        sets = ["baseline"] if short else list(SETS)
        self.sources = {folder / f"csrc/cpu/kernels_{name}.cpp": SETS[name] for name in sets}
        self.sources[folder / "csrc/cpu/dispatch.cpp"] = ()
        # The sources of csrc/torch and the tests are one translation unit: reading the headers takes most of the time.
        operators = sorted((folder / "csrc/torch").glob("*_cpu.cpp"))
        self.main = folder / "all.cpp"
        self.main.write_text(
            "".join(
                f'#include "{p}"\n' for p in [folder / "csrc/torch/stable_tensor.cpp", *operators, HERE / "main.cpp"]
            )
        )
        self.sources[self.main] = ()

    def _call(self, arguments: Sequence[str]) -> None:
        done = subprocess.run([self.gxx, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{self.gxx} {' '.join(arguments)} failed:\n{done.stderr[-4000:]}")

    def _compile(self, source: pathlib.Path, target: pathlib.Path, flags: Sequence[str] = ()) -> None:
        optimization = "-O1" if source.stem.startswith("kernels") else "-O0"
        define = ["-DHARNESS_FLOAT_ONLY"] if self.short else []
        include = f"-I{HERE / 'shim'}"
        self._call([*FLAGS, optimization, *flags, *define, include, "-c", str(source), "-o", str(target)])

    def _object(self, source: pathlib.Path) -> pathlib.Path:
        return self.folder / (source.stem + ".o")

    def build(self) -> pathlib.Path:
        """Compile the unchanged sources; return the executable."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda job: self._compile(job[0], self._object(job[0]), job[1]), self.sources.items()))
        return self._link("harness", {})

    def build_with_fault(self, fault: Fault) -> pathlib.Path:
        """Compile one source with a fault; return the executable."""
        source = self.folder / fault.file
        correct = source.read_text()
        if fault.old not in correct:
            raise LookupError(f"{fault.file} does not contain the text that the fault {fault.name!r} replaces")
        wrong = correct.replace(fault.old, fault.new)
        if "Unsynchronised" in fault.new:
            wrong = wrong.replace("struct Candidates {", _UNSYNCHRONISED)
        source.write_text(wrong)
        unit = source if source in self.sources else self.main
        target = self.folder / "fault.o"
        try:
            self._compile(unit, target)
        finally:
            source.write_text(correct)
        return self._link("harness_fault", {unit: target})

    def _link(self, name: str, replaced: dict[pathlib.Path, pathlib.Path]) -> pathlib.Path:
        objects = [replaced.get(source, self._object(source)) for source in self.sources]
        self._call([SANITIZER, *map(str, objects), "-o", str(self.folder / name)])
        return self.folder / name


def run(executable: pathlib.Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """Run tests of an executable, all by default."""
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    environment.pop("LD_PRELOAD", None)
    # ThreadSanitizer does not support strong address randomisation: disable it in a second attempt.
    for prefix in ([], ["setarch", "-R"]):
        command = [*prefix, str(executable), *tests]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT, env=environment)
        if "unexpected memory mapping" not in done.stderr:
            break
    return done
