"""The CPU operators and their loop over threads under ThreadSanitizer; ``make sanitize`` runs all dtypes and faults."""

import pytest

from . import build

gxx = build.compiler()
pytestmark = pytest.mark.skipif(gxx is None, reason="g++ with ThreadSanitizer is needed")


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    return build.Builder(tmp_path_factory.mktemp("thread_harness"), gxx, short=True)


@pytest.fixture(scope="module")
def harness(builder):
    return builder.build()


def test_operators_have_no_races_and_the_same_bits_for_any_number_of_threads(harness):
    done = build.run(harness)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("5 tests, 0 failures\n")


def test_threads_that_process_the_same_chunk_are_reported(harness):
    done = build.run(harness, "overlap", "multi_tensor")
    assert done.returncode != 0
    assert "data race" in done.stderr


def test_an_unsynchronised_selection_of_the_instruction_set_is_reported(builder, harness):
    fault = build.FAULTS[-1]
    done = build.run(builder.build_with_fault(fault), fault.test)
    assert done.returncode != 0
    assert "data race" in done.stderr
