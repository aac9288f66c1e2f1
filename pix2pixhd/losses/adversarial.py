"""The adversarial loss: LSGAN, vanilla, hinge and Wasserstein, over all scales in one call."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor, nn

from pix2pixhd.config.schema.loss import GANMode
from pix2pixhd.losses.predictions import Prediction, as_scales
from pix2pixhd.ops import hinge_loss, logistic_loss, lsgan_loss, mean_loss
from pix2pixhd.ops.scalars import Number, flag, one_number

Reduction = Literal["sum", "mean"]

_SPADE_NAMES: dict[str, GANMode] = {"ls": "lsgan", "original": "vanilla", "hinge": "hinge", "w": "wgan"}


class GANLoss(nn.Module):
    """The adversarial loss of one side, with the signatures of NVIDIA's pix2pixHD and of SPADE.

    ==========  ============================================================  =====================
    mode        discriminator's loss (real; fake)                             generator's loss
    ==========  ============================================================  =====================
    lsgan       ``mean((x − 1)²)``; ``mean(x²)``  (arXiv 1611.04076)          ``mean((x − 1)²)``
    vanilla     ``BCE(sigmoid(x), 1)``; ``BCE(sigmoid(x), 0)``                ``BCE(sigmoid(x), 1)``
    hinge       ``mean(max(0, 1 − x))``; ``mean(max(0, 1 + x))``              ``−mean(x)``
    wgan        ``−mean(x)``; ``mean(x)``                                     ``−mean(x)``
    ==========  ============================================================  =====================

    The ``0.5`` of the LSGAN paper is a weight, see ``GeneratorLoss`` and ``DiscriminatorLoss``.

    ``vanilla`` takes the discriminator's raw output (logits), never probabilities: build the discriminator with
    ``use_sigmoid=False``. The original (``--no_lsgan``) means to take probabilities, but its discriminator drops the
    sigmoid whenever it returns features, so that ``nn.BCELoss`` gets raw outputs and fails outside [0, 1].

    Args:
        use_lsgan: NVIDIA's argument: True for ``lsgan``, False for ``vanilla``. A string is taken as SPADE's
            ``gan_mode``.
        target_real_label: Label of real predictions in ``lsgan`` and ``vanilla``.
        target_fake_label: Label of fake predictions in ``lsgan`` and ``vanilla``.
        tensor: Accepted for old scripts, not needed: labels follow the predictions.
        opt: Accepted for old scripts, not needed.
        mode: One of the modes above; overrides ``use_lsgan``. Not together with ``gan_mode``.
        gan_mode: SPADE's names ``ls``, ``original``, ``hinge``, ``w``. With them ``reduction`` is ``"mean"`` unless
            given, and a list of tensors is a list over scales, as in SPADE.
        reduction: ``"sum"`` (pix2pixHD, the default) or ``"mean"`` (SPADE) over scales. Within a scale it is the mean.

    Raises:
        ValueError: For an unknown mode or reduction, or both ``mode`` and ``gan_mode``.

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
            input: The discriminator's output: a list over scales of lists over layers (the last is the prediction), one
                such list, or a tensor; float32, float64, float16 or bfloat16.
            target_is_real: The label to compare with: True for real pictures, and for generated ones in the generator's
                loss.
            for_discriminator: SPADE's argument: False for the generator's hinge loss. The other modes do not differ.

        Returns:
            A scalar.

        Raises:
            TypeError: If ``input`` is none of these, or ``target_is_real`` is not a bool, 1 or 0.
            ValueError: For an empty list, predictions on several devices, or the generator's hinge loss with
                ``target_is_real=False``.
        """
        return self.weighted(input, target_is_real, for_discriminator, 1.0)

    def weighted(self, input: Prediction, target_is_real: bool, for_discriminator: bool, weight: Number) -> Tensor:
        """``weight`` times the loss, with the weight folded into the one call."""
        preds = [layers[-1] for layers in as_scales("input", input, self.flat_list_of)]
        each = weight / len(preds) if self.reduction == "mean" else weight
        weights = [each] * len(preds)
        target_is_real = flag("target_is_real", target_is_real)  # scripts pass 1 and 0 too
        if self.mode in ("lsgan", "vanilla"):
            against_label = lsgan_loss if self.mode == "lsgan" else logistic_loss
            return against_label(preds, self.real_label if target_is_real else self.fake_label, weights)
        if self.mode == "wgan":
            return mean_loss(preds, [-each if target_is_real else each] * len(preds))
        if for_discriminator:
            return hinge_loss(preds, target_is_real, weights)
        if not target_is_real:
            raise ValueError(
                "target_is_real must be True for the generator's hinge loss (for_discriminator=False): it raises "
                "the predictions of generated pictures"
            )
        return mean_loss(preds, [-each] * len(preds))

    def extra_repr(self) -> str:
        """Mode and reduction, for ``repr``."""
        return f"mode={self.mode!r}, reduction={self.reduction!r}"
