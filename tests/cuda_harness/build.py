"""Build the harness with g++ for the CPU: the kernels' sources, replacements of CUDA's headers, and the tests."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CUDA = pathlib.Path("csrc/cuda")

HEADER = "cuda_runtime.h"  # of the shim; included before everything else, as nvcc does
# _GLIBCXX_ASSERTIONS: checked indices in the tests, which are compiled without sanitizers.
FLAGS = ["-std=c++17", "-g1", "-ffp-contract=off", "-fcf-protection=none", "-D_GLIBCXX_ASSERTIONS", "-include", HEADER]
TIMEOUT = 300  # seconds; a fault may cause an endless loop
DTYPES = ("float", "double", "__half", "__nv_bfloat16")  # of with_type in device.cuh


class Variant(NamedTuple):
    """A build variant: the sanitizer's flags and the macro by which the harness recognises it."""

    name: str
    sanitizer: tuple[str, ...] = ()
    macro: tuple[str, ...] = ()


PLAIN = Variant("plain")
ADDRESS = Variant(
    "address",
    ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fsanitize-sections=harness_shared"),
    ("-DHARNESS_ADDRESS",),
)
THREAD = Variant("thread", ("-fsanitize=thread",), ("-DHARNESS_THREAD",))
VARIANTS = (PLAIN, ADDRESS, THREAD)


class Run(NamedTuple):
    """Return code and output of a harness executable."""

    returncode: int
    output: str


def compiler() -> str | None:
    """The path of g++ under any name. The harness needs its sections, its __builtin_setjmp and its sanitizers."""
    for name in (os.environ.get("CXX", ""), "g++", "c++"):
        path = shutil.which(name) if name else None
        if path is None:
            continue
        version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        if "Free Software Foundation" in version:
            return path
    return None


def sources(root: pathlib.Path = ROOT) -> list[pathlib.Path]:
    """All sources in csrc/cuda, so that the tests notice a new kernel that they do not execute."""
    return sorted(p.relative_to(root) for p in (root / CUDA).iterdir() if p.suffix in (".cu", ".cpp"))


def _name(flags: Sequence[str]) -> str:
    return "-".join(re.sub(r"\W", "", flag) for flag in flags)


def _replace(path: pathlib.Path, old: str, new: str) -> None:
    text = path.read_text()
    if old not in text:
        raise LookupError(f"{path.name} no longer has the text that the fault replaces: {old!r}")
    path.write_text(text.replace(old, new, 1))


