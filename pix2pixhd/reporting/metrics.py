"""The figures of validation, all of them from torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import MeanAbsoluteError, Metric, MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from pix2pixhd.errors import InputError

__all__ = ["build_metrics", "update_metrics"]


class _FID(FrechetInceptionDistance):
    """FID that is NaN, with a warning, for fewer than two images, where torchmetrics raises.

    One validation image, or ``trainer.limit_val_batches: 1``, should not end a run after its first epoch.
    """

    def compute(self) -> Tensor:
        """FID of all images so far, those of other processes included."""
        images = int(self.real_features_num_samples)
        if images >= 2:
            return super().compute()
        rank_zero_warn(f"run.metrics: fid needs at least 2 validation images, got {images}; val_FID is NaN")
        return torch.tensor(torch.nan, device=self.device)


def _build(name: str) -> Metric:
    if name == "l1":
        return MeanAbsoluteError()
    if name == "psnr":
        return PeakSignalNoiseRatio(data_range=(-1.0, 1.0))
    if name == "ssim":
        return StructuralSimilarityIndexMeasure(data_range=(-1.0, 1.0))
    try:
        if name == "lpips":
            return LearnedPerceptualImagePatchSimilarity(net_type="alex")  # of pictures in [−1, 1]
        return _FID(feature=2048, normalize=True)
    except ModuleNotFoundError as error:
        package = {"lpips": "torchvision", "fid": "torch-fidelity"}[name]
        raise InputError(
            f"run.metrics: {name} needs the package {package}: pip install {package}. Or leave {name} out"
        ) from error
    except Exception as error:  # no network, a damaged download
        needed = {
            "lpips": "AlexNet's ImageNet weights, which torchvision fetches into torch.hub's folder",
            "fid": "Inception's weights, which torch-fidelity fetches into torch.hub's folder",
        }[name]
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"run.metrics: {name} needs {needed}; that failed ({reason}). Or leave {name} out") from error


def build_metrics(names: Sequence[str]) -> MetricCollection:
    """Metrics under the names ``val_L1``, ``val_PSNR``, … .

    Args:
        names: Of ``l1``, ``psnr``, ``ssim``, ``lpips`` (arXiv 1801.03924, AlexNet) and ``fid`` (arXiv 1706.08500).

    Raises:
        InputError: If pretrained weights that a metric needs cannot be had; says which and where they belong.

    Example:
        >>> sorted(build_metrics(["l1", "psnr"]))
        ['val_L1', 'val_PSNR']
    """
    return MetricCollection({name.upper(): _build(name) for name in names}, prefix="val_")


def update_metrics(metrics: MetricCollection, generated: Tensor, real: Tensor) -> None:
    """Adds a batch of images ``[N, C, H, W]`` in [−1, 1], in any floating dtype and memory format.

    LPIPS and FID see one channel three times.
    """
    # torchmetrics views tensors, which needs contiguous ones, and compares in the dtype of its inputs.
    generated, real = generated.float().clamp(-1, 1).contiguous(), real.float().contiguous()
    for metric in metrics.values():
        pair = (generated, real)
        if isinstance(metric, (FrechetInceptionDistance, LearnedPerceptualImagePatchSimilarity)):
            pair = (generated.expand(-1, 3, -1, -1), real.expand(-1, 3, -1, -1))
        if isinstance(metric, FrechetInceptionDistance):
            for pictures, is_real in zip(pair, (False, True), strict=True):
                metric.update((pictures + 1) / 2, real=is_real)
        else:
            metric.update(*pair)
