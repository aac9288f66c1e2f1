"""A dataset of label maps and images, made from photographs shipped with scikit-image.

Each photograph is smoothed into flat patches, which are clustered by colour and texture. A class is, for example, the
cat's fur or the dark wood; an instance is a connected component of a class. One column of every photograph is held out
for evaluation.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.cluster.vq import kmeans2, vq  # type: ignore[import-untyped]
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]
from skimage import color, data, filters, measure, restoration

from pix2pixhd.data.images import save_png

__all__ = ["COLUMN", "CROP", "LABEL_NC", "write_demo_data"]

_HEIGHT = 320
COLUMN = 160  # width of the held-out column, and size of the crops from it
CROP = 144
_CLASSES_PER_PHOTOGRAPH = 10
_NEIGHBOURHOOD = np.hypot(*np.mgrid[-2:3, -2:3]) <= 2  # disc of the majority filter, which removes isolated pixels


@dataclasses.dataclass(frozen=True)
class _Photograph:
    """A photograph in scikit-image's wheel, and the left edge of its held-out column as a fraction of the width."""

    name: str
    held_out: float


_PHOTOGRAPHS = (
    _Photograph("chelsea", 0.42),
    _Photograph("astronaut", 0.5),
    _Photograph("coffee", 0.34),
    _Photograph("stereo_motorcycle", 0.3),
)

LABEL_NC = len(_PHOTOGRAPHS) * _CLASSES_PER_PHOTOGRAPH


def _load(photograph: _Photograph) -> NDArray[np.uint8]:
    pixels = getattr(data, photograph.name)()
    image = Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels)
    width = round(image.width * _HEIGHT / image.height)
    return np.asarray(image.resize((width, _HEIGHT), Image.Resampling.LANCZOS))


def _segment(image: NDArray[np.uint8], seed: int) -> NDArray[np.int64]:
    """Segments an image into class ids ``[H, W]``, from 0 in order of decreasing area."""
    # Total-variation denoising produces flat patches with the outlines of objects, so the clusters of their colours are
    # parts of objects instead of fine texture.
    flat = restoration.denoise_tv_chambolle(image / 255.0, weight=0.06, channel_axis=-1)  # type: ignore[no-untyped-call]
    lab = color.rgb2lab(flat)
    lightness = color.rgb2lab(image)[..., 0]
    contrast = np.sqrt(np.maximum(gaussian_filter(lightness**2, 3) - gaussian_filter(lightness, 3) ** 2, 0))
    features = np.concatenate([lab * [1.0, 1.5, 1.5], contrast[..., None] * 0.7], axis=-1).reshape(-1, 4)
    rng = np.random.default_rng(seed)
    centres, _ = kmeans2(rng.permutation(features)[:5000], _CLASSES_PER_PHOTOGRAPH, minit="++", rng=rng)
    classes, _ = vq(features, centres)
    specked = classes.reshape(lightness.shape).astype(np.uint8)
    label = filters.rank.majority(specked, _NEIGHBOURHOOD)  # type: ignore[no-untyped-call]
    order = np.argsort(-np.bincount(label.ravel(), minlength=_CLASSES_PER_PHOTOGRAPH))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return np.asarray(rank[label], dtype=np.int64)


def _save(folder: pathlib.Path, name: str, pixels: NDArray[np.generic]) -> None:
    save_png(Image.fromarray(np.ascontiguousarray(pixels)), folder / f"{name}.png")


def _training_crops(width: int, left: int, count: int, rng: np.random.Generator) -> list[tuple[slice, slice]]:
    """Selects random squares to the left and right of the held-out column, which do not overlap it."""
    sides = [(0, left), (left + COLUMN, width)]
    rooms = [(start, stop - CROP) for start, stop in sides if stop - start >= CROP]
    weights = np.array([stop - start + CROP // 2 for start, stop in rooms], dtype=float)
    crops = []
    for side in rng.choice(len(rooms), size=count, p=weights / weights.sum()):
        x = int(rng.integers(rooms[side][0], rooms[side][1], endpoint=True))
        y = int(rng.integers(0, _HEIGHT - CROP, endpoint=True))
        crops.append((slice(y, y + CROP), slice(x, x + CROP)))
    return crops


def write_demo_data(root: pathlib.Path, crops: int = 160, seed: int = 0) -> None:
    """Writes ``{train,test}_{label,inst,img}/`` in NVIDIA's folder layout.

    Training crops and held-out crops are from disjoint parts of the photographs.

    Args:
        root: Folder to write to.
        crops: Number of training crops of ``CROP``×``CROP`` pixels, distributed evenly over the photographs.
        seed: Seed of the clustering and the crops.

    Example:
        >>> write_demo_data(pathlib.Path("runs/demo/data"))  # doctest: +SKIP
    """
    rng = np.random.default_rng(seed)
    for k, photograph in enumerate(_PHOTOGRAPHS):
        image = _load(photograph)
        classes = _segment(image, seed)
        label = (classes + k * _CLASSES_PER_PHOTOGRAPH).astype(np.uint8)
        # Ids start at a high number to use all 16 bits of instance maps.
        pieces = measure.label(classes, background=-1, connectivity=1)  # type: ignore[no-untyped-call]
        instance = (pieces + 40000).astype(np.uint16)
        width = image.shape[1]
        left = min(round(photograph.held_out * width), width - COLUMN)
        column = slice(left, left + COLUMN)
        areas = {
            "train": _training_crops(width, left, crops // len(_PHOTOGRAPHS), rng),
            "test": [(slice(y, y + COLUMN), column) for y in range(0, _HEIGHT, COLUMN)],
        }
        for phase, squares in areas.items():
            for part, square in enumerate(squares):
                name = f"{photograph.name}_{part:03d}"
                for kind, pixels in (("label", label), ("inst", instance), ("img", image)):
                    _save(root / f"{phase}_{kind}", name, pixels[square])
