"""Ratios with confidence intervals, and the comparison with an earlier run."""

import dataclasses
import itertools
import json
import time

import pytest
import torch
from rich.console import Console

from pix2pixhd.bench.agreement import Agreement
from pix2pixhd.bench.case import Setup
from pix2pixhd.bench.comparison import changes, differences
from pix2pixhd.bench.peak import ComputeLimit
from pix2pixhd.bench.plots import plot
from pix2pixhd.bench.results import CaseResult, read_machine, read_results
from pix2pixhd.bench.run import run_case
from pix2pixhd.bench.tables import as_lines, further_table, memory_table, speed_table
from pix2pixhd.bench.timing import Ratio, Timing, compare
from pix2pixhd.errors import InputError


def timing(seconds, spread=0.02, rounds=21, seed=0):
    noise = torch.randn(rounds, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Timing(tuple((seconds * (spread * noise).exp()).tolist()))


def result(plain=2.0, spread=0.02, **changed):
    timings = {
        "fused": timing(1e-3, spread),
        "plain": timing(plain * 1e-3, spread, seed=1),
        "limit": timing(9e-4, seed=2),
    }
    agreements = {"plain": Agreement(1e-7, 1e-7), "fused": Agreement(1e-7, 1e-7)}
    memory = {"fused": {"retained": 10**6, "peak": 3 * 10**6}, "plain": {"retained": 4 * 10**6, "peak": 6 * 10**6}}
    return dataclasses.replace(CaseResult("feature matching", Setup(), timings, agreements, memory), **changed)


def text_of(table):
    console = Console(width=150)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_the_interval_contains_the_true_ratio_in_most_runs():
    inside = 0
    for seed in range(100):
        ratio = Ratio.of(timing(3.0, 0.1, seed=2 * seed), timing(2.0, 0.1, seed=2 * seed + 1), samples=300)
        inside += ratio.low <= 1.5 <= ratio.high
    assert 85 <= inside <= 100


def test_a_change_of_the_machines_speed_between_rounds_does_not_matter():
    slow = [1.0 + (k % 3) for k in range(21)]
    ratio = Ratio.of(Timing(tuple(3 * x for x in slow)), Timing(tuple(2 * x for x in slow)))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.5, 1.5, 1.5))
    assert not ratio.uncertain


def test_a_ratio_that_varies_is_not_printed_as_a_measurement():
    assert "2.0" in text_of(speed_table([result()]))
    varying = result(spread=0.9)
    assert varying.uncertain
    row = next(line for line in text_of(speed_table([varying])).splitlines() if "feature matching" in line)
    assert "not measured" in row
    assert "×" not in row


def test_tables_are_complete_on_a_narrow_terminal():
    console = Console(width=80)
    with console.capture() as captured:
        console.print(speed_table([result()]), memory_table([result()]))
    assert "…" not in captured.get()


def test_disagreement_with_float64_is_shown():
    wrong = result(agreements={"plain": Agreement(1e-7, 1e-7), "fused": Agreement(1e-3, 1e-7)})
    assert "NO, 1e-03; plain 1e-07" in text_of(speed_table([wrong]))
    assert "yes, 1e-07" in text_of(speed_table([result()]))


def test_memory_is_relative_to_plain_pytorch():
    text = text_of(memory_table([result()]))
    assert "25.0%" in text
    assert "50.0%" in text


def test_further_implementations_have_a_table_of_their_own():
    assert further_table([result()]) is None
    timings = {**result().timings, "checkpoint": timing(3e-3, seed=3)}
    agreements = {**result().agreements, "checkpoint": Agreement(1e-3, 1e-7)}
    memory = {**result().memory, "checkpoint": {"retained": 2 * 10**6, "peak": 3 * 10**6}}
    found = result(timings=timings, agreements=agreements, memory=memory)
    [row] = [line for line in text_of(further_table([found])).splitlines() if "plain PyTorch, checkpoints" in line]
    assert "× (" in row
    assert "NO, 1e-03" in row
    assert "50.0%" in next(line for line in text_of(memory_table([found])).splitlines() if "checkpoints" in line)
    again = read_results(json.dumps({"cases": [found.to_json()]}), "old.json")
    assert any("against plain PyTorch, checkpoints: " in line for line in changes([found], again))


