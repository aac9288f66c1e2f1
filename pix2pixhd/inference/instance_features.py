"""Instance styles: an encoder's features of all training instances, clustered per class.

This corresponds to ``encode_features.py`` of NVIDIA's code (arXiv 1711.11585, section 3.4), except that the class of an
instance is read from the label map instead of derived from its id.
"""

from __future__ import annotations

import dataclasses
import pathlib
import random
import re
import zipfile
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

__all__ = ["FeatureClusters", "cluster_features", "encode_image"]

_Array = NDArray[np.float32]

# Smaller instances are not representative of a class's appearance. The threshold, a fraction of the image, is NVIDIA's.
_MIN_AREA = 1 / 64

# Maximum size of all styles of a file; 35 classes with 10 styles of 3 features have 4 kB.
_MAX_BYTES = 2**28


NO_ENCODER = (
    "{} has no encoder; train with model.instance_feat: true, or put NVIDIA's latest_net_E.pth beside its "
    "latest_net_G.pth (with an opt.txt, or --instance_feat)"
)


@torch.inference_mode()
def encode_image(generator: LoadedGenerator, sample: Sample) -> Tensor:
    """Computes the encoder's features of a sample's image.

    Args:
        generator: A generator with an encoder.
        sample: A sample with a real image.

    Returns:
        Features ``[F, H, W]``, which are constant within each region.

    Raises:
        InputError: If the generator has no encoder.
    """
    if generator.encoder is None:
        raise InputError(NO_ENCODER.format("the checkpoint"))
    device = next(generator.encoder.parameters()).device
    region = feature_region(sample, generator.model)[None].to(device)
    image = sample["image"][None].to(device)
    return encode_padded(generator.encoder, image, region, generator.model.multiple)[0]


@dataclasses.dataclass(frozen=True)
class _Instances:
    """The instances of one image.

    Attributes:
        labels: Class of each instance.
        sizes: Number of pixels of each instance.
        pixels: Flat index of one pixel of each instance.
        number: Instance index of every pixel, ``[H, W]``.
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


def _feature_count(label: int, center: NDArray[Any]) -> int:
    """Checks the styles of a class and returns their number of features."""
    numbers = np.issubdtype(center.dtype, np.floating)
    if center.ndim != 2 or 0 in center.shape or not numbers or not np.isfinite(center).all():
        raise ValueError(
            f"class_{label} must be [styles, features] of finite floating-point numbers, got {list(center.shape)} of "
            f"{center.dtype}"
        )
    return int(center.shape[1])


@dataclasses.dataclass(frozen=True)
class FeatureClusters:
    """The available styles of every class.

    Attributes:
        centers: Cluster centers ``[K, F]`` by class: K styles with F features each.

    Example:
        >>> clusters = FeatureClusters({0: np.zeros((1, 3), dtype=np.float32)})
    """

    centers: Mapping[int, _Array]

    def save(self, path: pathlib.Path, *, force: bool = False) -> None:
        """Atomically writes an ``.npz`` file with an array ``class_N`` per class.

        Args:
            path: The file to write.
            force: Whether an existing file may be replaced.

        Raises:
            InputError: If the file cannot be written, or if it exists and may not be replaced.
        """
        arrays: dict[str, Any] = {f"class_{label}": center for label, center in self.centers.items()}
        with replacing(path, force=force) as part, part.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: pathlib.Path) -> FeatureClusters:
        """Reads a file that ``save`` wrote. Nothing is unpickled.

        Args:
            path: The ``.npz`` file.

        Raises:
            InputError: If the file is missing or has other contents.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > _MAX_BYTES:
                raise ValueError(f"its arrays have {size} bytes, more than the limit of {_MAX_BYTES}")
            with np.load(path, allow_pickle=False) as arrays:
                centers = {_label(name): arrays[name] for name in arrays.files}
            widths = {_feature_count(name, center) for name, center in centers.items()}
            if len(widths) != 1:
                raise ValueError(f"classes with {sorted(widths)} features" if widths else "it contains no classes")
        except Exception as error:  # damaged files cause errors of zipfile, zlib, numpy and memory allocation
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if "pickle" in reason:  # NumPy's message recommends unsafe loading
                reason = "it contains data other than arrays of numbers"
            raise InputError(
                f"--features: {path} is not a file of `pix2pixhd features` ({reason}); create it again"
            ) from None
        return cls({label: center.astype(np.float32) for label, center in centers.items()})

    def check(self, generator: LoadedGenerator, path: pathlib.Path) -> None:
        """Checks that the clusters match a generator.

        Args:
            generator: The generator.
            path: The file that the clusters were read from, for the message.

        Raises:
            InputError: If the number of features differs, or if there are classes that the generator does not have.
        """
        found, expected = next(iter(self.centers.values())).shape[1], generator.model.feat_num
        if found != expected:
            raise InputError(
                f"--features: {path} contains styles with {found} features, but this generator takes {expected} "
                "(model.feat_num); create it with `pix2pixhd features` from the same checkpoint"
            )
        classes = max(generator.data.label_nc, 1)
        if max(self.centers) >= classes:
            raise InputError(
                f"--features: {path} contains styles of class {max(self.centers)}, but this generator has the classes "
                f"0 to {classes - 1}; create it with `pix2pixhd features` from the same checkpoint"
            )

    def draw(self, sample: Sample, generator: LoadedGenerator, seed: str) -> Tensor:
        """Randomly selects a style for every instance from those of its class.

        A class without styles, which did not occur in training, gets the mean of all styles.

        Args:
            sample: Label map and instance map.
            generator: The generator that takes the features.
            seed: Seed of the selection. The same seed selects the same styles.

        Returns:
            Features ``[F, H, W]``.
        """
        rng = random.Random(f"looks:{seed}")  # changing the prefix would change the styles that a seed selects  # nosec B311 # a choice of styles
        instances = _instances(sample, generator)
        mean = np.concatenate(list(self.centers.values())).mean(axis=0)
        known = (self.centers.get(label) for label in instances.labels.tolist())
        styles = np.stack([mean if choices is None else choices[rng.randrange(len(choices))] for choices in known])
        return torch.from_numpy(styles[instances.number]).permute(2, 0, 1)


