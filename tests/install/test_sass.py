"""The report of the GPU code: the library that was built keeps the rules and budgets, and what the report counts."""

import dataclasses
import json

import pytest

from build_tools.messages import BuildError
from build_tools.sass import __main__ as command
from build_tools.sass import budgets
from build_tools.sass.disassembly import Kernel, parse_blocks, readable_name
from build_tools.sass.kernels import Path, Work, main_path, work_of
from build_tools.sass.library import LIBRARY, find_tools, read_library
from build_tools.sass.prediction import GPUS, predict

# A path of single elements, a loop over whole chunks, and the same loop before the compiler unrolled it.
CODE = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   MOV R1, R0 ;
        /*0020*/              @P1  BRA `(.L_x_1) ;
.L_x_2:
        /*0030*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0040*/               @P2 LDG.E R8, desc[UR4][R2.64] ;
        /*0050*/                   BRA P0, `(.L_x_2) ;
        /*0060*/                   BRA `(.L_x_3) ;
.L_x_1:
        /*0100*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0110*/                   LDG.E.128 R8, desc[UR4][R2.64+0x1000] ;
        /*0120*/                   FADD R0, R4, R8 ;
        /*0130*/                   F2F.F64.F32 R10, R0 ;
        /*0140*/                   DADD R12, R12, R10 ;
        /*0150*/              @!P0 BRA `(.L_x_1) ;
.L_x_6:
        /*0160*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0170*/                   DADD R12, R12, R10 ;
        /*0180*/                   DADD R12, R12, R10 ;
        /*0190*/                   DADD R12, R12, R10 ;
        /*01a0*/              @!P0 BRA `(.L_x_6) ;
.L_x_3:
        /*0200*/                   STG.E.64 desc[UR4][R2.64], R12 ;
        /*0210*/                   EXIT ;
.L_x_4:
        /*0220*/                   BRA `(.L_x_4) ;
        /*0230*/                   NOP ;
"""
WORK_OF_CODE = Work(anchor="LDG", anchored=4, moved=4, per_thread=16, element=4)  # two iterations of eight elements


def kernel(code=CODE, name="pointwise_forward<float32, 0>", registers=32, stack=0):
    return Kernel(name, registers, stack, shared=0, blocks=parse_blocks(code))


@pytest.fixture(scope="module")
def tools():
    try:
        return find_tools()
    except BuildError as error:
        pytest.skip(str(error))


def test_the_built_kernels_keep_the_rules_and_their_budgets(tools):
    if not LIBRARY.exists():
        pytest.skip("no CUDA kernels were built")
    committed = budgets.read()
    arch = max(committed["archs"])
    try:
        kernels, version = read_library(arch=arch)
    except BuildError as error:
        pytest.skip(str(error))  # built for other GPUs
    assert budgets.broken_rules(kernels) == []
    if version != committed["nvcc"]:
        pytest.skip(f"the budgets are for nvcc {committed['nvcc']}, the library is from {version}")
    assert budgets.compare(kernels, committed)[0] == []


def test_the_main_path_is_the_loop_of_whole_chunks():
    path = main_path(kernel(), WORK_OF_CODE)
    assert path.instructions == round(6 / 8 + (3 + 5 + 2) / 16, 2)  # the loop; the code before and after it
    assert path.float64 == round(2 / 8 + 3 / 16, 2)
    assert (path.load, path.store, path.in_flight, path.loaded, path.local) == (16, 0, 32, 4, 0)


def test_a_call_of_a_label_is_a_branch_and_other_calls_are_not_followed():
    back_edge = "@!P0 BRA `(.L_x_1) ;\n.L_x_6"
    assert back_edge in CODE
    left_by = {
        name: CODE.replace(back_edge, f"@P0 {name} `(.L_x_3) ;\n        /*0158*/  BRA `(.L_x_1) ;\n.L_x_6")
        for name in ("BRA", "CALL.REL.NOINC")
    }
    assert main_path(kernel(left_by["CALL.REL.NOINC"]), WORK_OF_CODE) == main_path(kernel(left_by["BRA"]), WORK_OF_CODE)
    function = CODE.replace("FADD R0, R4, R8", "CALL.REL.NOINC `($function)")
    assert main_path(kernel(function), WORK_OF_CODE) == main_path(kernel(), WORK_OF_CODE)


def test_spilled_registers_in_the_main_path_are_counted():
    assert main_path(kernel(CODE.replace("FADD R0, R4, R8", "STL [R1], R4")), WORK_OF_CODE).local == 1
    assert main_path(kernel(CODE.replace("MOV R1, R0", "STL [R1], R4")), WORK_OF_CODE).local == 0


def test_a_straight_path_counts_from_load_to_store_with_the_code_before_and_after():
    code = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/              @P0  BRA `(.L_x_1) ;
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   FADD R0, R4, R8 ;
        /*0040*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0050*/                   EXIT ;
.L_x_1:
        /*0060*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0070*/                   FADD R0, R4, R8 ;
        /*0080*/                   FADD R0, R4, R8 ;
        /*0090*/                   FADD R0, R4, R8 ;
        /*00a0*/                   BRA P1, `(.L_x_2) ;
        /*00b0*/                   STG.E desc[UR4][R2.64], R4 ;
.L_x_2:
        /*00c0*/                   EXIT ;
    """
    path = main_path(kernel(code), Work("STG", 4, 8, per_thread=4, element=4))
    assert (path.instructions, path.load, path.store) == (6 / 4, 16, 16)