def test_launches_and_bandwidth_of_a_gpu_have_columns():
    assert "launches" not in text_of(speed_table([result()]))
    found = result(launches={"fused": 2, "plain": 41}, of_copy=0.92)
    [again] = read_results(json.dumps({"cases": [found.to_json()]}), "old.json")
    text = text_of(speed_table([again]))
    assert "2 / 41 / –" in text
    assert "92%" in text


def test_half_precision_is_compared_with_plain_float32_of_the_same_rounds():
    half = result(setup=Setup(dtype=torch.bfloat16), plain_float32=timing(4e-3, 0.0))
    text = text_of(speed_table([result(), half]))
    assert "plain float32" in text
    assert "bfloat16" in text
    [again] = read_results(json.dumps({"cases": [half.to_json()]}), "old.json")
    assert again.over_plain_float32 == half.over_plain_float32
    assert half.over_plain_float32.value == pytest.approx(4, rel=0.05)
    varying = dataclasses.replace(half, plain_float32=timing(4e-3, 0.9, seed=5))
    assert varying.uncertain


def test_dtypes_are_measured_in_the_same_rounds():
    setups = [Setup(16, 16, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    wide, half = run_case("LSGAN, generator", setups, ["fused", "plain"], rounds=2, report=lambda what: None)
    assert [found.setup for found in (wide, half)] == setups
    assert wide.plain_float32 is None
    assert half.plain_float32 == wide.timings["plain"]
    assert half.timings.keys() == {"fused", "plain"}
    assert all(found.agrees for found in half.agreements.values())


@pytest.mark.parametrize(("plain", "verdict"), [(2.0, "no change beyond noise"), (3.0, "faster"), (1.3, "SLOWER")])
def test_changes_are_those_beyond_noise(plain, verdict):
    document = json.dumps({"cases": [result().to_json()]})
    lines = changes([result(plain)], read_results(document, "old.json"))
    [line] = [line for line in lines if "plain PyTorch" in line]
    assert line.endswith(verdict)
    assert any("bandwidth limit" in line and line.endswith("no change beyond noise") for line in lines)


MEMORY = "memory: no change by more than 3% and 0.5 MB"
ERRORS = "agreement with float64: no change beyond rounding"


def test_changes_of_memory_and_of_agreement_are_listed():
    assert changes([result()], [result()])[-2:] == [MEMORY, ERRORS]
    memory = {"fused": {"retained": 10**6, "peak": 4 * 10**6}, "plain": {"retained": 2 * 10**6, "peak": 61 * 10**5}}
    lines = changes([result(memory=memory)], [result()])
    prefix = "feature matching, 1024x512, float32, "
    assert f"{prefix}peak memory of pix2pixhd: 3.0 MB before, 4.0 MB now: MORE" in lines
    assert f"{prefix}memory saved for backward of plain PyTorch: 4.0 MB before, 2.0 MB now: less" in lines
    assert len([line for line in lines if "memory" in line]) == 2
    assert changes([result(memory={})], [result()])[-2] == "memory: not measured in both runs"


@pytest.mark.parametrize(
    ("error", "verdict"), [(1e-3, "NO LONGER AGREES with float64"), (1.9e-6, "LARGER"), (3e-7, None)]
)
def test_changes_of_the_error_are_those_beyond_rounding(error, verdict):
    old = result(agreements={"plain": Agreement(1e-7, 1e-7), "fused": Agreement(1e-7, 1e-6)})
    new = result(agreements={"plain": Agreement(1e-7, 1e-7), "fused": Agreement(error, 1e-6)})
    lines = [line for line in changes([new], [old]) if "error of" in line]
    if verdict is None:
        assert not lines
        return
    assert [line.split("now: ")[1] for line in lines] == [verdict]
    back = [line for line in changes([old], [new]) if "error of" in line]
    assert back[0].endswith("agrees again" if error == 1e-3 else "smaller")


def test_another_machine_is_stated_and_ratios_are_compared_all_the_same():
    machine = {"processor": "A", "torch": "2.14", "threads": 2, "date": "2026-12-01", "command": "pix2pixhd bench"}
    assert differences({**machine, "date": "2026-12-02"}, [result()], machine, [result()]) == [
        "Machine, versions, threads and device are those of the earlier measurements."
    ]
    earlier = result(setup=Setup(device=torch.device("cuda"), sets=3))
    [line] = differences({**machine, "processor": "B", "threads": 4}, [result()], {**machine, "gpu": "G"}, [earlier])
    for part in (
        "processor (A before, B now)",
        "threads (2 before, 4 now)",
        "gpu (G before, not stated now)",
        "device (cuda before, cpu now)",
    ):
        assert part in line
    assert "torch" not in line
    assert any("2.00× before, 2.00× now: no change" in line for line in changes([result()], [earlier]))
    [line] = differences(machine, [result()], {}, [result()])
    assert "does not state its machine" in line


@pytest.mark.parametrize(("machine", "found"), [({"torch": 2}, {"torch": "2"}), ([], {}), (None, {})])
def test_the_machine_is_read_from_any_file(machine, found):
    assert read_machine(json.dumps({"cases": [], "machine": machine})) == found


def test_files_of_earlier_versions_are_read():
    case = result().to_json()
    del case["error of plain, its allowance for rounding, largest"]
    [found] = read_results(json.dumps({"cases": [case]}), "old.json")
    assert found.agreements["fused"] == Agreement(1e-7, 1e-7)


def test_errors_and_the_limit_of_networks_are_read_again():
    agreements = {"plain": Agreement(1e-7, 1e-7), "fused": Agreement(1e-2, 2e-2, 1e-6, 8e-3)}
    limit = ComputeLimit(timing(1e-3), 2e9, 1e9)
    made = result(agreements=agreements, compute=limit, unavailable={"compiled": "no compiler"})
    document = json.loads(json.dumps(made.to_json()))
    assert document["agrees with float64"] == {"plain": True, "fused": None}
    [found] = read_results(json.dumps({"cases": [document]}), "old.json")
    assert found == made


def test_networks_have_the_share_of_the_matrix_product_peak():
    network = {"fused": timing(4e-3), "plain": timing(8e-3, seed=1)}
    found = result(timings=network, compute=ComputeLimit(timing(1e-3, seed=4), 2e9, 6e9))
    assert found.of_limit.value == pytest.approx(0.75, rel=0.05)
    assert "75%" in text_of(speed_table([found])).replace("74%", "75%").replace("76%", "75%")
    varying = dataclasses.replace(found, compute=ComputeLimit(timing(1e-3, 0.9, seed=5), 2e9, 6e9))
    assert varying.uncertain


def test_an_implementation_that_failed_has_a_column():
    assert "failed" in text_of(speed_table([result(unavailable={"compiled": "no compiler"})]))
    assert "torch.compile" in text_of(speed_table([result(unavailable={"compiled": "no compiler"})]))


def test_lines_for_narrow_terminals_have_every_cell():
    lines = as_lines(memory_table([result()]))
    assert lines[0] == "memory above the inputs"
    assert "feature matching, 1024x512, pix2pixhd" in lines
    assert "feature matching, 1024x512, plain PyTorch" in lines
    assert "  peak: 6.0 MB" in lines


def test_cases_without_earlier_results_are_named():
    [line] = changes([result(setup=Setup(64, 64))], [result()])
    assert "64x64, float32: not in the earlier results" in line


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"cases": []}', '{"cases": [{"case": "VGGLoss"}]}', '{"seconds": {}}']
)
def test_other_files_are_refused(text):
    with pytest.raises(InputError, match=r"--compare: old\.json was not written by"):
        read_results(text, "old.json")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("setup", "device", "foo"),
        ("setup", "dtype", "nn"),
        ("setup", "width", [64]),
        ("seconds", "fused", []),
        ("seconds", "plain", [1.0, 2.0]),
        ("seconds", "limit", ["a"] * 21),
        ("seconds", "plain", [0.0] * 21),
        ("seconds", "plain", [10**400] * 21),
        ("seconds", "plain", [1e-300] * 21),
        ("seconds", "fused", None),
        ("bytes", "fused", {"peak": "much"}),
        ("relative error against float64", "fused", "small"),
    ],
)
def test_changed_results_are_refused_before_the_measurement(part, key, value):
    case = result().to_json()
    case[part][key] = value
    with pytest.raises(InputError, match=r"old\.json was not written by .*; measure again with --json"):
        read_results(json.dumps({"cases": [case]}), "old.json")
    with pytest.raises(InputError, match="was not written by"):
        read_results("[" * 100_000, "old.json")


