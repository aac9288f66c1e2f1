"""Image metrics of validation and of the results page, computed with torchmetrics and ``pix2pixhd.losses.LPIPS``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, Metric, MetricCollection
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.image.fid import FrechetInceptionDistance

from pix2pixhd.errors import InputError
from pix2pixhd.losses import LPIPS
from pix2pixhd.losses.perceptual_inputs import ImageSizeError
from pix2pixhd.models.weights import download_weights

__all__ = ["IMAGE_METRICS", "build_metrics", "image_metrics", "update_metrics"]

# Names of the metrics of a single image, in the order in which the results page shows them.
IMAGE_METRICS = ("L1", "PSNR", "SSIM")

_DATA_RANGE = (-1.0, 1.0)
_SSIM_WINDOW = 11


class _FID(FrechetInceptionDistance):
    """FID that returns NaN with a warning for fewer than two images; torchmetrics raises an error.

    A single validation image, or ``trainer.limit_val_batches: 1``, should not stop a run after its first epoch.

    Args:
        feature: Number of Inception's features, or a network.
        **options: See torchmetrics.
    """

    def __init__(self, feature: int | torch.nn.Module = 2048, **options: Any) -> None:
        if isinstance(feature, int):
            # torch-fidelity would download the weights without checking their hash, and execute code in the file.
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

            download_weights(URL_INCEPTION_V3)
        super().__init__(feature=feature, **options)

    def compute(self) -> Tensor:
        """Computes the FID of all images of all processes."""
        from lightning.pytorch.utilities import rank_zero_warn  # slow to import, and not needed by `generate`

        images = int(self.real_features_num_samples)
        if images >= 2:
            return super().compute()
        rank_zero_warn(f"run.metrics: fid needs at least 2 validation images, got {images}; val_FID is NaN")
        return torch.tensor(torch.nan, device=self.device)


class _LPIPS(Metric):
    """Mean LPIPS of images, computed in float32 in every precision of the trainer.

    Args:
        trunk: Weights of AlexNet, see ``LPIPS``.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    distances: Tensor
    images: Tensor

    def __init__(self, trunk: str | torch.nn.Module = "imagenet") -> None:
        super().__init__()
        self.net = LPIPS(net="alex", trunk=trunk, dtype=torch.float32)
        self.add_state("distances", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, generated: Tensor, real: Tensor) -> None:
        """Adds a batch of images in [−1, 1]."""
        try:
            self.distances += self.net(generated, real).sum()
        except ImageSizeError as error:
            size = "x".join(map(str, generated.shape[2:]))
            raise InputError(
                f"run.metrics: lpips needs images of at least 31x31, got {size}; use larger images, or remove lpips"
            ) from error
        self.images += len(generated)

    def compute(self) -> Tensor:
        """Computes the mean over all images of all processes."""
        return self.distances / self.images

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> torch.nn.Module:
        """Moves the network without converting it, for example to bfloat16 with ``trainer.precision: bf16-true``."""
        return super()._apply(lambda x: x.to(fn(x).device), *args, **kwargs)


def _build(name: str) -> Metric:
    if name == "l1":
        return MeanAbsoluteError()
    if name == "psnr":
        return PeakSignalNoiseRatio(data_range=_DATA_RANGE)
    if name == "ssim":
        return StructuralSimilarityIndexMeasure(data_range=_DATA_RANGE)
    try:
        if name == "lpips":
            return _LPIPS()
        return _FID(feature=2048, normalize=True)
    except ModuleNotFoundError as error:
        package = {"lpips": "torchvision", "fid": "torch-fidelity"}[name]
        raise InputError(
            f"run.metrics: {name} needs the package {package}; install it (pip install {package}), or remove {name}"
        ) from error
    except Exception as error:  # no network, a damaged download
        needed = {
            "lpips": "AlexNet's ImageNet weights, which torchvision downloads to torch.hub's folder",
            "fid": "Inception's weights, which torch-fidelity downloads to torch.hub's folder",
        }[name]
        # Of the message of missing ImageNet weights, its last line names an argument of LPIPS.
        lines = str(error).partition("\nor pass")[0].splitlines() if name == "lpips" else str(error).splitlines()[:1]
        reason = "; ".join(filter(None, ["".join(lines[:1]), " ".join(map(str.strip, lines[1:]))]))
        reason = reason or type(error).__name__
        raise InputError(
            f"run.metrics: {name} needs {needed}, which failed ({reason}); fix this, or remove {name}"
        ) from error


def build_metrics(names: Sequence[str]) -> MetricCollection:
    """Builds validation metrics with the names ``val_L1``, ``val_PSNR``, and so on.

    Args:
        names: Any of ``l1``, ``psnr``, ``ssim``, ``lpips`` (arXiv 1801.03924, AlexNet) and ``fid`` (arXiv 1706.08500).

    Returns:
        The collection of metrics, for ``update_metrics``.

    Raises:
        InputError: If a metric's pretrained weights are not available. The message names them and their source.

    Example:
        >>> sorted(build_metrics(["l1", "psnr"]))
        ['val_L1', 'val_PSNR']
    """
    return MetricCollection({name.upper(): _build(name) for name in names}, prefix="val_")


def update_metrics(metrics: MetricCollection, generated: Tensor, real: Tensor) -> None:
    """Adds a batch of images to the metrics.

    For LPIPS and FID, a single channel is repeated three times.

    Args:
        metrics: From ``build_metrics``.
        generated: Generated images ``[N, C, H, W]`` in [−1, 1], of any floating-point dtype and memory format.
        real: Real images, likewise.
    """
    # torchmetrics calls `view`, which requires contiguous tensors, and computes in the dtype of its inputs.
    generated, real = generated.float().clamp(-1, 1).contiguous(), real.float().contiguous()
    for metric in metrics.values():
        pair = (generated, real)
        if isinstance(metric, FrechetInceptionDistance):
            pair = (generated.expand(-1, 3, -1, -1), real.expand(-1, 3, -1, -1))
            for images, is_real in zip(pair, (False, True), strict=True):
                metric.update((images + 1) / 2, real=is_real)
        else:
            metric.update(*pair)


def image_metrics(generated: Tensor, real: Tensor) -> dict[str, float]:
    """Computes L1, PSNR and SSIM of one image.

    Args:
        generated: The generated image ``[C, H, W]`` in [−1, 1].
        real: The real image, likewise.

    Returns:
        The metrics by name. SSIM is left out if the image is smaller than its window.

    Example:
        >>> image_metrics(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))["L1"]
        0.0
    """
    generated, real = generated[None].float().clamp(-1, 1), real[None].float()
    values = {"L1": float((generated - real).abs().mean())}
    values["PSNR"] = float(peak_signal_noise_ratio(generated, real, data_range=_DATA_RANGE))
    if min(real.shape[-2:]) >= _SSIM_WINDOW:
        similarity: Any = structural_similarity_index_measure(generated, real, data_range=_DATA_RANGE)
        values["SSIM"] = float(similarity)
    return values
