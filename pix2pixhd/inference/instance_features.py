"""Looks to choose from: an encoder's features of all training instances, clustered class by class.

As ``encode_features.py`` of NVIDIA's code (arXiv 1711.11585, section 3.4), with the class of an instance read from the
label map instead of from its id.
"""

from __future__ import annotations

import dataclasses
import pathlib
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pix2pixhd.checkpoints.generators import LoadedGenerator
from pix2pixhd.data import PairedDataset, Sample
from pix2pixhd.data.encoding import feature_region
from pix2pixhd.errors import InputError
from pix2pixhd.files import replacing
from pix2pixhd.inference.padding import encode_padded

__all__ = ["FeatureClusters", "cluster_features", "encode_picture"]

_Array = NDArray[np.float32]

# Smaller instances say little of how a class looks: NVIDIA's bound, a share of the picture.
_LEAST_AREA = 1 / 64


NO_ENCODER = (
    "{} has no encoder; train with model.instance_feat: true, or put NVIDIA's latest_net_E.pth beside its "
    "latest_net_G.pth (with an opt.txt, or --instance_feat)"
)


@torch.inference_mode()
def encode_picture(generator: LoadedGenerator, sample: Sample) -> Tensor:
    """The encoder's features ``[F, H, W]`` of a sample's picture.

    Raises:
        InputError: If the generator has no encoder.
    """
    if generator.encoder is None:
        raise InputError(NO_ENCODER.format("the checkpoint"))
    device = next(generator.encoder.parameters()).device
    region = feature_region(sample, generator.model)[None].to(device)
    picture = sample["image"][None].to(device)
    return encode_padded(generator.encoder, picture, region, generator.model.multiple)[0]


@dataclasses.dataclass(frozen=True)
class _Instances:
    """The instances of one picture.

    Attributes:
        labels: The class of each.
        sizes: How many pixels each has.
        pixels: The index of one pixel of each, in the flat picture.
        number: Which one every pixel ``[H, W]`` belongs to.
    """

    labels: NDArray[Any]
    sizes: NDArray[Any]
    pixels: NDArray[Any]
    number: NDArray[Any]


def _instances(sample: Sample, generator: LoadedGenerator) -> _Instances:
    region = feature_region(sample, generator.model).numpy()
    _, pixels, number, sizes = np.unique(region, return_index=True, return_inverse=True, return_counts=True)
    classes = sample["input"].numpy() if generator.data.label_nc else np.zeros_like(region)
    return _Instances(classes.reshape(-1)[pixels], sizes, pixels, number.reshape(region.shape))


def _label(name: str) -> int:
    match = re.fullmatch(r"class_(\d+)", name)
    if match is None:
        raise ValueError(f"an array named {name!r} instead of class_N")
    return int(match[1])


def _features(label: int, center: NDArray[Any]) -> int:
    """The number of features of a class's looks."""
    numbers = np.issubdtype(center.dtype, np.floating)
    if center.ndim != 2 or 0 in center.shape or not numbers or not np.isfinite(center).all():
        raise ValueError(
            f"class_{label} must be [looks, features] of finite floating-point numbers, got {list(center.shape)} of "
            f"{center.dtype}"
        )
    return int(center.shape[1])


