"""The build's decisions about CUDA and its messages, for all kinds of machines, without building."""

import pytest

from build_tools import archs, cuda_toolkit
from build_tools.messages import BuildError
from tests.install.tools import nvcc, script, torch_with

pytestmark = [pytest.mark.install, pytest.mark.usefixtures("bare_machine")]


def test_nvcc_may_be_a_wrapper_script_on_the_path(tmp_path, capsys):
    path = nvcc(tmp_path / "bin" / "nvcc")
    cuda = cuda_toolkit.find_cuda(torch_with("13.2"))
    assert (cuda.nvcc, cuda.version, cuda.archs) == (str(path), "13.0", ["8.0", "9.0+PTX"])
    assert "building CUDA kernels with nvcc 13.0 for 8.0;9.0+PTX (torch's CUDA: 13.2)" in capsys.readouterr().err


def test_nvcc_of_cuda_home_precedes_the_path_and_the_path_precedes_the_default_location(monkeypatch, tmp_path):
    usual = nvcc(tmp_path / "usual" / "nvcc", "11.1")
    monkeypatch.setattr(cuda_toolkit, "USUAL_NVCC", usual)
    assert cuda_toolkit.find_cuda(torch_with("13.2")).nvcc == str(usual)
    on_path = nvcc(tmp_path / "bin" / "nvcc", "12.2")
    assert cuda_toolkit.find_cuda(torch_with("13.2")).nvcc == str(on_path)
    home = nvcc(tmp_path / "toolkit" / "bin" / "nvcc", "13.1")
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "toolkit"))
    assert cuda_toolkit.find_cuda(torch_with("13.2")).nvcc == str(home)
    other = nvcc(tmp_path / "other" / "bin" / "nvcc", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "other"))
    assert cuda_toolkit.find_cuda(torch_with("13.2")).nvcc == str(other)


def test_cuda_home_without_nvcc_is_reported_and_ignored(monkeypatch, tmp_path, capsys):
    path = nvcc(tmp_path / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "empty"))
    assert cuda_toolkit.find_cuda(torch_with("13.2")).nvcc == str(path)
    assert f"CUDA_HOME={tmp_path / 'empty'} has no bin/nvcc; looking on the PATH" in capsys.readouterr().err


