"""A label → photograph data set from the photographs that scikit-image ships.

Each photograph is cut into superpixels, and these are clustered by colour and texture: a class is "the cat's fur" or "the
dark wood", an instance a connected piece of a class. One column of every photograph is held out, so that what the
generator is judged on it has never seen.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.cluster.vq import kmeans2
from scipy.ndimage import gaussian_filter, maximum, mean
from skimage import color, data, measure, segmentation

__all__ = ["LABEL_NC", "write_demo_data"]

_HEIGHT = 320
_COLUMN = 160
_CLASSES_PER_PHOTOGRAPH = 8
_SUPERPIXELS = 700


@dataclasses.dataclass(frozen=True)
class _Photograph:
    """A photograph inside scikit-image's wheel, and the left edge of its held-out column, as a share of the width."""

    name: str
    held_out: float


_PHOTOGRAPHS = (
    _Photograph("chelsea", 0.42),
    _Photograph("astronaut", 0.5),
    _Photograph("coffee", 0.34),
    _Photograph("stereo_motorcycle", 0.3),
    _Photograph("rocket", 0.34),
)

LABEL_NC = len(_PHOTOGRAPHS) * _CLASSES_PER_PHOTOGRAPH


def _load(photograph: _Photograph) -> NDArray[np.uint8]:
    pixels = getattr(data, photograph.name)()
    picture = Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels)
    width = round(picture.width * _HEIGHT / picture.height)
    return np.asarray(picture.resize((width, _HEIGHT), Image.Resampling.LANCZOS))


def _segment(picture: NDArray[np.uint8], seed: int) -> NDArray[np.int64]:
    """Class ids ``[H, W]`` in 0 … 7, by decreasing area."""
    lab = color.rgb2lab(picture)
    pieces = segmentation.slic(picture, n_segments=_SUPERPIXELS, compactness=8.0, sigma=0.7, start_label=0)
    ids = np.arange(pieces.max() + 1)
    lightness = lab[..., 0]
    contrast = np.sqrt(np.maximum(gaussian_filter(lightness**2, 2) - gaussian_filter(lightness, 2) ** 2, 0))
    features = np.stack([*(mean(lab[..., c], pieces, ids) for c in range(3)), mean(contrast, pieces, ids)], axis=1)
    _, classes = kmeans2(features, _CLASSES_PER_PHOTOGRAPH, minit="++", rng=np.random.default_rng(seed))
    label = classes[pieces]
    order = np.argsort(-np.bincount(label.ravel(), minlength=_CLASSES_PER_PHOTOGRAPH))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return np.asarray(rank[label], dtype=np.int64)


def _save(folder: pathlib.Path, name: str, pixels: NDArray[np.generic]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{name}.png")


def write_demo_data(root: pathlib.Path, seed: int = 0) -> None:
    """Writes ``{train,test}_{label,inst,img}/`` in NVIDIA's layout.

    Args:
        root: Folder to write into.
        seed: Seed of the clustering.

    Example:
        >>> write_demo_data(pathlib.Path("runs/demo/data"))  # doctest: +SKIP
    """
    for k, photograph in enumerate(_PHOTOGRAPHS):
        picture = _load(photograph)
        classes = _segment(picture, seed)
        label = (classes + k * _CLASSES_PER_PHOTOGRAPH).astype(np.uint8)
        # Ids start high on purpose: instance maps are 16 bits wide, and these need all of them.
        instance = (measure.label(classes, background=-1, connectivity=1) + 40000).astype(np.uint16)
        width = picture.shape[1]
        left = min(round(photograph.held_out * width), width - _COLUMN)
        parts = {
            "train": [slice(0, left), slice(left + _COLUMN, width)],
            "test": [slice(left, left + _COLUMN)],
        }
        for phase, columns in parts.items():
            for side, column in enumerate(columns):
                if column.stop - column.start < 128:
                    continue
                rows = [slice(0, _HEIGHT)] if phase == "train" else [slice(0, _COLUMN), slice(_COLUMN, 2 * _COLUMN)]
                for part, row in enumerate(rows):
                    name = f"{photograph.name}_{side}{part}"
                    for kind, pixels in (("label", label), ("inst", instance), ("img", picture)):
                        _save(root / f"{phase}_{kind}", name, pixels[row, column])
