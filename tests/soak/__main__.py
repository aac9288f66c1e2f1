"""Injects many faults into training runs: ``python -m tests.soak --injections 200 --seed 1``."""

import argparse
import collections
import pathlib
import random
import sys
import tempfile
import time

from tests.soak.kinds import FAULTS
from tests.soak.lab import Lab, growth_problems


def _arguments():
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--injections", type=int, default=200)
    parser.add_argument("--seed", type=int, help="seed of the first injection; the others count from it")
    parser.add_argument("--fault", choices=list(FAULTS), help="inject only this fault")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the check of memory and files; 0 for none")
    return parser.parse_args()


def main():
    options = _arguments()
    first = random.randrange(10**6) * 1000 if options.seed is None else options.seed
    names = [options.fault] if options.fault else list(FAULTS)
    outcomes = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(pathlib.Path(folder))
        try:
            for seed in range(first, first + options.injections):
                # The seed alone determines the fault, so that one injection can be repeated by its seed.
                fault = names[seed % len(names)]
                outcome = lab.inject(fault, seed)
                outcomes.append(outcome)
                result = f"FAILED ({outcome.details})" if outcome.problems else outcome.ending
                print(f"SEED {seed}: {fault}: {result}")
                print("".join(f"    {problem}\n" for problem in outcome.problems), end="", flush=True)
            grown = _grown(lab, options.steps) if options.steps else []
        finally:
            lab.close()
    _print_summary(outcomes)
    print(f"{len(outcomes)} injections from SEED {first} in {(time.monotonic() - began) / 60:.1f} minutes")
    return bool(grown) or any(outcome.problems for outcome in outcomes)


def _grown(lab, steps):
    before, after = lab.growth(steps, warm_up=steps // 10)
    found = growth_problems(before, after)
    print(f"{steps} steps: peak memory, open files and threads {before} -> {after}{': GROWN' if found else ''}")
    return found


def _print_summary(outcomes):
    print(f"{'fault':<20}{'injections':>11}{'failed':>8}  outcome")
    for fault in FAULTS:
        found = [outcome for outcome in outcomes if outcome.fault == fault]
        endings = collections.Counter(outcome.ending for outcome in found)
        text = ", ".join(f"{ending} {count}" for ending, count in endings.most_common())
        print(f"{fault:<20}{len(found):>11}{sum(bool(outcome.problems) for outcome in found):>8}  {text}")


if __name__ == "__main__":
    sys.exit(main())
