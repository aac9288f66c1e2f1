"""The cells of the install matrix: what is installed where, and what must happen."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator

from build_tools.checkout import copy_checkout
from build_tools.matrix.environment import OTHER_USER, Base, Cell, Failure, NotRun, is_linux_root, output

NEWEST = "py311-torch2.14"
OLDEST = "py311-torch2.10"
CPU_ONLY = "py311-torch2.13-cpu"
# Name of the base: version of Python, requirement of torch. `===` excludes local versions such as 2.13.0+cpu.
BASES = {
    OLDEST: ("3.11", "torch==2.10.*"),
    "py311-torch2.11": ("3.11", "torch==2.11.*"),
    "py311-torch2.13": ("3.11", "torch===2.13.0"),
    CPU_ONLY: ("3.11", "torch==2.13.0+cpu"),
    NEWEST: ("3.11", "torch==2.14.*"),
    "py310-torch2.14": ("3.10", "torch==2.14.*"),
    "py312-torch2.14": ("3.12", "torch==2.14.*"),
    "py313-torch2.14": ("3.13", "torch==2.14.*"),
    "py313t-torch2.14": ("3.13t", "torch==2.14.*"),
    "py314-torch2.14": ("3.14", "torch==2.14.*"),
    "py314t-torch2.14": ("3.14t", "torch==2.14.*"),
}


class Workshop:
    """What the cells share: the bases, the source distribution, and one wheel per base, built when first needed."""

    def __init__(self, folder: pathlib.Path, base: Callable[[str], Base]) -> None:
        self.folder = folder
        self.base = base
        self.checkout = copy_checkout(folder / "checkout")
        self._wheels: dict[tuple[str, str], pathlib.Path] = {}
        self._sdist: pathlib.Path | None = None

    def sdist(self) -> pathlib.Path:
        """The source distribution."""
        if self._sdist is None:
            hook = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
            output([self.base(NEWEST).python, "-c", hook, self.folder], cwd=self.checkout)
            (self._sdist,) = self.folder.glob("*.tar.gz")
        return self._sdist

    def wheel(self, base: str, cuda: str = "0") -> pathlib.Path:
        """The wheel built under a base."""
        key = (base, cuda)
        if key not in self._wheels:
            out = self.folder / f"wheel-{base}-{cuda}"
            options = ("--no-build-isolation", "--no-deps", "--no-cache-dir", "--wheel-dir", out)
            command = [self.base(base).python, "-m", "pip", "wheel", *options, self.sdist()]
            output(command, PIX2PIXHD_CUDA=cuda, **({"TORCH_CUDA_ARCH_LIST": "9.0"} if cuda == "1" else {}))
            (self._wheels[key],) = out.iterdir()
        return self._wheels[key]

    @contextlib.contextmanager
    def cell(self, base: str, name: str = "environment", **options: object) -> Iterator[Cell]:
        """A fresh environment, deleted at the end."""
        parent = self.folder / "cell"
        parent.mkdir()
        try:
            if options.get("prefix"):
                os.chown(parent, 65534, 65534)
            yield Cell(self.base(base), parent / name, **options)  # type: ignore[arg-type]
        finally:
            output(["chmod", "-R", "u+w", parent])
            shutil.rmtree(parent)


def refused(call: Callable[[], object], message: str) -> str:
    """Expect a failure without a traceback of ours, and with this message. Returns the message."""
    try:
        call()
    except Failure as failure:
        text = str(failure)
    else:
        raise Failure(f"not refused; expected: {message}")
    found = re.search(message, text)
    if found is None:
        raise Failure(f"refused without the message {message!r}: {text[-2000:]}")
    return " ".join(found[0].split())


@dataclasses.dataclass(frozen=True)
class Row:
    """One cell: its name, the base, what it does, and whether it must be refused. `run` returns a remark."""

    name: str
    base: str
    run: Callable[[Workshop], str]
    is_refusal: bool = False


def _loaded(facts: dict[str, object]) -> str:
    return f"built with torch {facts['torch_version']}, run with {facts['torch']}"


def _install(base: str, kind: str) -> Callable[[Workshop], str]:
    def run(shop: Workshop) -> str:
        with shop.cell(base) as cell:
            if kind == "editable":
                source = copy_checkout(cell.folder.parent / "checkout")
                cell.install("--editable", source, PIX2PIXHD_CUDA="0")
            elif kind == "sdist":
                cell.install(shop.sdist(), PIX2PIXHD_CUDA="0")
            else:
                cell.install(shop.wheel(base))
            return _loaded(cell.check())

    return run


def _wheel_of(built: str, used: str, cuda: str = "0") -> Callable[[Workshop], str]:
    def run(shop: Workshop) -> str:
        with shop.cell(used) as cell:
            cell.install(shop.wheel(built, cuda))
            facts = cell.check()
            if facts["cuda"] != (cuda == "1" and bool(facts["torch_cuda"])):
                raise Failure(f"the CUDA operators are in the wrong state: {facts}")
            return f"{_loaded(facts)}; CUDA operators {'loaded' if facts['cuda'] else 'not loaded'}"

    return run


def _other_python(shop: Workshop) -> str:
    with shop.cell("py312-torch2.14") as cell:
        return refused(lambda: cell.install(shop.wheel(NEWEST)), r"is not a supported wheel on this platform")


def _bare_path(cell: Cell) -> str:
    """A PATH with the commands that pip and venv need, and neither compiler nor nvcc."""
    folder = cell.folder.parent / "bin"
    folder.mkdir()
    for name in ("sh", "env", "uname", "ldd"):
        path = shutil.which(name)
        if path:
            (folder / name).symlink_to(path)
    return str(folder)


def _no_compiler(shop: Workshop) -> str:
    with shop.cell(NEWEST) as cell:
        variables = {"PATH": _bare_path(cell), "CXX": ""}
        return refused(lambda: cell.install(shop.sdist(), **variables), r"no C\+\+ compiler was found \([^)]*\)")


def _wheel_without_compiler(shop: Workshop) -> str:
    with shop.cell(NEWEST) as cell:
        path = _bare_path(cell)
        cell.install(shop.wheel(NEWEST), PATH=path)
        return _loaded(cell.check(PATH=path))


def _no_nvcc(shop: Workshop) -> str:
    with shop.cell(NEWEST) as cell:
        path = _bare_path(cell)
        for name in ("g++", "ccache", "as", "ld", "ninja"):
            if shutil.which(name):
                pathlib.Path(path, name).symlink_to(str(shutil.which(name)))
        usual = pathlib.Path("/usr/local/cuda").resolve()
        if usual.exists():  # it is found without the PATH
            if not is_linux_root():
                raise NotRun("only root can hide /usr/local/cuda from a command")
            hide = f'{shutil.which("mount")} -t tmpfs none {usual} && exec "$@"'
            cell.prefix = [str(shutil.which("unshare")), "--mount", "/bin/sh", "-c", hide, "sh"]
        log = cell.install(shop.sdist(), PATH=path)
        cell.check(PATH=path)
        found = re.search(r"building without CUDA kernels: no nvcc was found", log)
        if not found:
            raise Failure(f"the log does not report the missing nvcc: {log[-2000:]}")
        return found[0]


def _no_network(shop: Workshop) -> str:
    if not is_linux_root():
        raise NotRun("only root can take the network away from a command")
    with shop.cell(NEWEST) as cell:
        cell.prefix = ["unshare", "--net"]
        cell.install(shop.sdist(), PIX2PIXHD_CUDA="0")
        return _loaded(cell.check())


def _old_setuptools(shop: Workshop) -> str:
    with shop.cell(NEWEST) as cell:
        package = cell.site / "setuptools"
        package.mkdir()
        (package / "__init__.py").write_text("__version__ = '65.5.0'\n")
        (package / "build_meta.py").write_text("")
        return refused(lambda: cell.install(shop.sdist()), r"setuptools >= 77 is needed to build, found 65\.5\.0")


def _without(package: str, message: str) -> Callable[[Workshop], str]:
    def run(shop: Workshop) -> str:
        with shop.cell(NEWEST) as cell:
            for link in (cell.folder / "links").glob(f"{package}*"):
                link.unlink()
            return refused(lambda: cell.install(shop.sdist(), PIX2PIXHD_CUDA="0"), message)

    return run


def _odd_path(kind: str) -> Callable[[Workshop], str]:
    def run(shop: Workshop) -> str:
        with shop.cell(NEWEST, name="mit Leerzeichen ä 漢字") as cell:
            source = copy_checkout(cell.folder.parent / "Quellen ü é 'x'")
            arguments = ("--editable", source) if kind == "editable" else (source,)
            cell.install(*arguments, PIX2PIXHD_CUDA="0")
            return _loaded(cell.check())

    return run


def _umask(shop: Workshop) -> str:
    with shop.cell(NEWEST, umask="077") as cell:
        cell.install(shop.sdist(), PIX2PIXHD_CUDA="0")
        return _loaded(cell.check())


def _as_other_user(shop: Workshop, change: Callable[[Cell], None]) -> str:
    """Install a wheel as another user, change something, check as that user."""
    if not is_linux_root():
        raise NotRun("only root can run commands as another user")
    interpreter = shutil.which("python3.11", path="/usr/bin")
    if interpreter is None:
        raise NotRun("no Python 3.11 that other users may run")
    with shop.cell(NEWEST, prefix=OTHER_USER, interpreter=interpreter) as cell:
        home = cell.folder.parent / "home"
        home.mkdir()
        os.chown(home, 65534, 65534)
        cell.install(shop.wheel(NEWEST), HOME=str(home))
        change(cell)
        return _loaded(cell.check(HOME=str(home)))


def _read_only(cell: Cell) -> None:
    output(["chmod", "-R", "a-w", cell.folder.parent])


def _two_versions(shop: Workshop) -> str:
    """An older version with CUDA kernels and with a module that no longer exists, then this version without both."""
    with shop.cell(NEWEST) as cell:
        source = copy_checkout(cell.folder.parent / "checkout")
        module, start = source / "pix2pixhd" / "removed_module.py", source / "pix2pixhd" / "__init__.py"
        module.write_text('"""No longer exists."""\n')
        text = start.read_text()
        start.write_text(re.sub(r'__version__ = "[^"]+"', '__version__ = "0.0.1"', text))
        cell.install(source, PIX2PIXHD_CUDA="0")
        if cell.check()["version"] != "0.0.1":
            raise Failure("the older version was not installed")
        (cell.site / "pix2pixhd" / "_ops_cuda.so").write_text("of the older version")
        with next(cell.site.glob("pix2pixhd_fused*/RECORD")).open("a") as record:
            record.write("pix2pixhd/_ops_cuda.so,,\n")
        module.unlink()
        start.write_text(text)
        cell.install(source, PIX2PIXHD_CUDA="0")
        facts = cell.check()
        package = cell.site / "pix2pixhd"
        stale = [name for name in ("removed_module.py", "_ops_cuda.so") if (package / name).exists()]
        if stale:
            raise Failure(f"files of the older version are installed: {', '.join(stale)}")
        return _loaded(facts)


def _torch_changes(first: str, second: str) -> Callable[[Workshop], str]:
    def run(shop: Workshop) -> str:
        with shop.cell(first) as cell:
            cell.install(shop.sdist(), PIX2PIXHD_CUDA="0")
            before = cell.check()["torch"]
            cell.use(shop.base(second))
            facts = cell.check()
            if facts["torch"] == before:
                raise Failure("torch did not change")
            return _loaded(facts)

    return run


def rows() -> list[Row]:
    """All cells, in the order of the table."""
    found = [Row(f"{kind}", base, _install(base, kind)) for base in BASES for kind in ("wheel", "sdist", "editable")]
    found += [
        Row("wheel of the newest torch", OLDEST, _wheel_of(NEWEST, OLDEST)),
        Row("wheel of the oldest torch", NEWEST, _wheel_of(OLDEST, NEWEST)),
        Row("wheel of a torch with CUDA", CPU_ONLY, _wheel_of(NEWEST, CPU_ONLY)),
        Row("wheel of a torch without CUDA", NEWEST, _wheel_of(CPU_ONLY, NEWEST)),
        Row("wheel with CUDA kernels", NEWEST, _wheel_of(NEWEST, NEWEST, "1")),
        Row("wheel with CUDA kernels", CPU_ONLY, _wheel_of(NEWEST, CPU_ONLY, "1")),
        Row("torch upgraded after the install", OLDEST, _torch_changes(OLDEST, NEWEST)),
        Row("torch downgraded after the install", NEWEST, _torch_changes(NEWEST, OLDEST)),
        Row("wheel of Python 3.11", "py312-torch2.14", _other_python, is_refusal=True),
        Row("sdist, no compiler", NEWEST, _no_compiler, is_refusal=True),
        Row("wheel, no compiler", NEWEST, _wheel_without_compiler),
        Row("sdist, no nvcc", NEWEST, _no_nvcc),
        Row("sdist, no network", NEWEST, _no_network),
        Row("sdist, setuptools 65", NEWEST, _old_setuptools, is_refusal=True),
        Row("sdist, no torch", NEWEST, _without("torch", r"torch >= 2\.10 is needed to build"), is_refusal=True),
        Row("sdist, no ninja", NEWEST, _without("ninja", r"the package `ninja` is needed to build"), is_refusal=True),
        Row("checkout, spaces and non-ASCII letters in paths", NEWEST, _odd_path("checkout")),
        Row("editable, spaces and non-ASCII letters in paths", NEWEST, _odd_path("editable")),
        Row("sdist, umask 077", NEWEST, _umask),
        Row("wheel, not root", NEWEST, lambda shop: _as_other_user(shop, lambda cell: None)),
        Row("wheel, read-only environment and home", NEWEST, lambda shop: _as_other_user(shop, _read_only)),
        Row("an older version, then this one, from one checkout", NEWEST, _two_versions),
    ]
    return found
