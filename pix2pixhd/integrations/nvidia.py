"""Use of the fused losses in NVIDIA's pix2pixHD and SPADE repositories without editing them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn

from pix2pixhd.integrations.patching import Patch
from pix2pixhd.losses import GANLoss, L1Loss, VGGLoss

__all__ = ["Patch", "patch"]

# Module in the package of `networks`, class, and the method that sets self.criterionFeat: pix2pixHD, SPADE.
_MODELS = (
    ("pix2pixHD_model", "Pix2PixHDModel", "initialize"),
    ("pix2pix_model", "Pix2PixModel", "__init__"),
)


def _import_networks(repository: pathlib.Path) -> ModuleType:
    models = repository / "models"
    if not ((models / "networks.py").is_file() or (models / "networks" / "__init__.py").is_file()):
        raise FileNotFoundError(
            f"networks: {repository} has no models/networks; pass the folder of a pix2pixHD or SPADE checkout, "
            "the one with train.py, or its module models.networks"
        )
    if str(repository) not in sys.path:  # permanently, because the repository imports its modules later too
        sys.path.insert(0, str(repository))
    networks = importlib.import_module("models.networks")
    found = getattr(networks, "__file__", None) or "elsewhere"
    if models not in pathlib.Path(found).resolve().parents:
        raise ImportError(
            f"networks: models.networks comes from {found}, not from {repository}; call patch() before another "
            "package of that name is imported, or pass the module"
        )
    return networks


def _with_logits(define_D: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Build the discriminator without a sigmoid, because ``GANLoss`` takes logits. A sigmoid has no parameters."""
    signature = inspect.signature(define_D)

    @functools.wraps(define_D)
    def without_sigmoid(*args: Any, **kwargs: Any) -> nn.Module:
        bound = signature.bind(*args, **kwargs)
        bound.arguments["use_sigmoid"] = False
        return define_D(*bound.args, **bound.kwargs)

    return without_sigmoid


def _with_fused_l1(build: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(build)
    def then_replace(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = build(self, *args, **kwargs)
        if isinstance(getattr(self, "criterionFeat", None), nn.L1Loss):
            self.criterionFeat = L1Loss()
        return result

    return then_replace


def _patch_model(patched: Patch, package: str) -> None:
    for module, name, method in _MODELS:
        full_name = f"{package}.{module}"
        if full_name in sys.modules or importlib.util.find_spec(full_name) is not None:
            model = getattr(importlib.import_module(full_name), name)
            patched.replace(model, method, _with_fused_l1(getattr(model, method)))


def patch(networks: ModuleType | str | pathlib.Path, *, vgg: str | pathlib.Path | nn.Module = "imagenet") -> Patch:
    """Replace the losses of NVIDIA's pix2pixHD or SPADE by the fused ones, for all models built afterwards.

    This function replaces

    * ``networks.GANLoss`` and ``networks.VGGLoss``, by the classes of ``pix2pixhd.losses``;
    * ``criterionFeat``, the ``torch.nn.L1Loss`` of the model's feature matching loop, by the fused ``L1Loss``. The loop
      itself is part of the model's ``forward`` and stays, with one call per layer. For a single call, replace the loop
      by ``lambda_feat * FeatureMatchingLoss()(pred_fake, pred_real)``;
    * pix2pixHD's ``networks.define_D``, by a wrapper that disables ``use_sigmoid``, because with ``--no_lsgan`` the
      vanilla loss takes logits, see ``GANLoss``.

    Networks, optimisers, options, checkpoints and ``torch.nn.L1Loss`` elsewhere are unchanged. Names that were
    imported before (``from models.networks import VGGLoss``) still refer to the originals.

    Args:
        networks: The repository's module ``models.networks``, or the path of a checkout, which is put on ``sys.path``.
        vgg: Source of the VGG's weights, see ``VGGLoss``.

    Returns:
        A handle that lists the replaced attributes and restores them; also a context manager.

    Raises:
        FileNotFoundError: If the path is not a checkout.
        ImportError: If the checkout cannot be imported, or another ``models.networks`` is already imported.
        AttributeError: If the module has no ``GANLoss`` or no ``VGGLoss``.
        TypeError: If ``networks`` is neither a module nor a path.

    Example:
        To train with an unchanged checkout, run this in its folder, followed by the options of ``train.py``:

        >>> import runpy
        >>> from pix2pixhd.integrations import nvidia
        >>> nvidia.patch(".")  # doctest: +SKIP
        >>> runpy.run_path("train.py", run_name="__main__")  # doctest: +SKIP
    """
    if isinstance(networks, (str, pathlib.Path)):
        networks = _import_networks(pathlib.Path(networks).resolve())
    if not isinstance(networks, ModuleType):
        raise TypeError(f"networks must be a module or the path of a checkout, got {type(networks).__name__}")
    missing = [name for name in ("GANLoss", "VGGLoss") if not hasattr(networks, name)]
    if missing:
        raise AttributeError(
            f"networks: module {networks.__name__} has no {' and no '.join(missing)}; pass models.networks of "
            "pix2pixHD or SPADE"
        )
    patched = Patch()
    try:
        patched.replace(networks, "GANLoss", GANLoss)
        patched.replace(networks, "VGGLoss", functools.partial(VGGLoss, vgg=vgg))
        define_D = getattr(networks, "define_D", None)
        if define_D is not None and "use_sigmoid" in inspect.signature(define_D).parameters:
            patched.replace(networks, "define_D", _with_logits(define_D))
        package = networks.__name__.rpartition(".")[0]
        if package:
            _patch_model(patched, package)
    except BaseException:
        patched.undo()
        raise
    return patched