@dataclasses.dataclass(frozen=True)
class FeatureClusters:
    """The looks that a class may have.

    Attributes:
        centers: Per class ``[K, F]``: K looks of F features.

    Example:
        >>> clusters = FeatureClusters({0: np.zeros((1, 3), dtype=np.float32)})
    """

    centers: Mapping[int, _Array]

    def save(self, path: pathlib.Path, *, force: bool = False) -> None:
        """Writes an ``.npz`` file with an array ``class_N`` per class, whole or not at all.

        Args:
            path: The file.
            force: Whether an existing file may be replaced.

        Raises:
            InputError: If it cannot be written, or if it exists and may not be replaced.
        """
        arrays: dict[str, Any] = {f"class_{label}": center for label, center in self.centers.items()}
        with replacing(path, force=force) as part, part.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: pathlib.Path) -> FeatureClusters:
        """Reads what ``save`` wrote; runs no code.

        Raises:
            InputError: If the file is missing or something else.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                centers = {_label(name): arrays[name] for name in arrays.files}
            widths = {_features(name, center) for name, center in centers.items()}
            if len(widths) != 1:
                raise ValueError(f"classes of {sorted(widths)} features" if widths else "it holds no classes")
        except Exception as error:  # damaged files fail in many ways: zip, zlib, header, memory
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"--features: {path} is not what `pix2pixhd features` writes ({reason}); create it again"
            ) from None
        return cls({label: center.astype(np.float32) for label, center in centers.items()})

    def check(self, generator: LoadedGenerator, path: pathlib.Path) -> None:
        """Checks that the clusters are those of a generator's features.

        Args:
            generator: The generator.
            path: The file they come from, for the message.

        Raises:
            InputError: If they have another number of features, or classes that the generator does not know.
        """
        found, expected = next(iter(self.centers.values())).shape[1], generator.model.feat_num
        if found != expected:
            raise InputError(
                f"--features: {path} holds looks of {found} features, this generator takes {expected} "
                "(model.feat_num); create it with `pix2pixhd features` from the same checkpoint"
            )
        classes = max(generator.data.label_nc, 1)
        if max(self.centers) >= classes:
            raise InputError(
                f"--features: {path} holds looks of class {max(self.centers)}, this generator has the classes 0 to "
                f"{classes - 1}; create it with `pix2pixhd features` from the same checkpoint"
            )

    def draw(self, sample: Sample, generator: LoadedGenerator, seed: str) -> Tensor:
        """Features ``[F, H, W]`` of one look per instance, drawn from those of its class.

        A class that training never showed gets the mean of all looks.

        Args:
            sample: Label map and instance map.
            generator: Whose input they are.
            seed: The same seed draws the same looks.
        """
        rng = random.Random(f"looks:{seed}")
        instances = _instances(sample, generator)
        mean = np.concatenate(list(self.centers.values())).mean(axis=0)
        known = (self.centers.get(label) for label in instances.labels.tolist())
        looks = np.stack([mean if choices is None else choices[rng.randrange(len(choices))] for choices in known])
        return torch.from_numpy(looks[instances.number]).permute(2, 0, 1)


def _collect(
    generator: LoadedGenerator, dataset: PairedDataset, advance: Callable[[], object]
) -> dict[int, list[tuple[float, _Array]]]:
    """Per class the area (as a share of the picture) and features of all its instances."""
    found: dict[int, list[tuple[float, _Array]]] = {}
    for i in range(len(dataset)):
        sample = dataset[i]
        features = encode_picture(generator, sample).float().cpu().flatten(1).numpy()
        instances = _instances(sample, generator)
        shares = instances.sizes / instances.number.size
        for label, share, pixel in zip(instances.labels.tolist(), shares.tolist(), instances.pixels, strict=True):
            found.setdefault(label, []).append((share, features[:, pixel].copy()))
        advance()
    return found


def check_cluster_count(n_clusters: int) -> None:
    """Refuses fewer than one cluster.

    Args:
        n_clusters: Largest number of clusters per class.

    Raises:
        InputError: If it is below 1.
    """
    if n_clusters < 1:
        raise InputError(f"--n_clusters must be at least 1, got {n_clusters}")


def cluster_features(
    generator: LoadedGenerator,
    dataset: PairedDataset,
    n_clusters: int = 10,
    advance: Callable[[], object] = lambda: None,
) -> FeatureClusters:
    """Clusters the features of a data set's instances by k-means, class by class.

    Args:
        generator: With its encoder.
        dataset: Label maps, instance maps and real pictures.
        n_clusters: Most looks per class.
        advance: Called after each image.

    Returns:
        The clusters' centers. Instances of less than 1/64 of the picture count only in classes that have no larger one.

    Raises:
        InputError: If the generator has no encoder, or for less than one cluster.

    Example:
        >>> clusters = cluster_features(generator, dataset)  # doctest: +SKIP
    """
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]

    check_cluster_count(n_clusters)
    centers = {}
    for label, instances in sorted(_collect(generator, dataset, advance).items()):
        large = [look for area, look in instances if area > _LEAST_AREA] or [look for _, look in instances]
        looks = np.unique(np.stack(large), axis=0)
        if not np.isfinite(looks).all():
            raise InputError(f"the encoder's features of class {label} are not finite; use an earlier checkpoint")
        kmeans = KMeans(min(n_clusters, len(looks)), random_state=0, n_init=4)
        centers[label] = kmeans.fit(looks).cluster_centers_.astype(np.float32)
    return FeatureClusters(centers)
