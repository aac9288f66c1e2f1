"""Feature maps of a network: outputs of named modules, or the network's own list of outputs."""

from __future__ import annotations

import difflib
import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pix2pixhd.ops.autograd import is_wrapped


class _AllRecorded(BaseException):
    """Ends the forward pass of a network after its last tap. Not an Exception, so that no network handles it."""


class _State:
    """What is known of a network's taps from earlier passes.

    Attributes:
        seen_whole: Whether a whole pass has called every tap once, so that later passes may end after the last tap.
        copied: Taps whose output is modified in place by the next layer, and is therefore copied.
    """

    def __init__(self) -> None:
        self.seen_whole = False
        self.copied: set[str] = set()


# Not an attribute of the network: attributes are copied, pickled and compared by others.
_states: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, ...], _State]] = weakref.WeakKeyDictionary()


def check_taps(network: nn.Module, taps: Any) -> tuple[str, ...] | None:
    """Checks the names of modules whose outputs are compared.

    Raises:
        TypeError: If ``taps`` is a single string, or an entry is not a string.
        ValueError: If a name is unknown or repeated, or there is none. The message names similar ones.
    """
    if taps is None:
        return None
    if isinstance(taps, str):
        raise TypeError(f"taps must be a list of module names, got {taps!r}; did you mean [{taps!r}]?")
    modules = dict(network.named_modules(remove_duplicate=False))
    known = [name for name in modules if name]
    names = tuple(taps)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"taps must be a list of module names, got {name!r} ({type(name).__name__}) in it")
        if name not in known:
            similar = difflib.get_close_matches(name, known, 3, 0.3) or known[:3]
            raise ValueError(
                f"taps: the network has no module {name!r}; it has, for example, {', '.join(similar) or 'none'}; "
                "network.named_modules() lists all"
            )
    if len(set(names)) != len(names):
        raise ValueError(f"taps: {Counter(names).most_common(1)[0][0]!r} is listed twice")
    first_names: dict[nn.Module, str] = {}
    for name in names:
        other = first_names.setdefault(modules[name], name)
        if other != name:
            raise ValueError(
                f"taps: {other!r} and {name!r} are the same module; name another one, or one that contains it"
            )
    if not names:
        raise ValueError("taps must name at least one module; None selects the network's own outputs")
    return names


def _tensor_of(output: Any, name: str, images: Tensor) -> Tensor:
    """Returns a module's output; the first entry where it is a tuple, as of attention layers."""
    found = output[0] if isinstance(output, (tuple, list)) and output else output
    return _checked(found, f"the output of module {name!r}", images)


def _checked(output: Any, source: str, images: Tensor) -> Tensor:
    if not isinstance(output, Tensor) or not output.is_floating_point():
        kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(f"taps: {source} must be a floating-point tensor, got {kind}; select other modules with taps")
    if output.dim() < 2 or output.shape[0] != images.shape[0]:
        single = ""
        if images.dim() == 3:  # layers of PyTorch take an image without a batch
            single = (
                f"; the input has the shape {tuple(images.shape)}, and a single image [C, H, W] needs .unsqueeze(0)"
            )
        raise ValueError(
            f"taps: {source} must have the shape [N, C, ...] with N = {images.shape[0]} images, got "
            f"{tuple(output.shape)}{single}; select other modules with taps"
        )
    return output


def _own_outputs(output: Any, images: Tensor) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [_checked(output, "the network's output", images)]
    if not isinstance(output, (Mapping, list, tuple)):
        raise TypeError(
            f"network must return a tensor, or a list, tuple or dict of tensors, got {type(output).__name__}; select "
            "modules with taps"
        )
    if not output:
        raise ValueError(
            f"network must return at least one tensor, got an empty {type(output).__name__}; select modules with taps"
        )
    entries = output.items() if isinstance(output, Mapping) else enumerate(output)
    return [_checked(value, f"the network's output {name!r}", images) for name, value in entries]


