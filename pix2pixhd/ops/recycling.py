"""Memory of large CPU outputs, recycled between operator calls.

A training step asks for the same large gradients again and again, and newly mapped pages cost more than writing the
gradients (``csrc/recycling.h`` has the measurement). The pool keeps the storages of large outputs and hands them out
again once no tensor uses them any more.

* **Bounded.** What is in use and what is kept together never exceed the most that was in use at once recently. Before
  the pool grows beyond that, it frees what has been idle longest.
* **Given back.** A storage that has been idle for one to two periods is freed. A period ends after ``PERIOD_SECONDS``
  or ``PERIOD_CALLS``, whichever comes first; every CPU operator, large or small, and Python's garbage collector check.
  What is idle at the end of a period and still kept is marked as reclaimable (``MADV_FREE``): the system takes its
  pages when it runs short of memory. When an allocation fails here, all idle storages are freed and it is repeated.
* **Ordinary tensors.** Storages come from PyTorch's allocator, so that ``untyped_storage().resize_(0)`` works. One that
  its user resized, moved to shared memory or made fixed in size is forgotten.
* **Safe across fork.** Idle storages are freed before ``os.fork``, so that none is copied on write, and the child
  starts with an empty pool. Storages in use stay valid in the child.
* **Never waits.** A thread that finds the pool busy takes a new allocation instead.

Between the check for references and the new tensor no other code can reach the storage: the pool holds the only
reference.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pix2pixhd.ops import library

PERIOD_SECONDS = 10.0  # allocating again costs tens of milliseconds: at most 0.5 % of a step that takes longer
PERIOD_CALLS = 500
MAX_STORAGES = 256  # bounds the time of a scan
SLACK = 1.25  # a storage may be this much larger than the tensor it is handed out for

_DTYPES = {3: torch.int32, 5: torch.float16, 6: torch.float32, 7: torch.float64, 15: torch.bfloat16}  # ScalarType


class _Block:
    """A storage that the pool handed out, in use or idle."""

    __slots__ = ("bytes", "period", "pointer", "reclaimable", "storage")

    def __init__(self, bytes: int) -> None:
        self.storage = torch.empty(bytes, dtype=torch.uint8, device="cpu").untyped_storage()
        self.bytes = bytes
        self.pointer = self.storage.data_ptr()
        self.period = 0  # the last in which it was in use
        self.reclaimable = False

    def references(self) -> tuple[int, int]:
        """How many owners the storage has in C++ (tensors, above all) and how many in Python."""
        return torch._C._storage_Use_Count(self.storage._cdata), sys.getrefcount(self.storage)

    def unchanged(self) -> bool:
        """Whether it is still the memory that was allocated: not resized, not moved to shared memory, resizable."""
        storage = self.storage
        return storage.data_ptr() == self.pointer and storage.nbytes() == self.bytes and storage.resizable()

    def tensor(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(0, dtype=dtype, device="cpu").set_(self.storage, 0, size, stride)


def _counts_as_expected(idle: tuple[int, int]) -> bool:
    """Whether this torch and Python count references such that an idle storage can be told from one in use."""
    block = _Block(4)
    counts = [block.references()]
    tensor = block.tensor((1,), (1,), torch.float32)
    counts.append(block.references())
    storage = tensor.untyped_storage()
    del tensor
    counts.append(block.references())
    del storage
    counts.append(block.references())
    return [count == idle for count in counts] == [True, False, False, True]


class Pool:
    """Storages of large outputs.

    Args:
        operators: The loaded library, whose functions are called past PyTorch's dispatcher: a fork or a garbage
            collection happens under any mode.
        idle: ``_Block.references()`` of a storage that nothing uses.
    """

    def __init__(self, operators: ctypes.CDLL, idle: tuple[int, int]) -> None:
        self.operators = operators
        self.idle = idle
        self._lock = threading.Lock()
        self._blocks: list[_Block] = []  # least recently handed out first
        self._period = 0
        self._peaks = [0, 0]  # most bytes in use at once, in the previous and in the current period
        self._last_check = 0.0
        self._next_check = math.inf

    @property
    def bytes_held(self) -> int:
        """Bytes of all storages that the pool knows, in use or idle."""
        return sum(block.bytes for block in self._blocks)

    def empty(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor with undefined contents, in recycled memory where some fits."""
        if self._lock.acquire(blocking=False):
            try:
                needed = math.prod(size) * dtype.itemsize
                block = self._find(needed) or self._new(needed)
                if block is not None:
                    return block.tensor(size, stride, dtype)
            finally:
                self._lock.release()
        return torch.empty_strided(size, stride, dtype=dtype, device="cpu")

    def check(self) -> None:
        """Ends the period: frees what was idle throughout, and marks as reclaimable what else is idle."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            now = time.monotonic()
            periods = 2 if now - self._last_check > 2 * PERIOD_SECONDS else 1
            in_use, idle = self._scan()
            self._period += periods
            self._peaks = [self._peaks[1] if periods == 1 else in_use, in_use]
            for block in idle:
                if block.period < self._period - 1:
                    self._free(block)
                elif not block.reclaimable:
                    self._discard(block, lazily=True)
                    block.reclaimable = True
            self._schedule(now)
        finally:
            self._lock.release()

    def check_if_due(self) -> None:
        """Ends the period if its time is over."""
        if time.monotonic() >= self._next_check:
            self.check()

    def release(self) -> int:
        """Frees all idle storages; returns how many bytes they had."""
        if not self._lock.acquire(timeout=1.0):
            return 0
        try:
            _, idle = self._scan()
            for block in idle:
                self._free(block)
            self._schedule(time.monotonic())
            return sum(block.bytes for block in idle)
        finally:
            self._lock.release()

    def _find(self, needed: int) -> _Block | None:
        found = None
        for block in self._blocks:
            if (
                needed <= block.bytes <= (needed * SLACK if found is None else found.bytes)
                and block.references() == self.idle
                and block.unchanged()
            ):
                found = block
        if found is not None:
            self._blocks.remove(found)
            self._hand_out(found)
        return found

    def _new(self, needed: int) -> _Block | None:
        in_use, idle = self._scan()
        self._peaks[1] = max(self._peaks[1], in_use + needed)
        excess = in_use + needed + sum(block.bytes for block in idle) - max(self._peaks)
        for block in idle:
            if excess <= 0:
                break
            self._free(block)
            excess -= block.bytes
        if len(self._blocks) >= MAX_STORAGES:
            return None
        try:
            block = _Block(needed)
        except RuntimeError:  # out of memory
            for other in self._scan()[1]:
                self._free(other)
            block = _Block(needed)
        self._hand_out(block)
        return block

    def _hand_out(self, block: _Block) -> None:
        block.period, block.reclaimable = self._period, False
        self._blocks.append(block)
        if self._next_check == math.inf:
            self._schedule(time.monotonic())

    def _scan(self) -> tuple[int, list[_Block]]:
        """Bytes in use, and the idle storages; forgets those that their users changed."""
        self._blocks = [block for block in self._blocks if block.unchanged()]
        in_use, idle = 0, []
        for block in self._blocks:
            if block.references() == self.idle:
                idle.append(block)
            else:
                block.period = self._period
                in_use += block.bytes
        return in_use, idle

    def _free(self, block: _Block) -> None:
        self._discard(block, lazily=False)  # freeing alone may leave the pages in malloc's heap
        self._blocks.remove(block)

    def _discard(self, block: _Block, lazily: bool) -> None:
        self.operators.pix2pixhd_discard(block.pointer, block.bytes, lazily)

    def _schedule(self, now: float) -> None:
        seconds = PERIOD_SECONDS if self._blocks else math.inf
        self._last_check, self._next_check = now, now + seconds
        self.operators.pix2pixhd_schedule_check(seconds, PERIOD_CALLS)


_idle = _Block(4).references()
_pool = Pool(ctypes.CDLL(None), _idle)  # register() gives it the loaded library
_implementations = torch.library.Library("pix2pixhd", "IMPL")  # type: ignore[no-untyped-call]


def _recycled_empty(size: list[int], stride: list[int], dtype: int) -> Tensor:
    return _pool.empty(size, stride, _DTYPES[dtype])


def _check_recycling() -> None:
    _pool.check()


def _release_cpu_memory() -> int:
    return _pool.release()


def _on_garbage_collection(phase: str, info: dict[str, int]) -> None:
    if phase == "stop":
        _pool.check_if_due()


def _before_fork() -> None:
    _pool.release()


def _after_fork_in_child() -> None:
    global _pool
    _pool = Pool(_pool.operators, _idle)  # another thread, which does not exist here, may hold the parent's lock
    _pool.operators.pix2pixhd_schedule_check(math.inf, 0)


def _stop() -> None:
    gc.callbacks.remove(_on_garbage_collection)
    _pool.operators.pix2pixhd_enable_recycling(False)
    _pool.operators.pix2pixhd_schedule_check(math.inf, 0)


def _load_operators() -> ctypes.CDLL:
    operators = ctypes.CDLL(str(library.path("_ops")))
    operators.pix2pixhd_discard.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_bool]
    operators.pix2pixhd_schedule_check.argtypes = [ctypes.c_double, ctypes.c_int64]
    operators.pix2pixhd_enable_recycling.argtypes = [ctypes.c_bool]
    for function in (
        operators.pix2pixhd_discard,
        operators.pix2pixhd_schedule_check,
        operators.pix2pixhd_enable_recycling,
    ):
        function.restype = None
    return operators


def _never_trace(*functions: Callable[..., object]) -> bool:
    """Keeps torch.compile away from what depends on reference counts; False where this torch does not offer it.

    ``torch.compiler.disable`` would do, but it imports all of Dynamo, which takes a second.
    """
    try:
        from torch._C._dynamo import eval_frame

        skip = eval_frame._FrameAction.SKIP
        for function in functions:
            eval_frame.set_code_exec_strategy(function.__code__, eval_frame._FrameExecStrategy(skip, skip))
    except (ImportError, AttributeError):
        return False
    return True


def register() -> None:
    """Connects the pool with the operators; called once, after the library has been loaded.

    Nothing is recycled with ``PIX2PIXHD_RECYCLE=0``, nor where references cannot be counted exactly: in a free-threaded
    Python, or in a future torch that changes what the pool relies on.
    """
    _pool.operators = _load_operators()
    _implementations.impl("recycled_empty", _recycled_empty, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    _implementations.impl("check_recycling", _check_recycling, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    _implementations.impl("release_cpu_memory", _release_cpu_memory, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    free_threaded = not getattr(sys, "_is_gil_enabled", lambda: True)()
    if os.environ.get("PIX2PIXHD_RECYCLE") == "0" or free_threaded or not _counts_as_expected(_idle):
        return
    if not _never_trace(_recycled_empty, _check_recycling, _release_cpu_memory, _on_garbage_collection):
        return
    _pool.operators.pix2pixhd_enable_recycling(True)
    gc.callbacks.append(_on_garbage_collection)
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
    atexit.register(_stop)
