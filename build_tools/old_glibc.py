"""A C++ compiler whose libraries run with an older glibc than this machine's: g++ compiles, Zig links.

Object files refer to functions of the C library without versions; the linker adds those of the library that it links.
Zig has the symbol tables of all versions of glibc. The operators keep GCC's C++ library, because their exceptions are
caught in torch, which uses it too. The module ``_C`` shares no C++ type with torch, and GCC 12's headers make it
depend on a newer C++ library: Zig compiles it too, with its own C++ library inside.
"""

from __future__ import annotations

import os
import pathlib
import shlex
import subprocess
import sys

from build_tools.messages import BuildError

GLIBC = "2.28"  # that of torch's own wheels

# GCC's headers read this flag of newer C libraries, which selects cheaper reference counts in programs with one thread.
# Zero, in a definition inside each library, is right with any number of threads.
_COMPATIBILITY = '__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;\n'

_WRAPPER = """\
#!/bin/sh
# Written by build_tools/old_glibc.py.
link= facts=
for argument; do
    case $argument in
        -shared) link=1 ;;
        *build_facts*) facts=1 ;;
    esac
done
if [ $facts ] && [ "$1" != --version ]; then exec $ZIG c++ -target $TARGET "$@"; fi
if [ $link ]; then exec $ZIG cc -target $TARGET "$@" $LIBRARIES; fi
exec $GXX "$@"
"""


def write_compiler(folder: pathlib.Path, machine: str) -> pathlib.Path:
    """Write the compiler, a script for CXX, into a folder that must exist while it is used.

    Args:
        folder: For the script and an object that it links.
        machine: As of ``platform.machine()``, for example x86_64.

    The compiler is g++, or that of CXX, which must be GCC and may have a launcher such as ccache.

    Raises:
        BuildError: If Zig or GCC's shared libraries are missing.
    """
    zig = [sys.executable, "-m", "ziglang"]
    if subprocess.run([*zig, "version"], capture_output=True, check=False).returncode != 0:
        raise BuildError("the package `ziglang` is needed for an old glibc. Run: pip install ziglang")
    gxx = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    source, compatibility = folder / "compatibility.c", folder / "compatibility.o"
    source.write_text(_COMPATIBILITY)
    subprocess.run([*gxx, "-x", "c", "-O2", "-fPIC", "-c", str(source), "-o", str(compatibility)], check=True)
    libraries = [str(compatibility), *(_library(gxx, name) for name in ("libstdc++.so", "libgcc_s.so.1"))]
    values = {
        "$ZIG": shlex.join(zig),
        "$TARGET": f"{machine}-linux-gnu.{GLIBC}",
        "$LIBRARIES": shlex.join(libraries),
        "$GXX": shlex.join(gxx),
    }
    text = _WRAPPER
    for name, value in values.items():
        text = text.replace(name, value)
    path = folder / "g++"
    path.write_text(text)
    path.chmod(0o755)
    return path


def _library(gxx: list[str], name: str) -> str:
    found = subprocess.run(
        [*gxx, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not pathlib.Path(found).is_absolute():
        raise BuildError(f"{shlex.join(gxx)} has no {name}. Install GCC's C++ compiler, or build with --this-glibc.")
    return found
