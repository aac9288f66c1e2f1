"""Looks to choose from: an encoder's features of all training instances, clustered class by class.

As ``encode_features.py`` of NVIDIA's code (arXiv 1711.11585, section 3.4), with the class of an instance read from the
label map instead of from its id.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import random
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pix2pixhd.data import InputError, PairedDataset, Sample, check_pairs, find_pairs
from pix2pixhd.training.checkpoint import Generator, load_generator
from pix2pixhd.training.padding import encode_padded

__all__ = ["FeatureClusters", "cluster_features", "encode_picture", "main"]

_Array = NDArray[np.float32]

# Smaller instances say little of how a class looks: NVIDIA's bound, a share of the picture.
_LEAST_AREA = 1 / 64


@torch.inference_mode()
def encode_picture(generator: Generator, sample: Sample) -> Tensor:
    """The encoder's features ``[F, H, W]`` of a sample's picture.

    Raises:
        InputError: If the generator has no encoder.
    """
    if generator.encoder is None:
        raise InputError("this checkpoint has no encoder (model.instance_feat), so there are no features to take")
    device = next(generator.encoder.parameters()).device
    region = generator.model.region(sample)[None].to(device)
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


def _instances(sample: Sample, generator: Generator) -> _Instances:
    region = generator.model.region(sample).numpy()
    _, pixels, number, sizes = np.unique(region, return_index=True, return_inverse=True, return_counts=True)
    classes = sample["input"].numpy() if generator.data.label_nc else np.zeros_like(region)
    return _Instances(classes.reshape(-1)[pixels], sizes, pixels, number.reshape(region.shape))


@dataclasses.dataclass(frozen=True)
class FeatureClusters:
    """The looks that a class may have.

    Attributes:
        centers: Per class ``[K, F]``: K looks of F features.

    Example:
        >>> clusters = FeatureClusters({0: np.zeros((1, 3), dtype=np.float32)})
    """

    centers: Mapping[int, _Array]

    def save(self, path: pathlib.Path) -> None:
        """Writes an ``.npz`` file with an array ``class_N`` per class.

        Raises:
            InputError: If it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                arrays: dict[str, Any] = {f"class_{label}": center for label, center in self.centers.items()}
                np.savez(file, **arrays)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error}); choose another file") from None

    @classmethod
    def load(cls, path: pathlib.Path) -> FeatureClusters:
        """Reads what ``save`` wrote; runs no code.

        Raises:
            InputError: If the file is missing or something else.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                centers = {int(name.removeprefix("class_")): arrays[name] for name in arrays.files}
        except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
            raise InputError(
                f"--features: {path} is not what `pix2pixhd features` writes ({error}); make it anew"
            ) from None
        return cls(centers)

    def draw(self, sample: Sample, generator: Generator, seed: str) -> Tensor:
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


def _collect(generator: Generator, dataset: PairedDataset) -> dict[int, list[tuple[float, _Array]]]:
    """Per class the area (as a share of the picture) and features of all its instances."""
    found: dict[int, list[tuple[float, _Array]]] = {}
    for i in range(len(dataset)):
        sample = dataset[i]
        features = encode_picture(generator, sample).float().cpu().flatten(1).numpy()
        instances = _instances(sample, generator)
        shares = instances.sizes / instances.number.size
        for label, share, pixel in zip(instances.labels.tolist(), shares.tolist(), instances.pixels, strict=True):
            found.setdefault(label, []).append((share, features[:, pixel].copy()))
    return found


def cluster_features(generator: Generator, dataset: PairedDataset, n_clusters: int = 10) -> FeatureClusters:
    """Clusters the features of a data set's instances by k-means, class by class.

    Args:
        generator: With its encoder.
        dataset: Label maps, instance maps and real pictures.
        n_clusters: Most looks per class.

    Returns:
        The clusters' centers. Instances of less than 1/64 of the picture count only in classes that have no larger one.

    Raises:
        InputError: If the generator has no encoder.

    Example:
        >>> clusters = cluster_features(load_generator("last.ckpt"), dataset)  # doctest: +SKIP
    """
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]

    centers = {}
    for label, instances in sorted(_collect(generator, dataset).items()):
        large = [look for area, look in instances if area > _LEAST_AREA] or [look for _, look in instances]
        looks = np.unique(np.stack(large), axis=0)
        kmeans = KMeans(min(n_clusters, len(looks)), random_state=0, n_init=4)
        centers[label] = kmeans.fit(looks).cluster_centers_.astype(np.float32)
    return FeatureClusters(centers)


def main(argv: Sequence[str]) -> int:
    """Runs ``pix2pixhd features``; returns the exit code.

    Raises:
        InputError: For a checkpoint or data that cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="pix2pixhd features",
        description="Clusters the looks of a data set's instances, class by class, for pix2pixhd generate --features.",
    )
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True, help="of a run with model.instance_feat")
    parser.add_argument("--dataroot", help="data set; default: the one it was trained on")
    parser.add_argument("--phase", default="train", help="prefix of the folders (default: train)")
    parser.add_argument("--n_clusters", type=int, default=10, help="most looks per class (default: 10)")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="the .npz file to write")
    options = parser.parse_args(argv)
    generator = load_generator(options.checkpoint)
    if generator.encoder is None:
        raise InputError(f"{options.checkpoint} has no encoder; it needs model.instance_feat: true in training")
    data = dataclasses.replace(generator.data, dataroot=options.dataroot or generator.data.dataroot)
    pairs = find_pairs(data, options.phase)
    check_pairs(pairs, data, generator.model.multiple, training=False)
    dataset = PairedDataset(pairs, data, generator.model.multiple, augment=False)
    clusters = cluster_features(generator, dataset, options.n_clusters)
    clusters.save(options.output)
    looks = sum(len(center) for center in clusters.centers.values())
    print(f"wrote {looks} looks of {len(clusters.centers)} classes to {options.output}")
    return 0