def test_atomics_spills_and_narrow_accesses_break_the_rules():
    assert budgets.broken_rules({"sm_90": [kernel()]}) == []
    for opcode in ("RED.E.ADD.F32.FTZ.RN.STRONG.GPU", "ATOMG.E.ADD", "ATOMS.ADD", "ATOM.E.CAS"):
        (broken,) = budgets.broken_rules({"sm_90": [kernel(CODE.replace("FADD", opcode))]})
        assert opcode in broken
    assert budgets.broken_rules({"sm_90": [kernel(CODE.replace("FADD", "REDUX.SUM"))]}) == []
    (narrow,) = budgets.broken_rules({"sm_90": [kernel(CODE.replace("LDG.E.128", "LDG.E"))]})
    assert "4 bytes" in narrow
    (spilled,) = budgets.broken_rules({"sm_90": [kernel(stack=8)]})
    assert "8 bytes of stack" in spilled


@pytest.mark.parametrize(
    ("worse", "column"),
    [
        ({"code": CODE.replace("FADD", "FMUL R9, R9, R9 ;\n        /*0125*/  FADD")}, "per_element"),
        ({"code": CODE.replace("FADD", "DMUL R9, R9, R9 ;\n        /*0125*/  FADD")}, "float64"),
        ({"code": CODE.replace("LDG.E.128", "LDG.E.64")}, "load"),
        ({"code": CODE.replace("FADD R0, R4, R8", "LDL R0, [R1]")}, "local"),
        ({"registers": 33}, "registers"),
        ({"stack": 8}, "stack"),
    ],
)
def test_a_regression_is_reported_with_its_budget(worse, column):
    committed = {"archs": {"sm_90": {kernel().name: list(dataclasses.astuple(budgets.row(kernel())))}}}
    assert budgets.compare({"sm_90": [kernel()]}, committed) == ([], [])
    regressions, _ = budgets.compare({"sm_90": [kernel(**worse)]}, committed)
    assert any(f" {column} " in line and "budget" in line for line in regressions)
    assert budgets.compare({"sm_89": [kernel(**worse)]}, committed) == ([], [])  # has no budgets


def test_new_and_removed_kernels_need_new_budgets():
    committed = {"archs": {"sm_90": {"relu<float32, 1>": list(dataclasses.astuple(budgets.row(kernel())))}}}
    added, removed = budgets.compare({"sm_90": [kernel()]}, committed)[0]
    assert "pointwise_forward<float32, 0>: no budget" in added
    assert "relu<float32, 1>: has a budget but is not in the library" in removed
    for name in ("unknown<float32>", "pointwise_forward<float32>"):
        with pytest.raises(LookupError, match=f"does not describe {name}: update WORK"):
            budgets.row(kernel(name=name))


