"""The ``loss`` section of a configuration."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any, Literal, get_args

from pix2pixhd.config.schema.ranges import at_least, check_ranges
from pix2pixhd.errors import InputError

__all__ = [
    "GANMode",
    "LossOptions",
    "PerceptualDistance",
    "PerceptualDtype",
    "PerceptualLoss",
    "PerceptualNetwork",
    "PresetName",
]

PresetName = Literal["paper", "nvidia", "spade", "imaginaire", "mlops"]
GANMode = Literal["lsgan", "vanilla", "hinge", "wgan"]
PerceptualLoss = Literal["vgg", "lpips", "none"]
PerceptualNetwork = Literal["vgg19", "vgg16", "vgg", "alex", "squeeze"]
PerceptualDistance = Literal["l1", "mse"]
PerceptualDtype = Literal["float32", "bfloat16", "float16"]

# The networks of each perceptual loss; the first one is the default.
_NETWORKS: dict[str, tuple[PerceptualNetwork, ...]] = {"vgg": ("vgg19", "vgg16"), "lpips": ("vgg", "alex", "squeeze")}
_PAPER_LAYERS = 5
# Options that only one of the losses has.
_OWN = {
    "vgg": ("perceptual_layers", "perceptual_weights", "perceptual_distance"),
    "lpips": ("lpips_weights",),
}


@dataclasses.dataclass
class LossOptions:
    """Definition and weights of the terms: ``lambda_gan·L_GAN + lambda_feat·L_FM + lambda_vgg·L_perceptual``.

    Attributes:
        preset: Implementation whose definition of the losses is used: ``paper``, ``nvidia``, ``spade``, ``imaginaire``
            or ``mlops``.
        gan_mode: GAN objective: ``lsgan``, ``vanilla``, ``hinge`` or ``wgan``. None uses the preset's.
        lambda_gan: Weight of the GAN loss. None uses the preset's: 0.5 for ``paper``.
        lambda_feat: Weight of the feature matching loss. None uses the preset's: 10. 0 disables the loss.
        lambda_vgg: Weight of the perceptual loss, whichever ``perceptual`` selects. None uses the preset's: 10 for
            ``paper``. 0 disables the loss.
        perceptual: Perceptual loss: ``vgg`` (``VGGLoss``), ``lpips`` (``LPIPS``), or ``none``, which disables it like
            ``lambda_vgg: 0``.
        perceptual_network: Network of the perceptual loss: ``vgg19`` or ``vgg16`` for ``vgg``; ``vgg`` (VGG16),
            ``alex`` or ``squeeze`` for ``lpips``. None uses the first of these.
        perceptual_layers: Names of the layers that ``vgg`` compares, such as ``[relu1_2, relu3_3]``. None uses
            relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1.
        perceptual_weights: Weights of the layers of ``vgg``, one number per layer. None uses 1/32, 1/16, 1/8, 1/4 and 1
            for the default layers, and 1 per layer otherwise.
        perceptual_distance: Distance of the layers of ``vgg``: ``l1`` or ``mse``. None uses ``l1``.
        perceptual_dtype: Dtype in which the network of the perceptual loss computes: ``float32``, ``bfloat16`` or
            ``float16``. None follows ``trainer.precision``; ``bf16-true`` and ``64-true`` allow nothing else.
        vgg: Weights of the network of the perceptual loss: ``imagenet``, the path of a state dict, or ``random`` (for
            tests).
        vgg_memory_limit: Maximum memory for the feature maps of the perceptual loss, in MiB. None for no limit.
        lpips_weights: Path of the weights of the linear layers of ``lpips``. None uses those of the installed lpips
            package or of torchmetrics.
        pool_size: Number of previously generated images that are stored and also shown to the discriminator. 0
            disables the pool.

    Raises:
        InputError: If a weight or size is negative, if all terms are disabled, or for an option that the selected
            perceptual loss does not have.

    Example:
        >>> LossOptions(preset="nvidia", lambda_vgg=0.0).preset
        'nvidia'
        >>> LossOptions(perceptual="lpips").network
        'vgg'
    """

    preset: PresetName = "paper"
    gan_mode: GANMode | None = None
    lambda_gan: float | None = None
    lambda_feat: float | None = None
    lambda_vgg: float | None = None
    perceptual: PerceptualLoss = "vgg"
    perceptual_network: PerceptualNetwork | None = None
    perceptual_layers: list[str] | None = None
    perceptual_weights: list[float] | None = None
    perceptual_distance: PerceptualDistance | None = None
    perceptual_dtype: PerceptualDtype | None = None
    vgg: str = "imagenet"
    vgg_memory_limit: int | None = None
    lpips_weights: str | None = None
    pool_size: int = 0

    def __post_init__(self) -> None:
        weights = ("lambda_gan", "lambda_feat", "lambda_vgg")
        check_ranges("loss", self, pool_size=at_least(0), vgg_memory_limit=at_least(1))
        check_ranges("loss", self, **dict.fromkeys(weights, at_least(0)))
        _check_choice("perceptual", self.perceptual, PerceptualLoss, optional=False)
        _check_choice("perceptual_distance", self.perceptual_distance, PerceptualDistance)
        _check_choice("perceptual_dtype", self.perceptual_dtype, PerceptualDtype)
        for name, default in (("vgg", "imagenet"), ("lpips_weights", "null")):
            if getattr(self, name) == "":
                raise InputError(f"loss.{name} must be {default} or the path of a file, got ''; set {default}")
        disabled = [weight for weight in weights if getattr(self, weight) == 0]
        if len({*disabled, *(["lambda_vgg"] if self.perceptual == "none" else [])}) == len(weights):
            raise InputError(
                "loss: all weights are 0, so the generator would not be trained; set one of them"
                if len(disabled) == len(weights)
                else "loss.perceptual: none leaves no term, because loss.lambda_gan and loss.lambda_feat are 0 and the "
                "generator would not be trained; set one of them, or loss.perceptual: vgg"
            )
        self._check_network()
        self._check_layers()
        if self.perceptual != "none":
            self._check_own_options()

    @property
    def network(self) -> PerceptualNetwork | None:
        """The network of the perceptual loss; None with ``perceptual: none``."""
        return None if self.perceptual == "none" else self.perceptual_network or _NETWORKS[self.perceptual][0]

    def check_precision(self, precision: str) -> None:
        """Checks that ``perceptual_dtype`` is possible in a precision of the trainer.

        Raises:
            InputError: For precisions that convert the weights of all networks, the frozen one included.
        """
        if self.perceptual_dtype is not None and precision in ("bf16-true", "64-true"):
            raise InputError(
                f"loss.perceptual_dtype: {self.perceptual_dtype} cannot be combined with trainer.precision: "
                f"{precision}, which converts the weights of the perceptual loss too; remove it, or set "
                "trainer.precision: bf16-mixed or 32-true"
            )

    def _check_network(self) -> None:
        _check_choice("perceptual_network", self.perceptual_network, PerceptualNetwork)
        allowed = _NETWORKS.get(self.perceptual, get_args(PerceptualNetwork))
        if self.perceptual_network is not None and self.perceptual_network not in allowed:
            other = "lpips" if self.perceptual == "vgg" else "vgg"
            raise InputError(
                f"loss.perceptual_network must be {' or '.join(allowed)} for loss.perceptual: {self.perceptual}, got "
                f"{self.perceptual_network!r}; change it, or set loss.perceptual: {other}"
            )

    def _check_own_options(self) -> None:
        for owner, names in _OWN.items():
            for name in names:
                if owner != self.perceptual and getattr(self, name) is not None:
                    raise InputError(
                        f"loss.{name} is an option of loss.perceptual: {owner}, but loss.perceptual is "
                        f"{self.perceptual}; remove it, or set loss.perceptual: {owner}"
                    )

    def _check_layers(self) -> None:
        """Checks lists; their names are checked against the network by ``pix2pixhd.training.losses.check_loss``."""
        self.perceptual_layers = layers = _as_list("perceptual_layers", self.perceptual_layers, str, "names of layers")
        weights = _as_list("perceptual_weights", self.perceptual_weights, numbers.Real, "numbers")
        if weights is None:
            return
        self.perceptual_weights = weights = [float(weight) for weight in weights]
        if not all(weight >= 0 and math.isfinite(weight) for weight in weights) or not any(weights):
            raise InputError(
                "loss.perceptual_weights must be finite numbers of at least 0, not all 0, got "
                f"{weights}; to disable the loss, set loss.perceptual: none"
            )
        count = _PAPER_LAYERS if layers is None else len(layers)
        if len(weights) != count:
            source = "default layers" if layers is None else "layers in loss.perceptual_layers"
            raise InputError(
                f"loss.perceptual_weights must have one number for each of the {count} {source}, got {len(weights)}; "
                "change one of the two lists"
            )


def _check_choice(name: str, value: object, choices: Any, optional: bool = True) -> None:
    if value not in get_args(choices) and not (optional and value is None):
        raise InputError(f"loss.{name} must be {', '.join(get_args(choices))}, got {value!r}; choose one of them")


def _as_list(name: str, value: Sequence[Any] | None, kind: Any, what: str) -> list[Any] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not all(isinstance(x, kind) and not isinstance(x, bool) for x in value):
        raise InputError(f"loss.{name} must be a list of {what}, got {value!r}; write it as [a, b]")
    return list(value)
