"""The statistics of the trainings, and that an interrupted series of trainings is continued."""

import json

import convergence
import numpy as np
import paired_differences
import pytest
import scipy.stats

from tests.training_fixtures import data_root, make_config, own_cache  # noqa: F401


def test_the_interval_is_that_of_scipys_paired_t_test():
    a, b = np.random.default_rng(0).normal(size=(2, 6))
    mean, half = paired_differences.interval(a - b)
    expected = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((expected.low, expected.high))


def test_the_permutation_test_is_that_of_scipy():
    values = np.random.default_rng(1).normal(0.5, size=8)
    expected = scipy.stats.permutation_test(
        (values,), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert paired_differences.sign_flip_test(values) == pytest.approx(expected.pvalue)
    many = np.random.default_rng(2).normal(0.3, size=40)
    p = scipy.stats.ttest_1samp(many, 0, alternative="greater").pvalue
    assert paired_differences.sign_flip_test(many) == pytest.approx(p, abs=0.02)


def runs(shift, seeds=12):
    """Trainings of one case whose fused runs differ systematically."""
    rng = np.random.default_rng(3)
    found = []
    for seed in range(seeds):
        plain = rng.normal(0.25, 0.02)
        for name, value in (("plain", plain), ("rounded", plain + rng.normal(0, 0.01))):
            found.append({"case": "a", "seed": seed, "implementation": name, "L1": value})
        found.append({"case": "a", "seed": seed, "implementation": "fused", "L1": plain + rng.normal(shift, 0.01)})
    return found


def test_a_systematic_difference_is_found_and_rounding_is_not():
    assert min(paired_differences.pooled_tests(runs(0.0), "L1")) > 0.05
    assert max(paired_differences.pooled_tests(runs(0.03), "L1")) < 0.01
    assert paired_differences.pooled_tests(runs(-0.03), "L1")[0] < 0.01


def test_unfinished_seeds_are_left_out():
    assert len(paired_differences.pairs_of(runs(0.0, seeds=3)[:-1], "L1")["a"]) == 2


@pytest.fixture
def small(monkeypatch, data_root):  # noqa: F811
    """Trainings of one epoch on five small images."""
    sizes = {"crops": 4, "batch": 1, "crop": 16, "ngf": 4, "ndf": 4, "blocks": 1, "epochs": 1}
    monkeypatch.setattr(convergence, "SIZES", sizes)
    monkeypatch.setattr("pix2pixhd.demo.dataset.write_demo_data", lambda folder, crops: None)
    make = convergence.make_config

    def make_config(case, seed, implementation, data, folder):  # noqa: F811
        return make(case, seed, implementation, data_root, folder)

    monkeypatch.setattr(convergence, "make_config", make_config)
    return sizes


def test_an_interrupted_series_of_trainings_is_continued(small, tmp_path, monkeypatch, capsys):
    path, train = tmp_path / "results.json", convergence.run
    started = []

    def run(case, seed, implementation, data):
        if len(started) == 2:
            raise KeyboardInterrupt
        started.append(implementation)
        return train(case, seed, implementation, data)

    arguments = ["--cases", "paper", "--seeds", "3", "--json", str(path)]
    monkeypatch.setattr(convergence, "run", run)
    with pytest.raises(KeyboardInterrupt):
        convergence.main(arguments)
    first = json.loads(path.read_text())["runs"]
    assert started == ["fused", "plain"]
    convergence.main([*arguments, "--table"])
    assert capsys.readouterr().out.endswith("no seed has all three trainings yet\n")
    assert first[0]["L1"] == pytest.approx(first[1]["L1"], rel=1e-3)  # three steps
    assert first[0]["steps"] == 3
    started.clear()
    convergence.main(arguments)
    assert started == ["rounded"]
    found = json.loads(path.read_text())["runs"]
    assert found[:2] == first
    assert 0 < abs(found[2]["L1"] - found[1]["L1"]) < 1e-2
    assert "| paper | 1 |" in capsys.readouterr().out
    monkeypatch.setattr(convergence, "SIZES", small | {"epochs": 2})
    with pytest.raises(SystemExit, match="other sizes"):
        convergence.main(arguments)
