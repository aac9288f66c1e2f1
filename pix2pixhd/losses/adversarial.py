"""Adversarial loss: LSGAN, vanilla, hinge and Wasserstein. One operator call covers all scales."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor, nn

from pix2pixhd.config.schema.loss import GANMode
from pix2pixhd.losses.predictions import Prediction, Scales, as_scales
from pix2pixhd.ops import hinge_loss, logistic_loss, lsgan_loss, mean_loss
from pix2pixhd.ops.scalars import Number, flag, one_number

Reduction = Literal["sum", "mean"]

_SPADE_NAMES: dict[str, GANMode] = {"ls": "lsgan", "original": "vanilla", "hinge": "hinge", "w": "wgan"}


class GANLoss(nn.Module):
    """Adversarial loss for one target label, compatible with the ``GANLoss`` of NVIDIA's pix2pixHD and of SPADE.

    The modes, for a prediction ``x``:

    - ``lsgan`` (arXiv 1611.04076): discriminator ``mean((x − 1)²)`` for real and ``mean(x²)`` for fake; generator
      ``mean((x − 1)²)``.
    - ``vanilla``: discriminator ``BCE(sigmoid(x), 1)`` for real and ``BCE(sigmoid(x), 0)`` for fake; generator
      ``BCE(sigmoid(x), 1)``.
    - ``hinge``: discriminator ``mean(max(0, 1 − x))`` for real and ``mean(max(0, 1 + x))`` for fake; generator
      ``−mean(x)``.
    - ``wgan``: discriminator ``−mean(x)`` for real and ``mean(x)`` for fake; generator ``−mean(x)``.

    The factor ``0.5`` of the LSGAN paper is not included here. ``GeneratorLoss`` and ``DiscriminatorLoss`` apply it as
    a weight.

    ``vanilla`` expects logits, not probabilities: build the discriminator with ``use_sigmoid=False``. NVIDIA's
    ``--no_lsgan`` expects probabilities, but its discriminator omits the sigmoid when it returns features. Its
    ``nn.BCELoss`` then receives logits and fails outside [0, 1].

    Args:
        use_lsgan: NVIDIA's argument: True selects ``lsgan``, False selects ``vanilla``. A string is interpreted as
            SPADE's ``gan_mode``.
        target_real_label: Label of real predictions in ``lsgan`` and ``vanilla``.
        target_fake_label: Label of fake predictions in ``lsgan`` and ``vanilla``.
        tensor: Ignored; accepted for compatibility. Labels use the dtype and device of the predictions.
        opt: Ignored; accepted for compatibility.
        mode: One of the modes above. Overrides ``use_lsgan``. Cannot be combined with ``gan_mode``.
        gan_mode: SPADE's mode name: ``ls``, ``original``, ``hinge`` or ``w``. ``reduction`` then defaults to
            ``"mean"``, and a list of tensors is a list over scales, as in SPADE.
        reduction: Reduction over scales: ``"sum"`` (pix2pixHD, the default) or ``"mean"`` (SPADE). Each scale is
            averaged.

    Raises:
        ValueError: If the mode or reduction is unknown, or both ``mode`` and ``gan_mode`` are given.

    Example:
        >>> import torch
        >>> from pix2pixhd.losses import GANLoss
        >>> criterion = GANLoss(use_lsgan=True, tensor=torch.FloatTensor)
        >>> pred_fake = [[torch.zeros(1, 64, 9, 9), torch.zeros(1, 1, 8, 8)], [torch.ones(1, 1, 4, 4)]]
        >>> criterion(pred_fake, True)
        tensor(1.)
    """

    def __init__(
        self,
        use_lsgan: bool | str = True,
        target_real_label: float = 1.0,
        target_fake_label: float = 0.0,
        tensor: Any = None,
        opt: Any = None,
        *,
        mode: GANMode | None = None,
        gan_mode: str | None = None,
        reduction: Reduction | None = None,
    ) -> None:
        super().__init__()
        if isinstance(use_lsgan, str):
            gan_mode = use_lsgan
        if gan_mode is not None and gan_mode not in _SPADE_NAMES:
            hint = f"; for pix2pixHD's meaning write mode={gan_mode!r}" if gan_mode in get_args(GANMode) else ""
            raise ValueError(f"gan_mode must be one of {', '.join(_SPADE_NAMES)}, got {gan_mode!r}{hint}")
        if gan_mode is not None and mode is not None:
            raise ValueError(f"give either mode or gan_mode (SPADE's name), got mode={mode!r} and {gan_mode!r}")
        if mode is not None and mode not in get_args(GANMode):
            raise ValueError(f"mode must be one of {', '.join(get_args(GANMode))}, got {mode!r}")
        if reduction is not None and reduction not in get_args(Reduction):
            raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}")
        spade = gan_mode is not None
        self.mode: GANMode = mode or (_SPADE_NAMES[gan_mode] if gan_mode else "lsgan" if use_lsgan else "vanilla")
        self.reduction: Reduction = reduction or ("mean" if spade else "sum")
        self.flat_list_of = "scales" if spade else "layers"
        self.real_label = one_number("target_real_label", target_real_label)
        self.fake_label = one_number("target_fake_label", target_fake_label)

    def forward(self, input: Prediction, target_is_real: bool, for_discriminator: bool = True) -> Tensor:
        """Computes the loss.

        Args:
            input: Discriminator output: a list over scales of lists over layers whose last entry is the prediction, a
                single list over layers, or a tensor. Supported dtypes: float32, float64, float16 and bfloat16.
            target_is_real: Target label: True for real images, and for generated images in the generator's loss.
            for_discriminator: SPADE's argument: False selects the generator's hinge loss. Other modes ignore it.

        Returns:
            A scalar.

        Raises:
            TypeError: If ``input`` has an unsupported type, or ``target_is_real`` is not a bool, 1 or 0.
            ValueError: If a list is empty, predictions are on different devices, or the generator's hinge loss is
                called with ``target_is_real=False``.
        """
        return self.weighted(as_scales("input", input, self.flat_list_of), target_is_real, for_discriminator, 1.0)

    def weighted(self, scales: Scales, target_is_real: bool, for_discriminator: bool, weight: Number) -> Tensor:
        """Computes ``weight`` times the loss of a normalized prediction, inside the operator call."""
        preds = [layers[-1] for layers in scales]
        each = weight / len(preds) if self.reduction == "mean" else weight
        weights = [each] * len(preds)
        target_is_real = flag("target_is_real", target_is_real)  # some scripts pass 1 and 0
        if self.mode in ("lsgan", "vanilla"):
            against_label = lsgan_loss if self.mode == "lsgan" else logistic_loss
            return against_label(preds, self.real_label if target_is_real else self.fake_label, weights)
        if self.mode == "wgan":
            return mean_loss(preds, [-each if target_is_real else each] * len(preds))
        if for_discriminator:
            return hinge_loss(preds, target_is_real, weights)
        if not target_is_real:
            raise ValueError(
                "target_is_real must be True for the generator's hinge loss (for_discriminator=False), which "
                "increases the predictions for generated images"
            )
        return mean_loss(preds, [-each] * len(preds))

    def extra_repr(self) -> str:
        """Formats the mode and reduction for ``repr``."""
        return f"mode={self.mode!r}, reduction={self.reduction!r}"
