"""Build a dataset of image pairs from a folder of photographs: contours as input, the photograph as target.

    python examples/photos_to_pairs.py photos/ datasets/contours [--size 256] [--held-out 4]

Writes train_A/, train_B/, test_A/ and test_B/, the layout that `pix2pixhd train --config pairs` reads. Replace
`contours` by what your input is: a sketch, a depth map, another modality.
"""

from __future__ import annotations

import argparse
import pathlib

from PIL import Image, ImageFilter, ImageOps

EXTENSIONS = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}


def contours(photograph: Image.Image) -> Image.Image:
    """Dark lines on white, where the brightness changes."""
    smooth = ImageOps.grayscale(photograph).filter(ImageFilter.GaussianBlur(1))
    edges = ImageOps.autocontrast(smooth.filter(ImageFilter.FIND_EDGES))
    return ImageOps.invert(edges).convert("RGB")


def build(photographs: pathlib.Path, dataset: pathlib.Path, size: int, held_out: int) -> int:
    """Writes the pairs and returns their number. Every image is scaled and cropped to a square."""
    paths = sorted(path for path in photographs.iterdir() if path.suffix.lower() in EXTENSIONS)
    if len(paths) <= held_out:
        raise SystemExit(f"{photographs} holds {len(paths)} photographs; more than --held-out {held_out} are needed")
    for index, path in enumerate(paths):
        phase = "test" if index < held_out else "train"
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file).convert("RGB")
        photograph = ImageOps.fit(upright, (size, size))
        for side, image in (("A", contours(photograph)), ("B", photograph)):
            folder = dataset / f"{phase}_{side}"
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{path.stem}.png")
    return len(paths)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=pathlib.Path)
    parser.add_argument("dataset", type=pathlib.Path)
    parser.add_argument("--size", type=int, default=256, help="height and width of the images")
    parser.add_argument("--held-out", type=int, default=4, help="photographs for validation and testing")
    options = parser.parse_args()
    print(f"wrote {build(options.photographs, options.dataset, options.size, options.held_out)} pairs")
