"""The CPU kernels against plain loops, in a program without Python and torch.

``make matrix`` runs the same program for 64-bit Arm and on a processor without BMI, both emulated.
"""

import platform
import re
import shutil

import pytest

from build_tools import cpu_harness, kernel_flags

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="no C++ compiler on this machine"
)


@pytest.fixture(scope="module")
def executable(tmp_path_factory):
    # Without optimization: compiling the kernels as they are installed takes a minute. The tests of the operators run
    # those.
    folder = tmp_path_factory.mktemp("harness")
    return cpu_harness.build(folder, cpu_harness.native_compiler(), platform.machine(), "-O0")


def test_kernels_of_every_supported_instruction_set_agree_with_plain_loops(executable):
    results = cpu_harness.run([str(executable)], shapes=8, seed=0)
    assert list(results) == list(kernel_flags.instruction_sets(platform.machine()))[: len(results)]
    for name, result in results.items():
        assert result.failed == 0, name
        assert result.cases > 500, name


def test_an_instruction_set_that_does_not_exist_is_rejected(executable):
    with pytest.raises(SystemExit, match="avx3 is not supported by this processor, which has baseline"):
        cpu_harness.run([str(executable)], shapes=1, seed=0, names=["avx3"])


def test_every_extension_that_the_compiler_may_use_is_checked_at_run_time():
    """A processor, or a virtual machine, may have AVX2 without BMI."""
    source = (cpu_harness.ROOT / "csrc" / "cpu" / "dispatch.cpp").read_text()
    checked = set(re.findall(r'__builtin_cpu_supports\("(\w+)"\)', source))
    used = {flag.removeprefix("-m") for flag in kernel_flags.AVX512_FLAGS if "=" not in flag}
    assert used == checked


@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "aarch64", "arm64", "riscv64"])
def test_every_instruction_set_has_its_kernels(machine):
    names = list(kernel_flags.instruction_sets(machine))
    assert names[0] == "baseline"
    assert ("neon" in names, "avx2" in names) == (machine in ("aarch64", "arm64"), machine in ("x86_64", "AMD64"))
    for name in names:
        source = (cpu_harness.ROOT / "csrc" / "cpu" / f"kernels_{name}.cpp").read_text()
        assert f'kernel_table("{name}")' in source
