"""Activation checkpoints between the taps of a network."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class _Segment(NamedTuple):
    """Consecutive modules of an ``nn.Sequential``.

    Attributes:
        modules: The modules.
        checkpointed: Whether only the input is saved, and the modules run again in the backward pass.
    """

    modules: tuple[nn.Module, ...]
    checkpointed: bool


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _has_blocks(module: nn.Module) -> bool:
    """Whether the module contains a list of several modules that have children themselves, such as a ResNet's stage."""
    return any(
        isinstance(m, (nn.Sequential, nn.ModuleList)) and sum(not _is_leaf(child) for child in m) > 1
        for m in module.modules()
    )


def _first_layer(module: nn.Module) -> nn.Module:
    while isinstance(module, nn.Sequential) and len(module) > 0:
        module = module[0]
    return module


def _run(modules: Sequence[nn.Module], x: Any) -> Any:
    given, version = x, x._version if isinstance(x, Tensor) else 0
    if getattr(_first_layer(modules[0]), "inplace", False):
        x = x.clone()  # the saved input must stay as it is for the second run
    for module in modules:
        x = module(x)
    if isinstance(given, Tensor) and given._version != version:
        raise RuntimeError(
            f"checkpoint=True: {type(modules[0]).__name__} modifies its input in place, so that it cannot run again; "
            "set inplace=False in the network, or use checkpoint=False"
        )
    return x


def _checkpoint(function: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    # The random state cannot be read while a CUDA graph is captured.
    random = not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=random, **kwargs)


def _run_segments(segments: Sequence[_Segment], x: Any) -> Any:
    for segment in segments:
        run = functools.partial(_run, segment.modules)
        x = _checkpoint(run, x) if segment.checkpointed else run(x)
    return x


def _segments(container: nn.Sequential, tapped: set[nn.Module]) -> list[_Segment]:
    """Cuts after each tap, around each block, and around lists of blocks, which are cut themselves."""
    segments: list[_Segment] = []
    current: list[nn.Module] = []

    def close() -> None:
        if current:
            segments.append(_Segment(tuple(current), True))
            current.clear()

    for child in container:
        if _is_leaf(child):
            current.append(child)
        else:
            close()
            segments.append(_Segment((child,), not _has_blocks(child)))
        if child in tapped:
            close()
    close()
    return segments


def _replacements(module: nn.Module, tapped: set[nn.Module]) -> Iterator[tuple[nn.Module, Any]]:
    if isinstance(module, nn.Sequential) and len(module) > 1:
        segments = _segments(module, tapped)
        yield module, functools.partial(_run_segments, segments)
        for segment in segments:
            if not segment.checkpointed:
                yield from _replacements(segment.modules[0], tapped)
    elif isinstance(module, nn.ModuleList):
        for child in module:
            if not _is_leaf(child):
                yield child, functools.partial(_checkpoint, child.forward)
    else:
        for child in module.children():
            yield from _replacements(child, tapped)


_replacing = threading.RLock()  # threads that run the same network must not restore each other's methods


@contextlib.contextmanager
def checkpointed(network: nn.Module, taps: Sequence[str] | None) -> Iterator[None]:
    """Saves only the inputs of the segments of a network's ``nn.Sequential`` and ``nn.ModuleList`` containers.

    A segment is a block, or the layers between two taps. Its activations are recomputed in the backward pass. Networks
    without such containers are not changed.
    """
    tapped = {network.get_submodule(name) for name in taps or ()}
    replaced: list[tuple[nn.Module, Any]] = []
    with _replacing:
        try:
            for module, forward in list(_replacements(network, tapped)):
                replaced.append((module, module.__dict__.get("forward")))
                module.forward = forward
            yield
        finally:
            for module, before in reversed(replaced):
                if before is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.forward = before
