"""Data loaders for Lightning."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from pix2pixhd.data import DataOptions, EpochSampler, Pair, PairedDataset, Sample, check_pairs, find_pairs

__all__ = ["PairedData"]


class PairedData(pl.LightningDataModule):
    """Pictures to train on and pictures to validate on, found and checked when this is made.

    Args:
        options: The ``data`` section.
        multiple: What the generator needs of height and width.
        seed: Seed of order and augmentation.

    Attributes:
        train: Pictures to train on, cropped and flipped at random.
        val: Pictures to validate on; None without ``val_phase``.

    Raises:
        InputError: For data that cannot be trained on; names file, value and remedy.

    Example:
        >>> data = PairedData(DataOptions(dataroot="datasets/cityscapes"), multiple=16)  # doctest: +SKIP
    """

    def __init__(self, options: DataOptions, multiple: int, seed: int = 0) -> None:
        super().__init__()
        self.options = options
        self.multiple = multiple
        self.seed = seed
        pairs = self._checked(options.phase, training=True)
        self.train = PairedDataset(pairs, options, multiple, augment=True, seed=seed)
        self.val: PairedDataset | None = None
        if options.val_phase is not None:
            self.val = PairedDataset(self._checked(options.val_phase, training=False), options, multiple, augment=False)

    def _checked(self, phase: str, training: bool) -> Sequence[Pair]:
        pairs = find_pairs(self.options, phase)
        check_pairs(pairs, self.options, self.multiple, training)
        return pairs

    def _loader(self, dataset: PairedDataset, batch: int, shuffle: bool) -> DataLoader[Sample]:
        workers = self.options.nThreads
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EpochSampler(len(dataset), shuffle, self.seed, rank, processes)
        return DataLoader(
            dataset,
            batch_size=batch,
            sampler=sampler,
            num_workers=workers,
            drop_last=shuffle and len(sampler) >= batch,
            persistent_workers=workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled batches of ``batchSize``; the rest that fills no batch waits for the next epoch's order."""
        return self._loader(self.train, self.options.batchSize, shuffle=True)

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """Single pictures, whose sizes may differ; nothing without ``val_phase``."""
        return [] if self.val is None else self._loader(self.val, 1, shuffle=False)
