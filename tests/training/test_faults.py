"""One fault of each kind, injected into a real training process; `make soak` injects hundreds at random points."""

import pytest

from tests.soak.lab import Lab, growth_problems


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    made = Lab(tmp_path_factory.mktemp("lab"), ("plain", "workers"))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("fault", "seed"),
    [
        ("kill -9", 7),
        ("SIGTERM", 6),
        ("SIGINT", 8),
        ("full disk", 6),
        ("read-only folder", 7),
        ("missing image", 5),
        ("truncated image", 2),
        ("damaged checkpoint", 6),
        ("dead worker", 2),
        ("clock", 7),
        ("non-finite batch", 6),
    ],
)
def test_a_run_survives_a_fault_and_resumes_bit_for_bit(lab, fault, seed):
    outcome = lab.inject(fault, seed)
    assert not outcome.problems, f"{outcome.details}\n" + "\n".join(outcome.problems)


def test_memory_and_open_files_do_not_grow(lab):
    assert not growth_problems(*lab.growth(steps=100, warm_up=40))
