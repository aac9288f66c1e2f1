"""The small runs that faults are injected into, what they must leave behind, and what they must reach."""

import csv
import hashlib

import torch

from pix2pixhd.checkpoints.format import read_checkpoint
from pix2pixhd.files import is_temporary
from tests.training_fixtures import train_arguments

# Options of runs of nine steps. Each has other parts of the state that a checkpoint must contain.
SETTINGS = {
    "plain": ["--run.save_latest_freq=2", "--run.save_epoch_freq=1", "--data.val_phase=test", "--loss.pool_size=2"],
    "workers": ["--run.save_latest_freq=1", "--data.nThreads=1", "--optimizer.ema_decay=0.9"],
    "accumulate": ["--run.save_latest_freq=1", "--optimizer.accumulate=2", "--run.save_epoch_freq=2"],
}
STEPS = 9
_LOSSES = ("G_", "D_")
# Lightning's count of validated images: a run that is killed between the checkpoints before and after a validation does
# not repeat the validation.
_NOT_COMPARED = ".val_loop."


def arguments(setting, data, output):
    """The arguments of ``pix2pixhd`` for a run."""
    common = [
        *("--optimizer.niter=2", "--optimizer.niter_decay=1", "--trainer.log_every_n_steps=1"),
        *("--run.display_freq=2", "--run.sample_count=1", "--run.results_count=1"),
    ]
    return train_arguments(data, output, *common, *SETTINGS[setting])


def digest(folder):
    """Hash every file of a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def add_foreign_files(output):
    """Put files of the user where a run writes, as far as it allows that."""
    for name in ("notes.txt", "checkpoints/mine.pth", "samples/mine.png", "logs/notes.txt", "results/mine.html"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text(f"the user's {name}")
    return digest(output)


def checkpoints(output):
    """The files that are taken for checkpoints."""
    return sorted((output / "checkpoints").glob("*.ckpt"))


def losses(output):
    """The logged losses of every step, from the latest run that logged it."""
    rows = {}
    for path in sorted((output / "logs").glob("run_*/metrics.csv"), key=lambda path: int(path.parent.name[4:])):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                found = {key: value for key, value in row.items() if key and key.startswith(_LOSSES) and value}
                # A process that is killed may leave an incomplete last line.
                if found and None not in row.values():
                    rows[int(row["step"])] = found
    return rows


def _differences(first, second, place=""):
    """Yield the places where two nested structures differ, bit for bit."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and first.shape == second.shape
        if not same or not torch.equal(first.view(-1).view(torch.uint8), second.view(-1).view(torch.uint8)):
            yield place
    elif isinstance(first, dict) and isinstance(second, dict):
        for key in first.keys() | second.keys():
            if key not in first or key not in second:
                yield f"{place}.{key}"
            else:
                yield from _differences(first[key], second[key], f"{place}.{key}")
    elif isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        if len(first) != len(second):
            yield place
        for i, (a, b) in enumerate(zip(first, second)):  # noqa: B905 - their lengths have been compared
            yield from _differences(a, b, f"{place}[{i}]")
    elif first != second:
        yield f"{place} ({first!r} and {second!r})"


def damage(output):
    """What is wrong with the checkpoints of an interrupted run; empty if each is complete and finite."""
    problems = []
    for path in checkpoints(output):
        if is_temporary(path):
            continue
        try:
            weights = read_checkpoint(path).weights
        except Exception as error:
            problems.append(f"{path.name}: {error}")
            continue
        if not all(bool(value.isfinite().all()) for value in weights.values()):
            problems.append(f"{path.name}: contains NaN or Inf")
    return problems


class Reference:
    """The result of a run without faults.

    Args:
        output: Its folder.
        operations: How often it created, renamed or removed a file.
    """

    def __init__(self, output, operations):
        self.output, self.operations = output, operations
        self.losses = losses(output)
        self.files = {name: value for name, value in digest(output).items() if not name.startswith("logs/")}
        self.checkpoints = {path.name: torch.load(path, weights_only=True) for path in checkpoints(output)}

    def compare(self, output, foreign, may_lack_images=False):
        """What differs between this run and one that was interrupted and resumed.

        Args:
            output: The folder of the other run.
            foreign: The user's files in it and their hashes.
            may_lack_images: Whether sheets and results may be missing, which a full disk does not stop a run for.
        """
        problems = damage(output)
        files = {name: value for name, value in digest(output).items() if not name.startswith("logs/")}
        problems += [
            f"{name}: the user's file was changed" for name in foreign if digest(output).get(name) != foreign[name]
        ]
        images = ("samples/", "results/")
        for name in sorted((files.keys() | self.files.keys()) - foreign.keys()):
            if name not in self.files:
                problems.append(f"{name}: left over")
            elif name not in files:
                if not (may_lack_images and name.startswith(images)):
                    problems.append(f"{name}: missing")
            elif name.startswith(images) and files[name] != self.files[name]:
                problems.append(f"{name}: differs")
        for name, content in self.checkpoints.items():
            path = output / "checkpoints" / name
            if path.is_file() and not any(name in problem for problem in problems):
                found = _differences(content, torch.load(path, weights_only=True), name)
                problems += [place for place in found if _NOT_COMPARED not in place][:3]
        logged = losses(output)
        for step in sorted(logged.keys() | self.losses.keys()):
            if logged.get(step) != self.losses.get(step):
                problems.append(f"losses of step {step}: {logged.get(step)} instead of {self.losses.get(step)}")
        return problems