def test_a_single_round_is_no_change_beyond_noise():
    def once(seconds):
        return result(timings={"fused": Timing((1.0,)), "plain": Timing((seconds,))})

    line = changes([once(3.0)], [once(2.0)])[0]
    assert line.endswith("not measured, with too few rounds")


def test_the_number_of_rounds_fits_the_budget():
    calls = {"fast": 0, "slow": 0}

    def counted(name):
        def call():
            calls[name] += 1

        return call

    found = compare({name: counted(name) for name in calls}, rounds=None, min_seconds=1e-4, budget=0.0)
    assert {len(timing.rounds) for timing in found.values()} == {5}
    found = compare({name: counted(name) for name in calls}, rounds=None, min_seconds=1e-4, budget=1e9)
    assert {len(timing.rounds) for timing in found.values()} == {50}


def test_rounds_end_with_the_budget_if_they_are_slower_than_the_first_calls():
    calls = itertools.count()

    def call():
        time.sleep(0.01 if next(calls) > 4 else 0)

    found = compare({"slow": call}, rounds=None, min_seconds=1e-9, budget=0.02)
    assert 5 <= len(found["slow"].rounds) < 20
    assert len(compare({"slow": call}, rounds=7, min_seconds=1e-9, budget=0.0)["slow"].rounds) == 7