def test_written_budgets_are_read_again(monkeypatch, tmp_path):
    monkeypatch.setattr(budgets, "FILE", tmp_path / "budgets.json")
    budgets.write({"sm_90": [kernel()]}, "13.0.1")
    assert budgets.read()["nvcc"] == "13.0.1"
    assert budgets.compare({"sm_90": [kernel()]}, budgets.read()) == ([], [])


def test_names_are_readable():
    prefix = "_ZN9pix2pixhd4cuda44_GLOBAL__N__b8e74533_11_multi_l1_cu_6f29ce93"
    assert readable_name(f"{prefix}17finish_sum_kernelEPKdldNS0_12DeviceScalarE") == "finish_sum"
    assert readable_name(f"{prefix}17l1_forward_kernelI6__halfS3_Lb1EEEvNS0_10LaunchArgsEPd") == (
        "l1_forward<float16, float16, 1>"
    )
    assert readable_name(f"{prefix}20relu_distance_kernelIdLNS_8DistanceE0ELb1EEEvNS1_5SidesIT_EEPd") == (
        "relu_distance<float64, 0, 1>"
    )


def test_a_prediction_names_what_bounds_the_kernel():
    fast = Path(4.0, 0.0, load=16, store=0, narrow_loads=0.0, loaded=4.0, in_flight=64, local=0)
    elements = 1 << 26
    h100, consumer = GPUS[1], GPUS[2]
    one = kernel()
    work = work_of(one)
    assert work.moved == 4
    free = predict(one, work, fast, elements, h100)
    assert (free.bound, 0.9 < free.share <= 1) == ("memory", True)
    assert predict(one, work, fast, elements, h100, then=one).share < free.share  # the launch that waits takes time
    assert predict(one, work, fast, elements // 1000, h100).share < free.share  # the tail takes a larger share
    assert predict(one, work, dataclasses.replace(fast, instructions=200.0), elements, h100).bound == "issue"
    assert predict(one, work, dataclasses.replace(fast, float64=4.0), elements, h100).bound == "memory"
    assert predict(one, work, dataclasses.replace(fast, float64=4.0), elements, consumer).bound == "float64"
    assert predict(one, work, dataclasses.replace(fast, in_flight=2), elements, h100).bound == "latency"
    assert predict(dataclasses.replace(one, registers=255), work, fast, elements, h100).share < 1


def test_a_missing_library_is_reported(tools, tmp_path):
    with pytest.raises(BuildError, match="make build"):
        read_library(tmp_path / "_ops_cuda.so")
    (tmp_path / "_ops_cuda.so").write_bytes(b"no library")
    with pytest.raises(BuildError, match="contains no GPU code for all"):
        read_library(tmp_path / "_ops_cuda.so")


def run_command(monkeypatch, kernels, *arguments):
    monkeypatch.setattr("sys.argv", ["sass", *arguments])
    monkeypatch.setattr(command, "read_library", lambda library: ({"sm_86": kernels}, budgets.read()["nvcc"]))
    return command.main()


def test_the_command_prints_all_kernels_and_fails_on_a_broken_rule(monkeypatch, capsys, tmp_path):
    assert run_command(monkeypatch, [kernel()], "--json", str(tmp_path / "report.json")) == 0
    out = capsys.readouterr().out
    assert "pointwise_forward<float32, 0>" in out
    assert "Budgets not compared for sm_86" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["archs"]["sm_86"]["pointwise_forward<float32, 0>"]["registers"] == 32
    assert run_command(monkeypatch, [kernel(stack=8)]) == 1
    assert "8 bytes of stack" in capsys.readouterr().out


def test_budgets_are_not_replaced_for_other_gpus_or_by_broken_kernels(monkeypatch, capsys):
    before = budgets.FILE.read_text()
    with pytest.raises(BuildError, match="the budgets are for sm_80, sm_90 and the library is for sm_86"):
        run_command(monkeypatch, [kernel()], "--update-budgets")
    assert run_command(monkeypatch, [kernel(stack=8)], "--update-budgets") == 1
    assert budgets.FILE.read_text() == before
    with pytest.raises(SystemExit):
        run_command(monkeypatch, [kernel()], "--archs", "9.0")
    assert "architectures such as sm_89, got '9.0'" in capsys.readouterr().err


def test_the_documentation_has_one_table_of_predictions():
    assert len(command.TABLE.findall(command.DOCUMENT.read_text())) == 1
