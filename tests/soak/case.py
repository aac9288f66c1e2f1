"""One injection: a run with a fault, which is resumed as its messages advise."""

import contextlib
import math
import re
import shutil
import subprocess

from tests.soak.runs import STEPS, arguments

_DISK = 8 << 20


class Case:
    """One injection: a run in a folder of its own."""

    def __init__(self, lab, rng, setting, folder, operations):
        self.lab, self.rng, self.setting, self.folder = lab, rng, setting, folder
        self.operations = operations
        self.output = folder / "mount" / "run"
        self.foreign = {}
        self.problems = []
        self.details = []
        self.ending = "finished"
        self.mounted = False

    @property
    def last(self):
        return self.output / "checkpoints" / "last.ckpt"

    @contextlib.contextmanager
    def disk(self):
        """Mount a small file system for the run, where that is allowed."""
        mount = self.output.parent
        mount.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(mount)]
        self.mounted = subprocess.run(command, capture_output=True).returncode == 0
        try:
            yield
        finally:
            if self.mounted:
                subprocess.run(["umount", str(mount)], check=True)

    def point(self):
        """Choose a point of the run."""
        kind = self.rng.choice(["start", "step", "step", "file", "file"])
        if kind == "file":
            return {"file": self.rng.randint(1, self.operations)}
        step = 0 if kind == "start" else self.rng.randint(1, STEPS)
        return {"step": step, "calls": int(math.exp(self.rng.uniform(0, math.log(3e5 if step == 0 else 3e4))))}

    def start(self, action, point=None, resume=False, **values):
        """Run the command with a fault; return how it ended, and whether the fault's point was reached."""
        point = point or self.point()
        reached = self.folder / "reached"
        reached.unlink(missing_ok=True)
        fault = {
            "action": action,
            "arguments": values,
            "point": point,
            "folder": str(self.output),
            "reached": str(reached),
        }
        self.details.append(f"{action} {values or ''} at {point}")
        words = arguments(self.setting, self.lab.data, self.output)
        ended = self.lab.commands.run([*words, *(["--resume"] if resume else [])], fault)
        return ended, reached.exists()

    def start_and_send(self, number, alone):
        """Run the command and send it a signal at any time; ``alone`` in a process that has not imported anything."""
        seconds = self.rng.uniform(0, 10 if alone else 2)
        self.details.append(f"{number.name} after {seconds:.3f} s{' in a new process' if alone else ''}")
        words = arguments(self.setting, self.lab.data, self.output)
        run = self.lab.commands.run_alone if alone else self.lab.commands.run
        return run(words, signal_after=(number, seconds))

    def expect(self, ended, reached, **messages):
        """Check a command's exit code and message.

        Args:
            ended: How it ended.
            reached: Whether the fault's point was reached.
            messages: What the output must contain, a regular expression, for each exit code: ``code_2``, ``killed_9``.
        """
        if ended.timed_out:
            return self.report("did not end", ended)
        name = f"code_{ended.code}" if ended.code >= 0 else f"killed_{-ended.code}"
        if ended.code >= 0 and re.search("Traceback|Exception ignored", ended.text):
            self.report("printed a traceback", ended)
        if not reached:
            messages = {"code_0": "done: "}
        if name not in messages:
            self.report(f"ended with {name}", ended)
        elif not re.search(messages[name], ended.text, re.DOTALL):
            self.report(f"ended with {name} without a message like {messages[name]!r}", ended)
        return None

    def report(self, problem, ended):
        """Record a problem with the command's output."""
        self.problems.append(f"{problem}:\n      " + "\n      ".join(ended.text.strip().splitlines()[-60:]))

    def finish(self):
        """Resume the run without faults, as its messages advise, until it is finished."""
        resume = True
        for _ in range(4):
            words = ["train", "--resume", f"--run.output={self.output}"]
            if not resume:
                words = arguments(self.setting, self.lab.data, self.output)
            ended = self.lab.commands.run(words)
            if ended.code == 0:
                if "had already been trained" not in ended.text and self.ending == "finished":
                    self.ending = "resumed"
                return
            resume = self.follow(ended, resume)
            if resume is None:
                return
        self.report("does not finish", ended)

    def follow(self, ended, resume):
        """Follow the remedy of a message; return whether to resume next, or None without a remedy."""
        copy = re.search(r"copy (\S+\.ckpt), the latest kept checkpoint, over last\.ckpt", ended.text)
        if ended.code != 2 or "Traceback" in ended.text:
            self.report(f"{'resuming' if resume else 'starting'} ended with {ended.code}", ended)
        elif copy:
            shutil.copyfile(copy[1], self.last.with_name("copied"))
            self.last.with_name("copied").replace(self.last)
            self.ending = "resumed from an earlier checkpoint"
            return True
        elif "start without --resume" in ended.text and resume:
            self.ending = "started again"
            return False
        elif "start a new run in another folder" in ended.text and resume:
            self.ending = "started again"
            self.output = self.folder / "another" / "run"
            self.foreign = {}
            return False
        else:
            self.report("the message has no remedy", ended)
        return None
