"""Injects faults into runs, resumes these, and compares them with runs without faults."""

import contextlib
import dataclasses
import json
import pathlib
import random
import shutil

from tests.soak import faults
from tests.soak.case import Case
from tests.soak.commands import Commands
from tests.soak.kinds import FAULTS, MAY_LACK_IMAGES
from tests.soak.runs import SETTINGS, Reference, add_foreign_files, arguments, damage
from tests.training_fixtures import write_images


@dataclasses.dataclass
class Outcome:
    """The result of one injection.

    Attributes:
        fault: The name of the fault.
        ending: What happened to the run: ``finished`` in spite of the fault, ``resumed``, ``started again`` because
            there was no checkpoint yet, or ``resumed from an earlier checkpoint``.
        problems: What was wrong; empty if everything was as documented.
        details: The fault and its point.
    """

    fault: str
    ending: str
    problems: list[str]
    details: str


class Lab:
    """The data, the reference runs and the process that runs commands; shared by all injections.

    Args:
        folder: A folder for all files.
        settings: Names of the settings that injections choose from.
    """

    def __init__(self, folder, settings=tuple(SETTINGS)):
        self.folder = pathlib.Path(folder)
        self.data = self.folder / "data"
        self.settings = settings
        write_images(self.data)
        self.commands = Commands(self.folder)
        self._references = {}

    def close(self):
        """End the process that runs commands."""
        self.commands.__exit__()

    def reference(self, setting):
        """Return the result of a run without faults."""
        if setting not in self._references:
            output = self.folder / f"reference_{setting}" / "run"
            counted = output.with_name("operations")
            fault = {"point": {"none": str(counted)}, "folder": str(output)}
            ended = self.commands.run(arguments(setting, self.data, output), fault)
            assert ended.code == 0, ended.text
            assert not damage(output)
            self._references[setting] = Reference(output, int(counted.read_text()))
        return self._references[setting]

    def inject(self, fault, seed):
        """Inject one fault.

        Args:
            fault: A key of ``FAULTS``.
            seed: Determines everything about it.
        """
        rng = random.Random(f"{fault}:{seed}")
        setting = rng.choice(self.settings)
        if fault == "dead worker":
            setting = "workers"
        reference = self.reference(setting)
        folder = self.folder / f"case_{seed}"
        folder.mkdir()
        case = Case(self, rng, setting, folder, reference.operations)
        try:
            with case.disk() if fault == "full disk" else contextlib.nullcontext():
                case.foreign = add_foreign_files(case.output)
                FAULTS[fault](case)
                if fault != "damaged checkpoint":
                    case.problems += damage(case.output)
                case.finish()
                case.problems += reference.compare(case.output, case.foreign, fault in MAY_LACK_IMAGES)
        finally:
            faults.set_writable(folder, True)
            shutil.rmtree(folder)
        return Outcome(fault, case.ending, case.problems, f"{setting}, {'; '.join(case.details)}")

    def growth(self, steps, warm_up):
        """Measure what grows during a run of many steps; every epoch of three steps is validated and saved.

        Args:
            steps: The number of steps.
            warm_up: The number of steps before the first of the two compared measurements.

        Returns:
            The first measurement after the warm-up and the last one, see ``faults.measure``.
        """
        output, measured = self.folder / f"long_{steps}", self.folder / f"measured_{steps}"
        words = arguments("plain", self.data, output)
        words += [f"--trainer.max_steps={steps}", f"--optimizer.niter={steps}", f"--run.save_epoch_freq={steps}"]
        fault = {
            "action": "measure",
            "arguments": {"path": str(measured)},
            "point": {"every": 10},
            "folder": str(output),
            "reached": str(self.folder / "reached"),
        }
        ended = self.commands.run([*words, "--run.display_freq=30", "--run.save_latest_freq=10"], fault)
        assert ended.code == 0, ended.text
        values = [json.loads(line) for line in measured.read_text().splitlines()]
        return values[warm_up // 10 - 1], values[-1]


def growth_problems(before, after):
    """What has grown between two measurements: more than 3 MiB of memory, or an open file or thread."""
    limits = {"peak": 3 << 10, "files": 0, "threads": 0}
    return [f"{name} {before[name]} -> {after[name]}" for name in limits if after[name] > before[name] + limits[name]]
