"""Statistics of the runs of convergence.py: differences between runs of the same seed, and their table."""

import itertools
import math

import numpy as np
import report_tables

METRICS = ("L1", "SSIM")
_EXACT = 12  # with more pairs, signs are drawn at random instead of enumerated
_DRAWS = 20_000


def pairs_of(runs, metric):
    """The finished seeds of each case: ``{case: [(fused, plain, rounded), ...]}``."""
    values = {}
    for run in runs:
        values.setdefault((run["case"], run["seed"]), {})[run["implementation"]] = run[metric]
    found = {}
    for (case, _), by_name in sorted(values.items(), key=lambda item: item[0][1]):
        if len(by_name) == 3:
            found.setdefault(case, []).append(tuple(by_name[name] for name in ("fused", "plain", "rounded")))
    return found


def interval(differences):
    """The mean of paired differences, and half the width of its 95 % confidence interval (Student's t)."""
    from scipy.stats import t

    n = len(differences)
    mean = float(np.mean(differences))
    if n < 2:
        return mean, math.inf
    return mean, float(t.ppf(0.975, n - 1) * np.std(differences, ddof=1) / math.sqrt(n))


def sign_flip_test(values):
    """The probability of a mean at least as large as that of ``values`` if the sign of every value were random."""
    values = np.asarray(values, dtype=float)
    if len(values) <= _EXACT:
        signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
    else:
        signs = np.random.default_rng(0).choice((1, -1), size=(_DRAWS, len(values)))
        signs = np.concatenate([np.ones((1, len(values))), signs])  # the observed signs are one of the draws
    means = signs @ values
    return float(np.mean(means >= values.sum() - 1e-12 * np.abs(values).sum()))


def pooled_tests(runs, metric):
    """Permutation tests over all cases and seeds; the differences are divided by their size in the case.

    Returns:
        The probability (two-sided) of the mean difference between fused and plain if only rounding separates them, and
        that of a distance between fused and plain which exceeds that of rounded and plain by as much as observed.
    """
    signed, larger = [], []
    for triples in pairs_of(runs, metric).values():
        fused, plain, rounded = np.array(triples).T
        ours, noise = fused - plain, rounded - plain
        size = np.sqrt(np.mean(np.concatenate([ours, noise]) ** 2)) or 1.0
        signed += list(ours / size)
        larger += list((np.abs(ours) - np.abs(noise)) / size)
    one_sided = sign_flip_test(np.array(signed) * (1 if sum(signed) >= 0 else -1))
    return min(1.0, 2 * one_sided), sign_flip_test(larger)


def _difference(values):
    mean, half = interval(values)
    return f"{mean:+.3f} ± {half:.3f}" if math.isfinite(half) else f"{mean:+.3f}"


def table(runs):
    """The differences of each case, as a table of Markdown."""
    headers = ["losses", "seeds"]
    for metric in METRICS:
        headers += [f"{metric}, plain", "pix2pixhd − plain", "plain, one rounding − plain"]
    rows = []
    by_metric = {metric: pairs_of(runs, metric) for metric in METRICS}
    for case, triples in by_metric[METRICS[0]].items():
        cells = [case, str(len(triples))]
        for metric in METRICS:
            fused, plain, rounded = np.array(by_metric[metric][case]).T
            spread = f" (± {np.std(plain, ddof=1):.3f})" if len(plain) > 1 else ""
            cells += [f"{np.mean(plain):.3f}{spread}", _difference(fused - plain), _difference(rounded - plain)]
        rows.append(cells)
    return report_tables.table(headers, rows)


def tests(runs):
    """One sentence per metric with the results of the tests over all cases and seeds."""
    sentences = []
    for metric in METRICS:
        found = pairs_of(runs, metric)
        triples = np.array([triple for case in found.values() for triple in case])
        mean, half = interval(triples[:, 0] - triples[:, 1])
        direction, size = pooled_tests(runs, metric)
        sentences.append(
            f"{metric}: the mean difference is {mean:+.4f} (95 % confidence interval ± {half:.4f}, p = "
            f"{direction:.2f}); p = {size:.2f} for a larger distance from plain PyTorch than that of one rounding."
        )
    return f"Over all {len(triples)} pairs of trainings, by permutation tests. {' '.join(sentences)}"


def report(results):
    """The generated part of the documentation, from a ``report_tables.Document``."""
    runs = results.content["runs"]
    if not pairs_of(runs, METRICS[0]):
        return "no seed has all three trainings yet"
    steps = " or ".join(map(str, sorted({run["steps"] for run in runs})))
    return f"{table(runs)}\n\n{tests(runs)} {len(runs)} trainings of {steps} steps."