# What is installed, torch's CUDA, and the reason and the remedy in the message.
WITHOUT = {
    "torch without CUDA": (lambda bin: nvcc(bin / "nvcc"), None, ["torch 2.15.0 is a build without CUDA"], "of torch"),
    "no nvcc": (lambda bin: None, "13.2", ["no nvcc was found"], "install the CUDA 13.2 toolkit or set CUDA_HOME"),
    "newer major": (
        lambda bin: nvcc(bin / "nvcc", "14.1"),
        "13.2",
        ["nvcc has CUDA 14.1 and torch has CUDA 13.2"],
        "Point CUDA_HOME at a CUDA 13.2 toolkit",
    ),
    "nvcc fails": (
        lambda bin: script(bin / "nvcc", "exit 3"),
        "13.2",
        ["--version fails", "exit status 3"],
        "CUDA_HOME",
    ),
    "nvcc is garbage": (lambda bin: script(bin / "nvcc", "echo hello"), "13.2", ["has no release"], "CUDA_HOME"),
    "nvcc does not start": (
        lambda bin: script(bin / "nvcc", "").write_text("#!/no/such/shell\n"),
        "13.2",
        ["--version fails", "No such file"],
        "CUDA_HOME",
    ),
    "nvcc answers bytes": (
        lambda bin: script(bin / "nvcc", r"printf '\377\376'"),
        "13.2",
        ["has no release"],
        "CUDA_HOME",
    ),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_building_without_cuda_reports_the_reason_and_the_remedy(monkeypatch, tmp_path, capsys, case):
    make, torch_cuda, reasons, remedy = WITHOUT[case]
    make(tmp_path / "bin")
    assert cuda_toolkit.find_cuda(torch_with(torch_cuda)) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pix2pixhd: building without CUDA kernels: ")
    assert all(reason in line for reason in reasons)
    assert remedy in line

    monkeypatch.setenv("PIX2PIXHD_CUDA", "1")
    with pytest.raises(BuildError) as caught:
        cuda_toolkit.find_cuda(torch_with(torch_cuda))
    (line,) = str(caught.value).strip().splitlines()
    assert line.startswith("pix2pixhd: PIX2PIXHD_CUDA=1, but ")
    assert all(reason in line for reason in [*reasons, remedy])


@pytest.mark.parametrize(("option", "built"), [("0", False), ("1", True), ("auto", True), ("", True)])
def test_the_environment_variable_turns_cuda_off_or_on(monkeypatch, tmp_path, capsys, option, built):
    nvcc(tmp_path / "bin" / "nvcc")
    monkeypatch.setenv("PIX2PIXHD_CUDA", option)
    assert (cuda_toolkit.find_cuda(torch_with("13.2")) is not None) == built
    assert ("building without CUDA kernels: PIX2PIXHD_CUDA=0" in capsys.readouterr().err) == (not built)


@pytest.mark.parametrize("option", ["yes", "2", "ON"])
def test_unknown_value_of_the_environment_variable_is_rejected(monkeypatch, option):
    monkeypatch.setenv("PIX2PIXHD_CUDA", option)
    with pytest.raises(SystemExit, match=f"PIX2PIXHD_CUDA must be auto, 0 or 1, got '{option}'"):
        cuda_toolkit.find_cuda(torch_with("13.2"))


@pytest.mark.parametrize(
    ("requested", "gpus", "expected"),
    [
        ("", (), ["8.0", "9.0+PTX"]),
        ("", ((9, 0), (8, 6), (9, 0)), ["8.6", "9.0+PTX"]),
        ("7.5", ((9, 0),), ["7.5"]),
        ("8.0;9.0a+PTX", (), ["8.0", "9.0a+PTX"]),
        ("8.0 8.6,9.0; 12.0", (), ["8.0", "8.6", "9.0", "12.0"]),
        (";9.0;", (), ["9.0"]),
    ],
)
def test_requested_architectures_precede_the_visible_gpus(monkeypatch, requested, gpus, expected):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", requested)
    assert archs.wanted(torch_with("13.2", *gpus)) == expected


@pytest.mark.parametrize("requested", ["Hopper", "sm_90", "90", "9.0;native", ";", "9.0+SASS"])
def test_invalid_architectures_are_rejected(monkeypatch, requested):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", requested)
    with pytest.raises(SystemExit, match=r"TORCH_CUDA_ARCH_LIST must list architectures such as '8.0;9.0\+PTX', got '"):
        archs.wanted(torch_with("13.2"))


def test_architectures_and_ptx_become_gencode_flags():
    cuda = cuda_toolkit.Cuda("nvcc", "13.0", ["8.0", "9.0a+PTX"])
    assert cuda.gencode == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]


# The architectures of nvcc 12.6 and of nvcc 13.0.
OLD, NEW = [(5, 0), (7, 0), (8, 0), (8, 7), (9, 0)], [(7, 5), (8, 0), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)]