def _collect(
    generator: LoadedGenerator, dataset: PairedDataset, advance: Callable[[], object]
) -> dict[int, list[tuple[float, _Array]]]:
    """Collects the area (as a fraction of the image) and the features of all instances, by class."""
    found: dict[int, list[tuple[float, _Array]]] = {}
    for i in range(len(dataset)):
        sample = dataset[i]
        features = encode_image(generator, sample).float().cpu().flatten(1).numpy()
        instances = _instances(sample, generator)
        areas = instances.sizes / instances.number.size
        for label, area, pixel in zip(instances.labels.tolist(), areas.tolist(), instances.pixels, strict=True):
            found.setdefault(label, []).append((area, features[:, pixel].copy()))
        advance()
    return found


def check_cluster_count(n_clusters: int) -> None:
    """Checks the number of clusters.

    Args:
        n_clusters: Maximum number of clusters per class.

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
    """Clusters the features of a dataset's instances by k-means, separately for each class.

    Args:
        generator: A generator with an encoder.
        dataset: Label maps, instance maps and real images.
        n_clusters: Maximum number of clusters, or styles, per class.
        advance: Function to call after each image.

    Returns:
        The cluster centers. Instances smaller than 1/64 of the image are only used for classes without larger ones.

    Raises:
        InputError: If the generator has no encoder, or if ``n_clusters`` is below 1.

    Example:
        >>> clusters = cluster_features(generator, dataset)  # doctest: +SKIP
    """
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]

    check_cluster_count(n_clusters)
    centers = {}
    for label, instances in sorted(_collect(generator, dataset, advance).items()):
        large = [style for area, style in instances if area > _MIN_AREA] or [style for _, style in instances]
        styles = np.unique(np.stack(large), axis=0)
        if not np.isfinite(styles).all():
            raise InputError(f"the encoder's features of class {label} are not finite; use an earlier checkpoint")
        kmeans = KMeans(min(n_clusters, len(styles)), random_state=0, n_init=4)
        centers[label] = kmeans.fit(styles).cluster_centers_.astype(np.float32)
    return FeatureClusters(centers)
