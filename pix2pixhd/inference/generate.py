"""``pix2pixhd generate``: generates an image for every label map or image of a folder."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pix2pixhd.checkpoints.generators import LoadedGenerator
from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data import (
    Pair,
    PairedDataset,
    Sample,
    check_pairs,
    encode_input,
    find_inputs,
    input_folders,
    list_images,
    save_image,
)
from pix2pixhd.data.images import image_path
from pix2pixhd.data.problems import Problem, display, raise_problems
from pix2pixhd.errors import InputError
from pix2pixhd.files import check_apart, check_inside, check_replaceable, check_writable
from pix2pixhd.inference.instance_features import FeatureClusters, encode_image
from pix2pixhd.inference.padding import generate_padded
from pix2pixhd.reporting.metrics import image_metrics
from pix2pixhd.reporting.progress import progress_bar
from pix2pixhd.reporting.results_page import page_files, shown_input, write_page

__all__ = ["StyleSource", "generate_folder", "generate_image"]


@torch.inference_mode()
def generate_image(
    generator: LoadedGenerator, input: Tensor, instance: Tensor | None = None, features: Tensor | None = None
) -> Tensor:
    """Generates an image, or a batch of images.

    Args:
        generator: The generator, from ``load_generator``.
        input: Label ids ``[H, W]`` or an image ``[C, H, W]`` in [−1, 1], of any size. A batch has one more dimension.
        instance: Instance ids ``[H, W]``, if the generator was trained with them.
        features: Style features ``[F, H, W]``, if the generator was trained with an encoder.

    Returns:
        The image ``[C, H, W]`` in [−1, 1], of the input's height and width; for a batch ``[N, C, H, W]``.

    Raises:
        InputError: If the generator needs features and none are given.

    Example:
        >>> image = generate_image(generator, ids)  # doctest: +SKIP
    """
    single = input.dim() == (2 if generator.data.label_nc else 3)
    device = next(generator.network.parameters()).device

    def batched(x: Tensor | None) -> Tensor | None:
        return None if x is None else (x[None] if single else x).to(device)

    inputs, given = batched(input), batched(features)
    assert inputs is not None
    condition = encode_input(inputs, batched(instance), generator.data.label_nc)
    if generator.model.has_features:
        if given is None:
            raise InputError(
                "this generator needs style features: give --features FILE (written by `pix2pixhd features`), or "
                "--encode FOLDER with images from which to extract them"
            )
        condition = torch.cat([condition, given.to(condition)], dim=1)
    images = generate_padded(generator.network, condition, generator.model.multiple)
    return images[0] if single else images


@dataclasses.dataclass(frozen=True)
class StyleSource:
    """Source of the style features for a generator with an encoder: either ``clusters`` or ``encode``.

    Attributes:
        clusters: Styles to select from at random. The selection depends on ``seed`` and the image's name.
        encode: Folder with an image of the same name for every input, from which the features are extracted.
        seed: Seed of the random selection.
    """

    clusters: FeatureClusters | None = None
    encode: pathlib.Path | None = None
    seed: int = 0

    def of(self, sample: Sample, generator: LoadedGenerator) -> Tensor | None:
        """Returns the features ``[F, H, W]`` of one sample, or None if the generator takes no features."""
        if not generator.model.has_features:
            return None
        if self.encode is not None:
            return encode_image(generator, sample)
        return None if self.clusters is None else self.clusters.draw(sample, generator, f"{self.seed}:{sample['name']}")


def _with_images(pairs: list[Pair], folder: pathlib.Path, option: str) -> list[Pair]:
    images = list_images(folder, f"images ({option})")
    raise_problems(
        [
            Problem(
                f"no image ({option})",
                f"{option}: {pair.input} has no image {pair.name}.* in {folder}; add it",
                display(pair.input),
            )
            for pair in pairs
            if pair.name not in images
        ]
    )
    return [dataclasses.replace(pair, image=images[pair.name]) for pair in pairs]


def _batches(dataset: PairedDataset, size: int) -> Iterator[list[Sample]]:
    """Yields the samples in order, in batches of equal image size."""
    batch: list[Sample] = []
    for i in range(len(dataset)):
        sample = dataset[i]
        if batch and (len(batch) == size or sample["input"].shape != batch[0]["input"].shape):
            yield batch
            batch = []
        batch.append(sample)
    yield batch


def _generate_batch(generator: LoadedGenerator, batch: list[Sample], style: StyleSource) -> Tensor:
    features = [style.of(sample, generator) for sample in batch]
    return generate_image(
        generator,
        torch.stack([sample["input"] for sample in batch]),
        torch.stack([sample["instance"] for sample in batch]) if "instance" in batch[0] else None,
        torch.stack([x for x in features if x is not None]) if features[0] is not None else None,
    ).cpu()


def _outputs(target: pathlib.Path, pairs: list[Pair], channels: int, page: bool) -> list[pathlib.Path]:
    """Returns all files that will be written."""
    names = [pair.name for pair in pairs]
    images = [image_path(target / f"{name}.png", channels) for name in names]
    columns = ["input", "generated", *(["real"] if pairs[0].image is not None else [])]
    return images + (page_files(target, names, columns) if page else [])


def _check_outputs(
    outputs: list[pathlib.Path], target: pathlib.Path, inputs: Mapping[str, list[pathlib.Path | None]], force: bool
) -> None:
    """Checks that all files are in the folder, that no input and no other program's file would be replaced."""
    check_inside(outputs, target)
    check_apart(outputs, inputs)
    twice = [path for path, count in collections.Counter(outputs).items() if count > 1]
    if twice:
        raise InputError(f"--output: two images would be written to {twice[0]}; rename one of the inputs")
    check_replaceable(outputs, force)


