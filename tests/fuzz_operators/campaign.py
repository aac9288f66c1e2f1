"""Runs random calls in child processes, so that a crash or a hang of one is reported as what it is."""

from __future__ import annotations

import collections
import mmap
import os
import pickle
import re
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .calls import Call
from .mutations import Draft, draft
from .verdict import Outcome, examine, guard

BATCH = 400  # calls per child process
MEMORY = 1 << 30  # bytes that a child may allocate


class Failure(NamedTuple):
    """A call whose outcome is wrong."""

    call: Call
    problem: str
    found: str  # how it was found

    @property
    def signature(self) -> str:
        """What failures of the same cause have in common."""
        varying = re.compile(r"tensor\(.*|torch\.\w+|-?\d[\d.e+-]*|\[.*?\]|'.*?'", re.DOTALL)
        return f"{self.call.operator}: {varying.sub('#', self.problem)[:100]}"

    def test(self) -> str:
        """The call as an entry of ``regressions.py``."""
        return f"    # {self.problem.splitlines()[0][:300]}\n    {self.call!r},"


class Report:
    """What a campaign found."""

    def __init__(self) -> None:
        self.accepted: collections.Counter[str] = collections.Counter()
        self.refused: collections.Counter[str] = collections.Counter()
        self.failures: dict[str, Failure] = {}
        self.repeated = 0  # failures of a known signature

    @property
    def calls(self) -> int:
        return self.accepted.total() + self.refused.total()

    def add(self, failure: Failure) -> None:
        if failure.signature in self.failures:
            self.repeated += 1
        else:
            self.failures[failure.signature] = failure


def _limit() -> None:
    guard.enable(MEMORY // 2)
    with open("/proc/self/status") as file:
        data = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData"))
    if guard.active:  # AddressSanitizer needs its own memory
        resource.setrlimit(resource.RLIMIT_DATA, (data + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


class Limits:
    """Limits of one call; a call that exceeds them hangs."""

    seconds = 20.0  # of processor time; the time that passes may be ten times longer


def _examine_timed(call: Call, namespace: str) -> Outcome | None:
    signal.setitimer(signal.ITIMER_VIRTUAL, Limits.seconds)
    signal.setitimer(signal.ITIMER_REAL, 10 * Limits.seconds)
    return examine(call, namespace)


class _Ended(NamedTuple):
    outcomes: list[tuple[int, Outcome | None]]
    crashed: int | None  # the call that ended the process
    why: str


def _in_child(calls: Callable[[int], Call], first: int, last: int, namespace: str) -> _Ended:
    """Examine the calls with the numbers from ``first`` to ``last`` in a child process."""
    shared = mmap.mmap(-1, 8)
    reading, writing = os.pipe()
    errors = os.memfd_create("stderr")
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(errors, 2)
            os.close(reading)
            _limit()
            with os.fdopen(writing, "wb") as pipe:
                for number in range(first, last):
                    shared[:] = struct.pack("q", number)
                    pickle.dump((number, _examine_timed(calls(number), namespace)), pipe)
                    pipe.flush()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"the fuzzer failed: {type(error).__name__}: {error}".encode())
            os._exit(70)
    os.close(writing)
    outcomes = []
    with os.fdopen(reading, "rb") as pipe:
        while True:
            try:
                outcomes.append(pickle.load(pipe))
            except (EOFError, pickle.UnpicklingError):
                break
    status = os.waitpid(pid, 0)[1]
    text = os.pread(errors, 1 << 20, 0).decode(errors="replace")
    os.close(errors)
    number = struct.unpack("q", shared[:])[0]
    if status == 0:
        return _Ended(outcomes, None, "")
    ended = signal.Signals(status & 127).name if os.WIFSIGNALED(status) else f"code {status >> 8}"
    report = re.search(r"GUARD: .*|.*ERROR: AddressSanitizer.*|.*runtime error.*|the fuzzer failed.*", text)
    why = f"hangs ({ended})" if ended in ("SIGVTALRM", "SIGALRM") else f"ends the process ({ended})"
    return _Ended(outcomes, number, why + (f": {report[0]}" if report else ""))


def probe(call: Call, namespace: str = "pix2pixhd") -> str | None:
    """What is wrong with the outcome of one call, in a process of its own."""
    ended = _in_child(lambda _: call, 0, 1, namespace)
    if ended.crashed is not None:
        return ended.why
    outcome = ended.outcomes[0][1]
    return None if outcome is None else outcome.problem


def _signature(call: Call, problem: str) -> str:
    return Failure(call, problem, "").signature


def _shrink(found: Draft, problem: str, namespace: str) -> tuple[Call, str]:
    """Leave out changes as long as the problem stays."""
    signature = _signature(found.call(), problem)
    for simpler in found.simpler():
        own = probe(simpler.call(), namespace)
        if own is not None and _signature(simpler.call(), own) == signature:
            return _shrink(simpler, own, namespace)
    return found.call(), problem


def _crash(drafts: Callable[[int], Draft], first: int, number: int, why: str, namespace: str) -> Failure:
    """Find out whether the last call alone is the cause, or which earlier ones are needed."""
    alone = probe(drafts(number).call(), namespace)
    if alone is not None:
        call, problem = _shrink(drafts(number), alone, namespace)
        return Failure(call, problem, f"input {number}")
    low, high = first, number  # the latest first call with which it still happens
    while high - low > 1:
        middle = (low + high) // 2
        crashed = _in_child(lambda k: drafts(k).call(), middle, number + 1, namespace).crashed
        low, high = (middle, high) if crashed is not None else (low, middle)
    culprit = drafts(low).call()
    return Failure(culprit, f"{why}, later, in input {number}", f"inputs {low} to {number}")


def run(
    corpus: dict[str, list[Call]], seed: int, inputs: int | None, deadline: float, namespace: str = "pix2pixhd"
) -> Iterator[Report]:
    """Examine random calls until their number or the time is reached; yield the report after each child process."""
    report = Report()

    def drafts(number: int) -> Draft:
        return draft(corpus, seed, number)

    number = 0
    while (inputs is None or number < inputs) and time.monotonic() < deadline:
        last = number + BATCH if inputs is None else min(number + BATCH, inputs)
        ended = _in_child(lambda k: drafts(k).call(), number, last, namespace)
        for k, outcome in ended.outcomes:
            if outcome is None:
                continue
            own = drafts(k)
            (report.accepted if outcome.accepted else report.refused)[own.base.operator] += 1
            if outcome.problem is None:
                continue
            if _signature(own.call(), outcome.problem) in report.failures:
                report.repeated += 1
                continue
            call, problem = _shrink(own, outcome.problem, namespace)
            report.add(Failure(call, problem, f"input {k}"))
        if ended.crashed is not None:
            known = _signature(drafts(ended.crashed).call(), ended.why)
            if known in report.failures:
                report.repeated += 1
            else:
                report.add(_crash(drafts, number, ended.crashed, ended.why, namespace))
            last = ended.crashed + 1
        number = last
        yield report


def known_failures(calls: list[Call], namespace: str = "pix2pixhd") -> list[Failure]:
    """Examine given calls, each again after one that ends its process."""
    failures, first = [], 0
    while first < len(calls):
        ended = _in_child(calls.__getitem__, first, len(calls), namespace)
        for k, outcome in ended.outcomes:
            if outcome is not None and outcome.problem is not None:
                failures.append(Failure(calls[k], outcome.problem, f"regression {k}"))
        if ended.crashed is None:
            break
        failures.append(Failure(calls[ended.crashed], ended.why, f"regression {ended.crashed}"))
        first = ended.crashed + 1
    return failures