class _Recorder:
    """Forward hooks that record the outputs of the taps during one pass.

    Args:
        taps: Names of the modules.
        state: What is known of them.
        copy_all: Whether to copy every output, because modifications in place cannot be observed.
        whole: Whether the pass must not end after the last tap.
    """

    def __init__(self, taps: Sequence[str], state: _State, copy_all: bool, whole: bool) -> None:
        self.taps = taps
        self.state = state
        self.copy_all = copy_all
        self.whole = whole or not state.seen_whole
        self.maps: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._thread = threading.get_ident()

    def run(self, network: nn.Module, images: Tensor) -> None:
        """Runs the network. The hooks are removed in any case."""
        handles = []
        try:
            for name in self.taps:
                handles.append(network.get_submodule(name).register_forward_hook(self._hook(name, images)))
            network(images.clone())  # the network may modify its input in place
        except _AllRecorded:
            return
        finally:
            for handle in handles:
                handle.remove()
        missing = [name for name in self.taps if name not in self.maps]
        if missing:
            raise ValueError(f"taps: module {missing[0]!r} was not called in the network's forward pass; remove it")
        self.state.seen_whole = True

    def _hook(self, name: str, images: Tensor) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() != self._thread:  # another thread runs the same network
                return
            if name in self.maps:
                raise ValueError(
                    f"taps: module {name!r} is called more than once in a forward pass, so its output is ambiguous; "
                    "name another module, for example the one that contains it"
                )
            tensor = _tensor_of(output, name, images)
            if self.copy_all:
                self.maps[name] = tensor.clone()
                return
            self.maps[name] = tensor.clone() if name in self.state.copied else tensor
            self._versions[name] = self.maps[name]._version
            if not self.whole and len(self.maps) == len(self.taps):
                raise _AllRecorded

        return record

    def modified(self) -> set[str]:
        """Returns the taps whose output has been modified in place after it was recorded."""
        return {name for name, version in self._versions.items() if self.maps[name]._version != version}


def feature_maps(
    network: nn.Module, taps: tuple[str, ...] | None, images: Tensor, *, whole: bool = False
) -> list[Tensor]:
    """Returns the outputs of the tapped modules, in the order of ``taps``, or the network's own outputs.

    An output that a later layer modifies in place (``ReLU(inplace=True)``) is returned as it was. The network receives
    a copy of the images, so that layers may modify it in place.

    Args:
        network: The network.
        taps: Names of its modules, or None.
        images: Its input.
        whole: Whether to run all of the network. Otherwise it may stop after the last tap.

    Raises:
        TypeError: If an output is not a floating-point tensor.
        ValueError: If a module is not called, or is called more than once, or an output has not one entry per image.
    """
    if taps is None:
        return _own_outputs(network(images.clone()), images)
    if torch.compiler.is_compiling():
        return _traced_maps(network, taps, images)
    state = _states.setdefault(network, {}).setdefault(taps, _State())
    copy_all = is_wrapped(images) or images.is_inference() or torch.is_inference_mode_enabled()
    while True:
        recorder = _Recorder(taps, state, copy_all, whole)
        recorder.run(network, images)
        modified = recorder.modified()
        if not modified:
            return [recorder.maps[name] for name in taps]
        state.copied |= modified


def _traced_maps(network: nn.Module, taps: Sequence[str], images: Tensor) -> list[Tensor]:
    """Like ``feature_maps``, for ``torch.compile``, which does not support adding hooks."""
    maps: dict[str, Tensor] = {}
    modules = [network.get_submodule(name) for name in taps]

    def recording(name: str, forward: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            maps[name] = _tensor_of(output, name, images).clone()
            return output

        return call

    for name, module in zip(taps, modules, strict=True):
        module.forward = recording(name, module.forward)
    try:
        network(images.clone())
    finally:
        for module in modules:
            module.__dict__.pop("forward")
    return [maps[name] for name in taps]
