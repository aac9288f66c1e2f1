"""What is alive at each moment of a training step, and which stage, module and operator allocated it.

``MemoryTrace`` is a dispatch mode. It sees the operators of forward and backward, custom operators, and those that
autograd Functions call. For each operator it measures the peak of the process or GPU while the operator runs, so memory
that an operator allocates and frees internally counts as well.
"""

import bisect
import collections
import contextlib
import dataclasses
import functools
import weakref

import torch
from torch._library.custom_ops import OPDEFS
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OUTSIDE = "losses"


@dataclasses.dataclass(frozen=True)
class Place:
    """A module: the network it belongs to, its path in that network, and its class."""

    root: str
    path: str
    kind: str


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a tensor was allocated."""

    stage: str
    path: str
    kind: str
    operator: str
    dtype: str


@dataclasses.dataclass
class Block:
    """A storage that is alive. Blocks of the base exist before the step."""

    origin: Origin
    nbytes: int
    storage: weakref.ref
    base: bool = False


@dataclasses.dataclass
class Segment:
    """Consecutive operators of one stage, with the memory at their peak and at their end, both above the base.

    Attributes:
        operator: The operator that runs at the peak.
        alive: Bytes and number of the tensors alive at the peak, by origin.
    """

    stage: str
    operators: int = 0
    peak: int = -1
    end: int = 0
    operator: str = ""
    alive: dict[Origin, tuple[int, int]] = dataclasses.field(default_factory=dict)

    @property
    def outside_tensors(self):
        """Bytes at the peak that no tensor holds: workspace of the operator, and the allocator's overhead."""
        return self.peak - sum(nbytes for nbytes, _ in self.alive.values())


def tensors_of(*trees):
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, torch.Tensor)]


def storage_of(tensor):
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # no storage: sparse tensors and those of oneDNN
        return None


