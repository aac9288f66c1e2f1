"""Use of the lean LPIPS in scripts written for the lpips package or torchmetrics, without editing them."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from pix2pixhd.integrations.patching import Patch
from pix2pixhd.losses import LPIPS
from pix2pixhd.models.lpips_trunks import empty_trunk

if TYPE_CHECKING:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

__all__ = ["patch", "use_in"]


def patch() -> Patch:
    """Replace ``lpips.LPIPS`` by ``pix2pixhd.losses.LPIPS``, which has the same names, results and state dict.

    Call it before the script builds its metric. A name that was imported before, ``from lpips import LPIPS``, is not
    replaced. For a metric of torchmetrics see ``use_in``.

    Returns:
        A record of what was replaced. ``undo()``, or the end of a ``with`` block, restores it.

    Raises:
        ModuleNotFoundError: If the lpips package is not installed.

    Example:
        >>> import lpips
        >>> from pix2pixhd.integrations.lpips import patch
        >>> with patch():
        ...     metric = lpips.LPIPS(net="vgg", pnet_rand=True)
        >>> type(metric).__module__
        'pix2pixhd.losses.lpips'
    """
    try:
        package = importlib.import_module("lpips")
    except ModuleNotFoundError as error:
        if error.name != "lpips":
            raise
        raise ModuleNotFoundError(
            "lpips is not installed, so nothing can be replaced; install it with `pip install lpips`, or use "
            "pix2pixhd.losses.LPIPS directly",
            name="lpips",
        ) from error
    patched = Patch()
    patched.replace(package, "LPIPS", LPIPS)
    patched.replace(importlib.import_module("lpips.lpips"), "LPIPS", LPIPS)
    return patched


def _to_torchmetrics_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename ``net.slice2.3.weight`` to ``net.slices.1.3.weight``, as in torchmetrics' SqueezeNet."""
    pattern = re.compile(rf"^({re.escape(prefix)}net\.)slice(\d+)\.")
    renamed = {pattern.sub(lambda m: f"{m[1]}slices.{int(m[2]) - 1}.", name): value for name, value in state.items()}
    state.clear()
    state.update(renamed)


def use_in(metric: LearnedPerceptualImagePatchSimilarity) -> LearnedPerceptualImagePatchSimilarity:
    """Replace the network of a torchmetrics metric by ``pix2pixhd.losses.LPIPS`` with the same weights and state dict.

    Args:
        metric: A ``LearnedPerceptualImagePatchSimilarity``. It is changed and returned. One whose network has been
            replaced before stays as it is.

    Raises:
        TypeError: If its network is not torchmetrics' LPIPS.

    Example:
        >>> from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        >>> from pix2pixhd.integrations.lpips import use_in
        >>> metric = use_in(LearnedPerceptualImagePatchSimilarity(net_type="vgg"))  # doctest: +SKIP
    """
    network = getattr(metric, "net", None)
    kind = getattr(network, "pnet_type", None)
    if not isinstance(network, nn.Module) or kind is None:
        raise TypeError(
            "metric must be a torchmetrics LearnedPerceptualImagePatchSimilarity with a network net, got "
            f"{type(metric).__name__} with {type(network).__name__}"
        )
    if isinstance(network, LPIPS):
        return metric
    ours = LPIPS(net=kind, pretrained=False, trunk=empty_trunk(kind))
    for name, constant in list(ours.scaling_layer.named_buffers()):  # torchmetrics does not save them
        ours.scaling_layer.register_buffer(name, constant, persistent=False)
    ours.load_state_dict(network.state_dict())
    if kind == "squeeze":
        ours.register_state_dict_post_hook(_to_torchmetrics_names)  # type: ignore[no-untyped-call]
    parameter = next(network.parameters())
    metric.net = cast(Any, ours.to(parameter.device, parameter.dtype))
    return metric
