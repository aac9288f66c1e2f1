"""The VGG perceptual loss."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pix2pixhd.models.vgg import TAPS, VGG19Features, load_vgg19
from pix2pixhd.ops import multi_l1_loss, perceptual

PAPER_WEIGHTS = (1.0 / 32, 1.0 / 16, 1.0 / 8, 1.0 / 4, 1.0)
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_LEAST = 16  # relu5_1 stands behind four poolings


def _leave_out_vgg(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}vgg.")]:
        del state[name]


def _fill_in_vgg(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Gives strict loading what was left out when saving."""
    for name, value in cast(nn.Module, module.vgg).state_dict(prefix=f"{prefix}vgg.").items():
        state.setdefault(name, value)


class VGGLoss(nn.Module):
    """The perceptual loss of pix2pixHD: ``Σ_k w_k · mean|φ_k(fake) − φ_k(real)|`` (after arXiv 1603.08155).

    φ are VGG19's relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1, the weights 1/32, 1/16, 1/8, 1/4 and 1.

    The VGG is frozen, so the gradient with respect to ``fake`` is computed along with the value, and only that one
    picture is kept for the backward: no activation is. The form that keeps them, which PyTorch differentiates as often
    as anybody likes, stays available as ``keep_activations=True``.

    The signature is that of NVIDIA's ``networks.VGGLoss``: ``VGGLoss(gpu_ids)(fake, real)`` works unchanged.

    The VGG follows this module's ``.to()``, has no trainable parameters, and stays out of ``state_dict()``: frozen and
    the same for everybody, it would add 50 MB to every checkpoint of a module that holds this loss.

    Args:
        gpu_ids: NVIDIA's list of GPUs: the VGG moves to the first where CUDA is available. Otherwise it goes where
            ``.to(device)`` puts this module.
        vgg: ``"imagenet"``, the path of a state dict, ``"random"`` (seeded, with a warning), see
            ``pix2pixhd.models.vgg.load_vgg19``; or a module that returns a list of maps, one per weight, which is
            frozen and put in evaluation mode.
        weights: One number per map.
        keep_activations: Whether to leave the gradient to PyTorch, for double backward or for gradients into the VGG.
            So it is in any case for a module of one's own, for devices without kernels, and under
            ``pix2pixhd.backend("reference")``.
        normalize: ``"none"``: the VGG sees the pictures in [−1, 1] as they are, as in the original. ``"imagenet"``:
            they are brought to ImageNet's mean and deviation first, as its weights expect.

    Raises:
        RuntimeError: If pretrained weights cannot be fetched; never falls back to random ones.
        ValueError: For an unknown ``normalize``, or a file that is no VGG19 state dict.
        TypeError: For a string as ``gpu_ids``.
        FileNotFoundError: If ``vgg`` names no file.

    Example:
        >>> import torch
        >>> from pix2pixhd.losses import VGGLoss
        >>> criterion = VGGLoss(vgg="random")
        >>> fake = torch.zeros(1, 3, 32, 32, requires_grad=True)
        >>> criterion(fake, torch.ones(1, 3, 32, 32)).backward()
    """

    def __init__(
        self,
        gpu_ids: Sequence[int] | None = None,
        vgg: str | pathlib.Path | nn.Module = "imagenet",
        *,
        weights: Sequence[float] = PAPER_WEIGHTS,
        normalize: Literal["none", "imagenet"] = "none",
        keep_activations: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(gpu_ids, (str, pathlib.Path, nn.Module)):
            raise TypeError(f"gpu_ids must be a list of GPU numbers, got {gpu_ids!r}; did you mean vgg={gpu_ids!r}?")
        if normalize not in ("none", "imagenet"):
            raise ValueError(f"normalize must be none or imagenet, got {normalize!r}")
        self.vgg = (vgg if isinstance(vgg, nn.Module) else load_vgg19(vgg)).requires_grad_(False).eval()
        self.weights = [float(weight) for weight in weights]
        self.normalize = normalize
        self.keep_activations = keep_activations
        # Not in the state dict: constants, not weights.
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        self.register_state_dict_post_hook(_leave_out_vgg)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_fill_in_vgg)  # type: ignore[no-untyped-call]
        if gpu_ids and torch.cuda.is_available():
            self.to(torch.device("cuda", gpu_ids[0]))

    def train(self, mode: bool = True) -> VGGLoss:
        """The VGG stays in evaluation mode, whatever the training script's ``.train()`` reaches."""
        super().train(mode)
        self.vgg.eval()
        return self

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """Computes the loss.

        Args:
            fake: Pictures ``[N, 3, H, W]`` in [−1, 1], H and W at least 16; ``[N, 1, H, W]`` is repeated to three
                channels. Their type is the VGG's, float32 unless this module was converted; under autocast half
                types too.
            real: The real pictures, of the same shape. They get no gradient.

        Returns:
            A scalar.

        Raises:
            TypeError: If pictures and VGG differ in type outside autocast.
            ValueError: For other shapes, or pictures and VGG on different devices.
        """
        return self.weighted(fake, real, 1.0)

    def weighted(self, fake: Tensor, real: Tensor, weight: float) -> Tensor:
        """``weight`` times the loss, with the weight folded into the one call."""
        if fake.shape != real.shape:
            raise ValueError(f"real must have the shape of fake, {tuple(fake.shape)}, got {tuple(real.shape)}")
        real, fake = self._prepared("real", real.detach()), self._prepared("fake", fake)
        factors = [weight * w for w in self.weights]
        if not self.keep_activations and isinstance(self.vgg, VGG19Features) and perceptual.can_run(fake):
            if len(factors) != len(TAPS):
                raise ValueError(f"weights must have one number per map of vgg, {len(TAPS)}, got {len(factors)}")
            return perceptual.perceptual_loss(fake, real, *self.vgg.chain(), factors)
        with torch.no_grad():
            real_maps: list[Tensor] = list(self.vgg(real))
        fake_maps: list[Tensor] = list(self.vgg(fake))
        if len(fake_maps) != len(self.weights):
            raise ValueError(f"weights must have one number per map of vgg, {len(fake_maps)}, got {len(self.weights)}")
        return multi_l1_loss(fake_maps, real_maps, factors)

    def _prepared(self, name: str, pictures: Tensor) -> Tensor:
        shape = tuple(pictures.shape)
        if pictures.dim() != 4 or shape[1] not in (1, 3):
            raise ValueError(f"{name} must be pictures [N, 3, H, W] or [N, 1, H, W], got {shape}")
        if min(shape[2:]) < _LEAST:
            raise ValueError(
                f"{name} must be at least {_LEAST}x{_LEAST}, got {shape[2]}x{shape[3]}; enlarge the pictures"
            )
        self._check_against_vgg(name, pictures)
        if shape[1] == 1:
            pictures = pictures.expand(-1, 3, -1, -1)
        if self.normalize == "imagenet":
            pictures = ((pictures + 1.0) / 2.0 - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        return pictures

    def _check_against_vgg(self, name: str, pictures: Tensor) -> None:
        parameter = next(self.vgg.parameters(), None)
        if parameter is None:
            return
        if parameter.device != pictures.device:
            raise ValueError(
                f"{name} is on {pictures.device} and the VGG on {parameter.device}; move the loss: "
                f"VGGLoss(...).to({str(pictures.device)!r})"
            )
        autocast = torch.is_autocast_enabled(pictures.device.type) and pictures.is_floating_point()
        if parameter.dtype != pictures.dtype and not autocast:
            raise TypeError(
                f"{name} is {pictures.dtype} and the VGG {parameter.dtype}; convert the pictures, convert the loss "
                "(VGGLoss(...).to(dtype)), or use autocast"
            )

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"weights={self.weights}, normalize={self.normalize!r}"
