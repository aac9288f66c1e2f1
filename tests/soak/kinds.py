"""The kinds of faults: how each is injected, and what the command must print and return."""

import math
import os
import re
import signal

from tests.soak import faults
from tests.soak.runs import STEPS


def _kill(case):
    if case.rng.random() < 0.3:
        size = case.rng.randint(1, 400_000)
        case.expect(*case.start("end_at_size", size=size), killed_25="", code_0="done")
        return
    case.expect(*case.start("send", number=signal.SIGKILL), killed_9="")
    if case.last.exists() and case.rng.random() < 0.5:
        case.expect(*case.start("send", resume=True, number=signal.SIGKILL), killed_9="")


_SAVED = "stopped; the run was saved, continue it with --resume"


def _sigterm(case):
    ended, reached = case.start("send", number=signal.SIGTERM, group=case.rng.random() < 0.5)
    case.expect(ended, reached, code_143=_SAVED, killed_15="", code_0="done: ")
    if ended.code == 143 and not case.last.exists():
        case.report("nothing was saved", ended)


def _sigint(case):
    ended, reached = case.start("send", number=signal.SIGINT, group=case.rng.random() < 0.5)
    case.expect(ended, reached, code_130=f"{_SAVED}|interrupted", code_0="done: ")


def _signal_at_any_time(case):
    """Send a signal to a new process, also while it imports, or shortly after the start of a forked one."""
    number = case.rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    ended = case.start_and_send(number, alone=case.rng.random() < 0.3)
    messages = {"killed_9": "", "killed_15": "", "code_143": _SAVED, "code_130": f"{_SAVED}|interrupted"}
    case.expect(ended, True, code_0="done: ", **messages)


def _full_disk(case):
    full = "No space left on device|File too large|disk may be full"
    message = rf"cannot (be written|write its logs|write to).*({full}).*([Ff]ree some space|choose another folder)"
    if case.mounted:
        filler = case.output.parent / "filler"
        result = case.start("fill", path=str(filler), left=int(math.exp(case.rng.uniform(0, math.log(2e6)))))
        filler.unlink(missing_ok=True)
    else:
        result = case.start("limit_size", size=case.rng.randint(1, 400_000))
    case.expect(*result, code_2=message, code_0="done: ")


def _read_only(case):
    result = case.start("set_writable", folder=str(case.output), writable=False)
    faults.set_writable(case.output, True)
    case.expect(*result, code_2=r"error: .*Permission denied.*; ", code_0="done: ")


def _image(case, action):
    path = case.rng.choice(sorted(case.lab.data.rglob("*.png")))
    content = path.read_bytes()
    status = path.stat()
    values = {"path": str(path)} | ({"size": case.rng.randrange(len(content))} if action == "truncate" else {})
    # The file is read again in the next epoch at the latest.
    result = case.start(action, {"step": case.rng.randint(0, STEPS), "calls": 0}, **values)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    name = re.escape(path.stem)
    case.expect(*result, code_2=rf"error: .*{name}.*(restore|replace|remove)", code_0="done: ")


def _missing_image(case):
    _image(case, "remove")


def _truncated_image(case):
    _image(case, "truncate")


def _damaged_checkpoint(case):
    point = {"file": case.rng.randint(case.operations // 3, case.operations)}
    case.expect(*case.start("send", point, number=signal.SIGKILL), killed_9="")
    if not case.last.exists():
        return
    whole = case.last.read_bytes()
    kind = case.rng.choice(["bit", "bit", "bit", "truncated", "empty", "unreadable", "zeros", "text"])
    case.details.append(kind)
    if kind == "bit":
        position = case.rng.randrange(8 * len(whole))
        case.details.append(f"bit {position} of {8 * len(whole)}")
        changed = bytearray(whole)
        changed[position // 8] ^= 1 << position % 8
        case.last.write_bytes(changed)
    elif kind == "truncated":
        case.last.write_bytes(whole[: case.rng.randrange(len(whole))])
    elif kind == "empty":
        case.last.write_bytes(b"")
    elif kind == "unreadable":
        case.last.chmod(0)
    elif kind == "zeros":
        begin = case.rng.randrange(len(whole))
        end = case.rng.randint(begin, len(whole))
        case.last.write_bytes(whole[:begin] + bytes(end - begin) + whole[end:])
    else:
        case.last.write_bytes(b"not a checkpoint")
    before = case.lab.commands.run(["train", "--resume", f"--run.output={case.output}"])
    if before.code == 0:
        # A change that no part of the content depends on; the comparison shows whether that is true.
        case.ending = "resumed"
        return
    advice = r"(copy|start a new run|make .* readable|remove|start without)"
    case.expect(before, True, code_2=rf"error: .*last\.ckpt.*{advice}")
    if kind == "unreadable":
        case.last.chmod(0o644)


def _dead_worker(case):
    result = case.start("kill_worker", {"step": case.rng.randint(1, STEPS), "calls": case.rng.randrange(2000)})
    case.expect(*result, code_2=r"terminated a process that loads images.*lower data\.nThreads", code_0="done: ")


def _clock(case):
    seconds = case.rng.choice([-1, 1]) * math.exp(case.rng.uniform(0, math.log(1e9)))
    ended, reached = case.start("move_clock", seconds=seconds)
    case.expect(ended, reached, code_0="done: ")


def _non_finite(case):
    point = {"step": case.rng.randint(1, STEPS - 1), "calls": 0}
    result = case.start("spoil_batch", point)
    case.expect(*result, code_2=r"no longer finite.*the last checkpoint is unchanged")


FAULTS = {
    "kill -9": _kill,
    "SIGTERM": _sigterm,
    "SIGINT": _sigint,
    "signal at any time": _signal_at_any_time,
    "full disk": _full_disk,
    "read-only folder": _read_only,
    "missing image": _missing_image,
    "truncated image": _truncated_image,
    "damaged checkpoint": _damaged_checkpoint,
    "dead worker": _dead_worker,
    "clock": _clock,
    "non-finite batch": _non_finite,
}
# Sheets and results pages are not worth the end of a run, so it continues without them.
MAY_LACK_IMAGES = {"full disk", "read-only folder", "missing image", "truncated image"}