class MemoryTrace(TorchDispatchMode):
    """Trace the memory of what runs within the ``with`` block.

    Args:
        memory: ``CpuMemory`` or ``CudaMemory``.
        networks: The modules by the names under which stages are reported.
        optimizers: The optimizers by the same names.
        base: Tensors that exist before the step and are not reported, by name.
    """

    def __init__(self, memory, networks, optimizers, base):
        super().__init__()
        self.memory = memory
        self.optimizers = {id(optimizer): name for name, optimizer in optimizers.items()}
        self.networks = networks
        self.places = {}
        for name, network in networks.items():
            for path, module in network.named_modules():
                self.places.setdefault(id(module), Place(name, path, type(module).__name__))
        self.live, self.segments = {}, []
        self.stack, self.in_optimizer = [], None
        # Sequence numbers of autograd's nodes, ascending, and the modules that created them.
        self.numbers, self.creators = [], []
        self.base_sizes = {name: self._add_base(name, tensors) for name, tensors in base.items()}
        self.base_memory = 0

    def __enter__(self):
        self._cleanup = contextlib.ExitStack()
        self._cleanup.enter_context(self._calls_of_modules())
        for handle in (
            register_optimizer_step_pre_hook(lambda optimizer, *_: self._in_optimizer(optimizer)),
            register_optimizer_step_post_hook(lambda *_: self._in_optimizer(None)),
        ):
            self._cleanup.callback(handle.remove)
        self.base_memory = self.memory.now()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._cleanup.close()

    @contextlib.contextmanager
    def _calls_of_modules(self):
        """Follow the calls of modules, without hooks: fused operators step aside for modules with hooks."""
        call = torch.nn.Module.__call__

        def traced(module, *args, **kwargs):
            root = self.stack[-1].root if self.stack else OUTSIDE
            place = self.places.get(id(module), Place(root, "", type(module).__name__))
            with self.inside(place):
                return call(module, *args, **kwargs)

        torch.nn.Module.__call__ = traced
        try:
            yield
        finally:
            torch.nn.Module.__call__ = call

    @contextlib.contextmanager
    def inside(self, place):
        """Attribute what runs in the block to a place."""
        self.stack.append(place)
        try:
            yield
        finally:
            self.stack.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "profiler":  # the range that an optimizer's method opens
            return func(*args, **kwargs)
        stage, place, in_backward = self._where()
        written_in_python = OPDEFS.get(func.name())
        if written_in_python is not None:
            return self._enter_operator(written_in_python, place, args, kwargs)
        origin = functools.partial(Origin, stage, place.path, place.kind)
        for tensor in tensors_of(args, kwargs):
            self._add(tensor, origin, "(untraced)")
        self.memory.reset()
        result = func(*args, **kwargs)
        peak = self.memory.peak()
        before = dict(self.live)  # outputs are added below; arguments that die are still alive in this frame
        for tensor in tensors_of(result, args, kwargs):
            self._add(tensor, origin, str(func.overloadpacket))
        self._record(stage, in_backward, str(func.overloadpacket), peak, {**before, **self.live})
        return result

    def _enter_operator(self, definition, place, args, kwargs):
        """Run a custom operator that is written in Python, and trace the operators that it calls."""
        with self.inside(Place(place.root, place.path, definition._qualname.replace("::", "."))):
            super().__enter__()  # the mode is off while it handles an operator
            try:
                return definition._init_fn(*args, **kwargs)
            finally:
                super().__exit__(None, None, None)

    def _where(self):
        """The stage, the module, and whether a backward is running."""
        node = torch._C._current_autograd_node()
        if self.in_optimizer is not None:
            name = self.in_optimizer
            return f"optimizer {name}", Place(name, "", "optimizer"), node is not None
        number = torch._C._autograd._get_sequence_nr()
        if node is None or self.stack:
            place = self.stack[-1] if self.stack else Place(OUTSIDE, "", "")
            # A node takes its number before its operator is dispatched.
            if not self.numbers or self.numbers[-1] < number - 1:
                self.numbers.append(number - 1)
                self.creators.append(place)
        else:
            place = self._creator(node)
        direction = "forward" if node is None else "backward"
        return f"{place.root} {direction}", place, node is not None

    def _creator(self, node):
        """The module whose forward created a node of the graph."""
        if "AccumulateGrad" not in node.name():
            index = bisect.bisect_left(self.numbers, node._sequence_nr())
            if index < len(self.numbers):
                self._last_creator = self.creators[index]
        return getattr(self, "_last_creator", Place(OUTSIDE, "", ""))

    def _record(self, stage, in_backward, operator, peak, live):
        # The backward of loss terms, and optimizers that run within the backward, belong to the stage around them.
        continues = in_backward and (stage.startswith(OUTSIDE) or self.in_optimizer is not None)
        if not self.segments or (stage != self.segments[-1].stage and not continues):
            self.segments.append(Segment(stage))
        segment = self.segments[-1]
        segment.operators += 1
        segment.end = self.memory.now() - self.base_memory
        if peak - self.base_memory > segment.peak:
            segment.peak, segment.operator = peak - self.base_memory, f"{stage}: {operator}"
            self._name_gradients()
            groups = collections.defaultdict(lambda: (0, 0))
            for block in live.values():
                if not block.base:
                    nbytes, count = groups[block.origin]
                    groups[block.origin] = nbytes + block.nbytes, count + 1
            segment.alive = dict(groups)

    def _add(self, tensor, origin, operator):
        storage = storage_of(tensor)
        if storage is None or storage.nbytes() == 0:
            return
        key = storage._cdata
        if key in self.live:
            self.live[key].nbytes = storage.nbytes()  # storages can be resized
            return
        dtype = str(tensor.dtype).removeprefix("torch.")
        ref = weakref.ref(storage, lambda _: self.live.pop(key, None))
        self.live[key] = Block(origin(operator, dtype), storage.nbytes(), ref)

    def _add_base(self, name, tensors):
        before = set(self.live)
        for tensor in tensors:
            self._add(tensor, functools.partial(Origin, "base", "", name), "")
        added = [block for key, block in self.live.items() if key not in before]
        for block in added:
            block.base = True
        return sum(block.nbytes for block in added)

    def _name_gradients(self):
        """Call the gradients of weights by this name, whichever operator allocated them."""
        for name, network in self.networks.items():
            for path, parameter in network.named_parameters():
                if parameter.grad is not None:
                    block = self.live.get(parameter.grad.untyped_storage()._cdata)
                    if block is not None:
                        dtype = block.origin.dtype
                        block.origin = Origin(f"{name} backward", path.rpartition(".")[0], "weights", "gradient", dtype)

    def _in_optimizer(self, optimizer):
        self.in_optimizer = None if optimizer is None else self.optimizers.get(id(optimizer), type(optimizer).__name__)