class Builder:
    """Compiles into one folder and reuses object files, which most variants and faults share."""

    def __init__(self, folder: pathlib.Path, gxx: str) -> None:
        self.folder = folder
        self.gxx = gxx
        self.tests = sorted(HERE.glob("*.cpp"))
        self._shim = folder / "shim"
        self._lock = threading.Lock()
        shutil.copytree(HERE / "shim", self._shim)
        (self._shim / f"{HEADER}.gch").mkdir()

    def _call(self, arguments: Sequence[str]) -> None:
        done = subprocess.run([self.gxx, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{self.gxx} {' '.join(arguments)} failed:\n{done.stderr}")

    def _flags(self, source: pathlib.Path, variant: Variant, faulty: bool = False) -> list[str]:
        """Flags of one source. The sanitizers instrument kernels only, so that the variants share all other objects."""
        instrumented = CUDA.name in source.parts or source.name == "test_simulator.cpp"
        uses_macro = source.name in ("simulator.cpp", "checks.cpp", "test_huge_tensors.cpp")
        # Optimizing code for AddressSanitizer or for a fault takes longer than it saves.
        optimization = "-O0" if (source.suffix == ".cu" and variant is ADDRESS) or faulty else "-O1"
        sanitizer = variant.sanitizer if instrumented else ()
        return [optimization, *sanitizer, *(variant.macro if uses_macro else ())]

    def _precompile(self, flags: Sequence[str]) -> None:
        """Precompile the shim's header, once for each set of flags. g++ picks the file that suits its flags."""
        target = self._shim / f"{HEADER}.gch" / (_name(flags) + ".gch")
        with self._lock:
            if not target.exists():
                # "#pragma once" is reported in a main file.
                self._call([*FLAGS[:-2], *flags, "-w", "-x", "c++-header", str(self._shim / HEADER), "-o", str(target)])

    def compile(
        self, source: pathlib.Path, variant: Variant, folder: pathlib.Path, faulty: bool = False
    ) -> pathlib.Path:
        """Compile one source, unless its object file with the same flags exists."""
        flags = self._flags(source, variant, faulty)
        target = folder / f"{source.stem}-{_name(flags)}.o"
        if not target.exists():
            self._precompile([flag for flag in flags if flag not in variant.macro])
            arguments = [*FLAGS, f"-I{self._shim}", *flags, "-x", "c++", "-c", str(source), "-o", str(target)]
            self._call(arguments)
        return target

    def link(self, variant: Variant, objects: Sequence[pathlib.Path], target: pathlib.Path) -> pathlib.Path:
        self._call([*variant.sanitizer[:1], *map(str, objects), "-o", str(target)])
        return target

    def links(self, variant: Variant) -> bool:
        """Whether the sanitizer's library is installed."""
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder, "empty.cpp")
            source.write_text("int main() {}\n")
            arguments = [*variant.sanitizer[:1], str(source), "-o", str(source.with_suffix(""))]
            return subprocess.run([self.gxx, *arguments], capture_output=True, check=False).returncode == 0

    def build(self, variants: Sequence[Variant]) -> dict[Variant, pathlib.Path]:
        """Build one executable per variant from the unchanged sources."""
        jobs = [(ROOT / source, variant) for variant in variants for source in [*sources(), *self.tests]]
        unique = {(job[0], tuple(self._flags(*job))): job for job in jobs}
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda job: self.compile(*job, self.folder), unique.values()))
            objects = {v: [self.compile(s, v, self.folder) for s, w in jobs if w is v] for v in variants}
            paths = pool.map(lambda v: self.link(v, objects[v], self.folder / f"harness_{v.name}"), variants)
            return dict(zip(variants, paths, strict=True))

    def build_with_fault(
        self,
        variant: Variant,
        folder: pathlib.Path,
        source: str,
        old: str,
        new: str,
        affected: Sequence[str],
        dtypes: Sequence[str],
    ) -> pathlib.Path:
        """Build an executable with one text of one source replaced; the ``affected`` sources are recompiled.

        To save time they are recompiled for ``dtypes`` only; a launch with another dtype ends the process.
        """
        shutil.copytree(ROOT / CUDA, folder / CUDA)
        shutil.copy(ROOT / "csrc" / "types.h", folder / "csrc")
        _replace(folder / CUDA / source, old, new)
        for dtype in DTYPES:
            if dtype not in dtypes:
                _replace(folder / CUDA / "device.cuh", f"return f({dtype}{{}});", "__builtin_trap();")
        objects = [self.compile(test, variant, self.folder) for test in self.tests]
        # Faulty objects first: of an inline function that several objects define, the linker keeps the first copy.
        for relative in sorted(sources(), key=lambda source: source.name not in affected):
            if relative.name in affected:
                objects.append(self.compile(folder / relative, variant, folder, faulty=True))
            else:
                objects.append(self.compile(ROOT / relative, variant, self.folder))
        return self.link(variant, objects, folder / "harness")


def run(executable: pathlib.Path, *arguments: str) -> Run:
    """Run a harness executable. The return code is -1 after a timeout."""
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    command = [str(executable), *arguments]
    # ThreadSanitizer does not support strong address randomisation: disable it in a second attempt.
    for prefix in ([], ["setarch", "-R"]):
        try:
            done = subprocess.run(
                [*prefix, *command], capture_output=True, text=True, check=False, timeout=TIMEOUT, env=environment
            )
        except subprocess.TimeoutExpired:
            return Run(-1, f"timed out after {TIMEOUT} s")
        if "unexpected memory mapping" not in done.stderr:
            break
    return Run(done.returncode, done.stdout + done.stderr)


def kernels_in(executable: pathlib.Path) -> dict[int, str]:
    """All kernels of the executable, by address relative to the start of the image."""
    output = subprocess.run(["nm", "-C", str(executable)], capture_output=True, text=True, check=True).stdout
    symbols = [fields for line in output.splitlines() if len(fields := line.split(maxsplit=2)) == 3]
    start = next(int(address, 16) for address, _, name in symbols if name == "__executable_start")
    # Symbols of kernels, without clones, lambdas within them, and the harness's own kernels.
    pattern = re.compile(r"^(?:void )?pix2pixhd::cuda::\(anonymous namespace\)::\w+_kernel(<.*>)?\([^{}]*\)$")
    return {int(address, 16) - start: name for address, kind, name in symbols if kind in "tTW" and pattern.match(name)}