@pytest.mark.parametrize(
    ("requested", "capabilities", "expected", "message"),
    [
        ("8.0;9.0+PTX", OLD, "8.0;9.0+PTX", ""),
        ("9.0+PTX;9.0", OLD, "9.0+PTX", ""),
        ("9.0a;10.0f", NEW, "9.0a;10.0f", ""),
        ("13.0", NEW, "12.1+PTX", "nvcc 13 does not support 13.0; using 12.1+PTX, which a GPU of 13.0 compiles"),
        ("13.0a", NEW, "12.1+PTX", "does not support 13.0a"),
        ("10.0+PTX", OLD, "9.0+PTX", "does not support 10.0; using 9.0+PTX"),
        ("8.8", OLD, "8.7+PTX", "does not support 8.8; using 8.7+PTX"),
        ("9.0;12.0;10.0", OLD, "9.0+PTX", "does not support 12.0"),
        ("7.0;8.0", NEW, "8.0", "no longer supports 7.0; skipped"),
        ("13.0", [], "13.0", ""),
        ("6.1;8.0+PTX", OLD, "8.0+PTX", "6.1 is skipped: the CUDA kernels need compute capability 7.0 or newer"),
        ("5.0;8.0", OLD, "8.0", "5.0 is skipped"),
        ("6.1+PTX;7.0", [], "7.0", "6.1 is skipped"),
    ],
)
def test_unsupported_architectures_are_replaced_or_skipped(capsys, requested, capabilities, expected, message):
    assert archs.fit(requested.split(";"), capabilities, "nvcc 13") == expected.split(";")
    err = capsys.readouterr().err
    assert message in err
    assert bool(message) == bool(err)


def test_architectures_are_fitted_to_those_that_nvcc_lists(monkeypatch, tmp_path, capsys):
    answers = "case $1 in --version) echo 'release 13.0,';; *) printf 'compute_%s\\n' 75 90 103; esac"
    path = script(tmp_path / "bin" / "nvcc", answers)
    assert archs.known(str(path)) == [(7, 5), (9, 0), (10, 3)]
    assert cuda_toolkit.find_cuda(torch_with("13.2", (12, 0))).archs == ["10.3+PTX"]
    assert "nvcc 13.0 does not support 12.0; using 10.3+PTX" in capsys.readouterr().err
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "5.2 7.0")
    assert cuda_toolkit.find_cuda(torch_with("13.2")) is None
    assert "nvcc 13.0 supports no GPU of 5.2;7.0. Use a torch and a toolkit" in capsys.readouterr().err


def test_nvcc_without_a_list_of_architectures_is_accepted(tmp_path):
    assert archs.known(str(script(tmp_path / "bin" / "nvcc", "exit 1"))) == []


def test_unsupported_gpu_beside_a_supported_one_is_skipped(tmp_path, capsys):
    nvcc(tmp_path / "bin" / "nvcc")
    assert cuda_toolkit.find_cuda(torch_with("13.2", (6, 1), (8, 6))).archs == ["8.6+PTX"]
    assert "6.1 is skipped: the CUDA kernels need compute capability 7.0 or newer" in capsys.readouterr().err


@pytest.mark.parametrize(("requested", "gpus"), [("", ((6, 1),)), ("5.2 6.1+PTX", ()), ("6.1", ((9, 0),))])
def test_only_unsupported_gpus_build_without_cuda(monkeypatch, tmp_path, capsys, requested, gpus):
    nvcc(tmp_path / "bin" / "nvcc")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", requested)
    assert cuda_toolkit.find_cuda(torch_with("13.2", *gpus)) is None
    assert "building without CUDA kernels: the CUDA kernels need compute capability 7.0" in capsys.readouterr().err
    monkeypatch.setenv("PIX2PIXHD_CUDA", "1")
    with pytest.raises(BuildError, match=r"need compute capability 7\.0 or newer.*TORCH_CUDA_ARCH_LIST"):
        cuda_toolkit.find_cuda(torch_with("13.2", *gpus))


def test_nvcc_is_not_downloaded_for_an_unsupported_gpu(monkeypatch):
    assert cuda_toolkit.missing_requirements(torch_with("13.2", (6, 1))) == []
    assert cuda_toolkit.missing_requirements(torch_with("13.2", (6, 1), (9, 0))) != []
    monkeypatch.setenv("PIX2PIXHD_CUDA", "1")
    assert cuda_toolkit.missing_requirements(torch_with("13.2", (6, 1))) != []