def generate_folder(
    generator: LoadedGenerator,
    source: pathlib.Path,
    target: pathlib.Path,
    instances: pathlib.Path | None = None,
    keep_size: bool = False,
    *,
    batch: int = 1,
    how_many: int | None = None,
    style: StyleSource | None = None,
    real: pathlib.Path | None = None,
    page: bool = False,
    force: bool = False,
    files_read: Sequence[pathlib.Path] = (),
    progress: bool = False,
) -> list[pathlib.Path]:
    """Generates a PNG of the same name for every label map or image of a folder.

    Inputs are scaled as in training (``resize_or_crop`` without its crop), so that objects have the scale of the
    training images. Each file is written atomically.

    Args:
        generator: The generator, from ``load_generator``.
        source: Folder of label maps or images, or the root of a dataset with ``test_label`` or ``test_A``.
        target: Folder for the generated images. It must not be or lie inside a folder that is read.
        instances: Folder of instance maps. None uses the folder beside ``source``.
        keep_size: Whether to keep the size of the inputs instead of scaling them.
        batch: Maximum batch size. Only images of equal size share a batch.
        how_many: Maximum number of images to generate. None generates all of them.
        style: Source of the style features, for a generator with an encoder.
        real: Folder of real images, for the results page and its metrics.
        page: Whether to write a results page, ``target/index.html``.
        force: Whether files that this package did not write may be replaced.
        files_read: Other files that must not be overwritten, for example the checkpoint.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The paths of the images.

    Raises:
        InputError: If a folder or file cannot be used. The message names the file, the value and the remedy.

    Example:
        >>> files = generate_folder(generator, pathlib.Path("test_label"), pathlib.Path("out"))  # doctest: +SKIP
    """
    style = style or StyleSource()
    if not source.is_dir():
        if source.exists():
            raise InputError(f"--input: {source} is a file; give the folder that contains it")
        raise InputError(f"--input: there is no folder {source}")
    data = dataclasses.replace(generator.data, resize_or_crop="crop") if keep_size else generator.data
    read: dict[str, list[pathlib.Path | None]] = {
        "--input": [source],
        "--instances": [instances, input_folders(source, data, instances)[1]],  # by default the folder beside the input
        "--encode": [style.encode],
        "--real": [real],
    }
    check_apart([target], read)
    pairs = find_inputs(source, data, instances)[:how_many]
    if style.encode is not None:
        pairs = _with_images(pairs, style.encode, "--encode")
    elif real is not None:
        pairs = _with_images(pairs, real, "--real")
    read["input"] = [path for pair in pairs for path in (pair.input, pair.instance, pair.image)]
    read["checkpoint and features"] = list(files_read)
    _check_outputs(_outputs(target, pairs, data.output_nc, page), target, read, force)
    check_writable(target, "--output")
    with progress_bar("checking", len(pairs), progress) as advance:
        check_pairs(pairs, data, generator.model.multiple, training=False, on_checked=advance, trained=True)
    dataset = PairedDataset(pairs, data, generator.model.multiple, augment=False)
    written: list[pathlib.Path] = []

    def generated() -> Iterator[tuple[Sample, Tensor]]:
        with progress_bar("generating", len(pairs), progress) as advance:
            for samples in _batches(dataset, batch):
                for sample, image in zip(samples, _generate_batch(generator, samples, style), strict=True):
                    written.append(save_image(image, target / f"{sample['name']}.png", force=force))
                    advance()
                    yield sample, image

    if page:
        rows = (_page_row(sample, image, data) for sample, image in generated())
        write_page(target, f"generated from {source}", rows, force=force)
    else:
        for _ in generated():
            pass
    return written


def _page_row(sample: Sample, generated: Tensor, data: DataOptions) -> tuple[str, dict[str, Tensor], dict[str, float]]:
    """Returns the name, the images and, if there is a real image, the metrics of one row of the results page."""
    images = {"input": shown_input(sample, data), "generated": generated}
    if "image" not in sample:
        return sample["name"], images, {}
    return sample["name"], images | {"real": sample["image"]}, image_metrics(generated, sample["image"])
