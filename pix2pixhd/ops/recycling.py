"""A pool that recycles the memory of large CPU outputs between operator calls.

A training step allocates the same large gradients in every iteration, and mapping new pages costs more than writing
the gradients: in a discriminator step at 1024×512 (24 M float32 elements), 35 ms of page faults and zeroing per
backward, compared with 5 ms into memory that is already mapped. The pool keeps the storages of large outputs and reuses
them once no tensor uses them any more. Outputs are allocated here, in Python, and passed to the ``_out`` operators. The
stable ABI can neither wrap memory in a resizable storage nor count the tensors that share one, and it reduces an
exception raised below an operator (KeyboardInterrupt, out of memory) to an anonymous RuntimeError.

* **Bounded.** Used and idle storages together never exceed the recent peak of memory in use. Before the pool grows
  beyond that, it frees idle storages.
* **Released when idle.** A storage that has been idle for one to two periods of ``PERIOD_SECONDS`` is freed. The
  losses, large or small, and Python's garbage collector check the clock. Storages that are idle at the end of a period
  but not yet freed are marked with ``MADV_FREE``. If an allocation fails here, all idle storages are freed and the
  allocation is repeated.
* **Ordinary tensors.** Storages come from PyTorch's allocator and have exactly the tensor's size. The pool drops a
  storage that its user has resized, moved to shared memory or made non-resizable.
* **Safe across fork.** Idle storages are freed before ``os.fork``, so that none is copied on write, and the child
  starts with an empty pool. Storages in use stay valid in the child.
* **Never blocks.** A thread that finds the pool locked allocates as usual.

Between the check of the reference counts and the creation of the new tensor, no other code can reach the storage,
because the pool holds the only reference.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import math
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

LARGE = 1 << 20  # bytes; the C library's allocator recycles smaller outputs well
PERIOD_SECONDS = 10.0  # reallocation costs tens of milliseconds, at most 0.5 % of a step that takes longer than this
MAX_STORAGES = 256  # limits the time of a scan

Layout: TypeAlias = tuple[Sequence[int], Sequence[int], torch.dtype]  # size, stride, dtype

_PLAIN = {Tensor, torch.nn.Parameter}


def _bytes_of(layout: Layout) -> int:
    return math.prod(layout[0]) * layout[2].itemsize


def _allocate(layout: Layout, device: torch.device | str = "cpu") -> Tensor:
    return torch.empty_strided(layout[0], layout[1], dtype=layout[2], device=device)


class _Block:
    """A storage of the pool, in use or idle."""

    __slots__ = ("bytes", "period", "pointer", "reclaimable", "storage")

    def __init__(self, bytes: int) -> None:
        self.storage = torch.empty(bytes, dtype=torch.uint8, device="cpu").untyped_storage()
        self.bytes = bytes
        self.pointer = self.storage.data_ptr()
        self.period = 0  # the last period in which it was in use
        self.reclaimable = False

    def references(self) -> tuple[int, int]:
        """Return the number of owners of the storage in C++ (mainly tensors) and in Python."""
        return torch._C._storage_Use_Count(self.storage._cdata), sys.getrefcount(self.storage)

    def unchanged(self) -> bool:
        """Whether the storage is as allocated: not resized, not moved to shared memory, and still resizable."""
        storage = self.storage
        return storage.data_ptr() == self.pointer and storage.nbytes() == self.bytes and storage.resizable()

    def tensor(self, layout: Layout) -> Tensor:
        size, stride, dtype = layout
        return torch.empty(0, dtype=dtype, device="cpu").set_(self.storage, 0, size, stride)

    def discard(self, lazily: bool) -> None:
        """Advise the system that the contents of whole pages are not needed: MADV_DONTNEED, or MADV_FREE if ``lazily``.

        The allocation stays valid, but its contents become undefined.
        """
        if sys.platform != "linux":
            return
        begin = -(-self.pointer // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (self.pointer + self.bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > begin:
            _madvise(begin, end - begin, mmap.MADV_FREE if lazily else mmap.MADV_DONTNEED)


if sys.platform == "linux":
    _madvise = ctypes.CDLL(None).madvise
    _madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _counts_as_expected(idle: tuple[int, int]) -> bool:
    """Whether the reference counts of this torch and Python distinguish an idle storage from one in use."""
    block = _Block(4)
    counts = [block.references()]
    tensor = block.tensor(((1,), (1,), torch.float32))
    counts.append(block.references())
    storage = tensor.untyped_storage()
    del tensor
    counts.append(block.references())
    del storage
    counts.append(block.references())
    return [count == idle for count in counts] == [True, False, False, True]


class Pool:
    """A pool of storages for large outputs.

    The lock is acquired with a ``with`` statement, because no KeyboardInterrupt can occur between its acquisition and
    the block that releases it. The methods first test whether the lock is free, so that they never block on it. In
    particular, they must not wait for their own thread, because a garbage collection or a signal handler may run in the
    middle of a method.

    Args:
        idle: ``_Block.references()`` of an unused storage.
    """

    def __init__(self, idle: tuple[int, int]) -> None:
        self.idle = idle
        self._lock = threading.Lock()
        self._blocks: dict[_Block, None] = {}  # least recently used first
        self._period = 0
        self._peaks = [0, 0]  # peak bytes in use, in the previous and in the current period
        self._last_check = 0.0
        self.next_check = math.inf  # on time.monotonic()

    @property
    def bytes_held(self) -> int:
        """Total size of all storages in the pool, in use or idle, in bytes."""
        return sum(block.bytes for block in self._blocks)

    def empty(self, layouts: Sequence[Layout]) -> list[Tensor]:
        """Return uninitialised tensors, in recycled memory where a storage fits."""
        if not self._lock.locked():
            with self._lock:
                return self._recycle(layouts)
        return [_allocate(layout) for layout in layouts]

    def check(self) -> None:
        """End the period: free storages that were idle throughout, and mark other idle ones with MADV_FREE."""
        if self._lock.locked():
            return  # the next call checks again
        with self._lock:
            now = time.monotonic()
            periods = 2 if now - self._last_check > 2 * PERIOD_SECONDS else 1
            in_use, idle = self._scan()
            used = sum(block.bytes for block in self._blocks if block.period == self._period)
            self._peaks = [max(self._peaks[1], used) if periods == 1 else in_use, in_use]
            self._period += periods
            for block in idle:
                if block.period < self._period - 1:
                    self._free(block)
                elif not block.reclaimable:
                    block.discard(lazily=True)
                    block.reclaimable = True
            self._schedule(now)

    def release(self) -> int:
        """Free all idle storages and return their total size in bytes."""
        deadline = time.monotonic() + 1.0
        while self._lock.locked():
            if time.monotonic() > deadline:
                return 0
            time.sleep(0.001)
        with self._lock:
            _, idle = self._scan()
            for block in idle:
                self._free(block)
            self._schedule(time.monotonic())
            return sum(block.bytes for block in idle)

    def _recycle(self, layouts: Sequence[Layout]) -> list[Tensor]:
        sizes = [_bytes_of(layout) for layout in layouts]
        fitting: dict[int, list[_Block]] = {size: [] for size in sizes if size >= LARGE}
        for block in self._blocks:
            if block.bytes in fitting:
                fitting[block.bytes].append(block)
        tensors: list[Tensor | None] = []
        for layout, size in zip(layouts, sizes, strict=True):
            if size < LARGE:
                tensors.append(_allocate(layout))
            else:
                found = self._take(fitting[size])
                tensors.append(None if found is None else self._hand_out(found, layout))
        missing = [size for size, tensor in zip(sizes, tensors, strict=True) if tensor is None]
        if missing:
            self._make_room(sum(missing))
        return [self._new(sizes[k], layouts[k]) if t is None else t for k, t in enumerate(tensors)]

    def _take(self, blocks: list[_Block]) -> _Block | None:
        """Pop the most recently used idle block. Blocks in use are popped too, so that each is tested once."""
        while blocks:
            block = blocks.pop()
            if block.references() == self.idle and block.unchanged():
                return block
        return None

    def _make_room(self, needed: int) -> None:
        """Free idle storages so that the pool does not exceed the recent peak of memory in use.

        The smallest sufficient storage is freed first. If the oldest were freed first, one unusual size could displace
        every storage that the next step needs, one after another.
        """
        in_use, idle = self._scan()
        in_use += needed
        self._peaks[1] = max(self._peaks[1], in_use)
        excess = in_use + sum(block.bytes for block in idle) - max(self._peaks)
        idle.sort(key=lambda block: block.bytes)
        while excess > 0 and idle:
            block = next((block for block in idle if block.bytes >= excess), idle[-1])
            idle.remove(block)
            self._free(block)
            excess -= block.bytes

    def _new(self, needed: int, layout: Layout) -> Tensor:
        if len(self._blocks) >= MAX_STORAGES:
            return _allocate(layout)
        try:
            block = _Block(needed)
        except RuntimeError:  # out of memory
            for other in self._scan()[1]:
                self._free(other)
            block = _Block(needed)
        return self._hand_out(block, layout)

    def _hand_out(self, block: _Block, layout: Layout) -> Tensor:
        block.period, block.reclaimable = self._period, False
        self._blocks.pop(block, None)
        self._blocks[block] = None  # now the most recently used
        if self.next_check == math.inf:
            self._schedule(time.monotonic())
        return block.tensor(layout)

    def _scan(self) -> tuple[int, list[_Block]]:
        """Return the number of bytes in use and the idle storages. Drop storages that were modified."""
        in_use, idle = 0, []
        for block in list(self._blocks):
            if not block.unchanged():
                del self._blocks[block]
            elif block.references() == self.idle:
                idle.append(block)
            else:
                block.period = self._period
                in_use += block.bytes
        return in_use, idle

    def _free(self, block: _Block) -> None:
        block.discard(lazily=False)  # freeing alone may leave the pages in malloc's heap
        del self._blocks[block]

    def _schedule(self, now: float) -> None:
        self._last_check = now
        self.next_check = now + PERIOD_SECONDS if self._blocks else math.inf


_idle = _Block(4).references()
_pool = Pool(_idle)
_enabled = False
_library = torch.library.Library("pix2pixhd", "FRAGMENT")  # type: ignore[no-untyped-call]


def worthwhile(bytes: int, tensors: Sequence[Tensor]) -> bool:
    """Whether outputs should be allocated here, for an ``_out`` operator, instead of by the operator itself.

    This is the case if they may be large and the operator runs eagerly on ordinary tensors. Tracers and dispatch modes
    need the functional operators, because they would treat outputs in recycled memory as constants.

    Args:
        bytes: Upper bound of the outputs' total size.
        tensors: Tensor arguments of the operator.
    """
    if bytes < LARGE or torch.compiler.is_compiling():
        return False
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and set(map(type, tensors)) <= _PLAIN
    )


def empty(layouts: Sequence[Layout], device: torch.device) -> list[Tensor]:
    """Return uninitialised tensors; large ones on the CPU use recycled memory where a storage fits.

    Raises:
        RuntimeError: If memory is exhausted, with PyTorch's message.
    """
    if _enabled and device.type == "cpu":
        return _pool.empty(layouts)
    return [_allocate(layout, device) for layout in layouts]


def check_if_due() -> None:
    """Free memory that has been idle for a while. Every loss calls this function; it costs one read of the clock."""
    if not torch.compiler.is_compiling() and time.monotonic() >= _pool.next_check:
        _pool.check()


def _release_cpu_memory() -> int:
    return _pool.release()


def _on_garbage_collection(phase: str, info: dict[str, int]) -> None:
    if phase == "stop" and time.monotonic() >= _pool.next_check:
        _pool.check()


def _before_fork() -> None:
    _pool.release()


def _after_fork_in_child() -> None:
    global _pool
    _pool = Pool(_idle)  # a thread that does not exist in the child may hold the parent's lock


def _stop() -> None:
    global _enabled
    _enabled = False
    gc.callbacks.remove(_on_garbage_collection)


def _never_trace(*functions: Callable[..., object]) -> bool:
    """Exclude functions that depend on reference counts from torch.compile; False if this torch does not support it.

    After a graph break, Dynamo traces every Python function that runs, including those of a backward.
    ``torch.compiler.disable`` would work too, but it imports all of Dynamo, which takes a second.
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
    """Start recycling. Called once, after the library has been loaded.

    Recycling is off with ``PIX2PIXHD_RECYCLE=0``, and where references cannot be counted exactly: in a free-threaded
    Python, or in a future torch whose reference counts differ from what the pool expects.
    """
    global _enabled
    _library.define("release_cpu_memory() -> int")  # type: ignore[no-untyped-call]
    _library.impl("release_cpu_memory", _release_cpu_memory, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    free_threaded = not getattr(sys, "_is_gil_enabled", lambda: True)()
    if os.environ.get("PIX2PIXHD_RECYCLE") == "0" or free_threaded or not _counts_as_expected(_idle):
        return
    if not _never_trace(empty, Pool.empty, Pool.check, Pool.release, _on_garbage_collection):
        return
    _enabled = True
    gc.callbacks.append(_on_garbage_collection)
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
    atexit.register(_stop)