@pytest.mark.parametrize("sizes", [(64,), (64, 128)])
def test_plots_have_a_legend_and_all_cases(sizes, tmp_path):
    results = [result(name=name, setup=Setup(size, size)) for name in ("first", "second") for size in sizes]
    plot(results, tmp_path / "plot", "svg")
    text = (tmp_path / "plot").read_text()
    assert all(comment in text for comment in ("first", "second", "plain PyTorch"))


def test_a_few_rounds_give_a_ratio_without_an_interval():
    few = result(timings={"fused": Timing((1.0,) * 4), "plain": Timing((2.0,) * 4)})
    text = text_of(speed_table([few]))
    assert "2.00×" in text
    assert "2.00× (" not in text
    assert "2.00× (2.00 to 2.00)" in text_of(
        speed_table([result(timings={n: Timing(t.rounds * 2) for n, t in few.timings.items()})])
    )


def test_columns_without_measurements_are_left_out():
    text = text_of(speed_table([result(timings={"fused": timing(1.0), "plain": timing(2.0, seed=1)})]))
    assert "torch.compile" not in text
    assert "of the limit" not in text


def test_variants_of_this_package_are_not_compared_with_earlier_ones():
    timings = {name: timing(seconds, seed=seed) for seed, (name, seconds) in enumerate(OWN_VARIANTS.items())}
    lines = changes([result(timings=timings)], [result(timings=timings)])
    speeds = [line for line in lines if ", against " in line]
    assert [line.split(", against ")[1].split(":")[0] for line in speeds] == ["plain PyTorch"]


OWN_VARIANTS = {"fused": 1.0, "plain": 2.0, "features": 0.5, "bounded": 1.5}


def test_json_marks_ratios_that_are_not_measured():
    ratios = [
        found.to_json()["times as long as fused"]["plain"]["measured"] for found in (result(), result(spread=0.9))
    ]
    assert ratios == [True, False]


def test_a_short_round_begins_with_an_untimed_call():
    calls = []
    compare({"fast": lambda: calls.append(1)}, rounds=4, warmup=2, min_seconds=1e-9)
    assert len(calls) == 2 + 1 + 4 * (1 + 1)  # warm-up, estimate, rounds
