"""Data loaders for Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from pix2pixhd.data import (
    DataOptions,
    EpochSampler,
    Pair,
    PairedDataset,
    Sample,
    check_pairs,
    checking,
    find_pairs,
)

__all__ = ["PairedData"]


def _epoch(trainer: pl.Trainer) -> int:
    """The epoch to read; ``trainer.current_epoch`` is one behind in a checkpoint written at an epoch's end."""
    return int(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]


class ResumableLoader(DataLoader[Sample]):
    """A ``DataLoader`` that a checkpoint written within an epoch can tell where to go on.

    Lightning asks for ``state_dict`` when it writes a checkpoint. Which pictures come, and how they are augmented,
    depends on seed and epoch alone, so the number of batches that were trained on says all.
    """

    trainer: pl.Trainer

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many of its batches have been trained on."""
        loop = self.trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        return {"epoch": _epoch(self.trainer), "batches": 0 if done >= loop.max_batches else done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Leaves out the batches that were trained on, in the next epoch that is read."""
        assert isinstance(self.sampler, EpochSampler)
        self.sampler.set_epoch(state["epoch"])
        self.sampler.skip = state["batches"] * (self.batch_size or 1)


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
        with checking(phase, len(pairs), quiet=getattr(rank_zero_only, "rank", 0) != 0) as on_checked:
            check_pairs(pairs, self.options, self.multiple, training, on_checked)
        return pairs

    def _loader(self, dataset: PairedDataset, batch: int, training: bool) -> DataLoader[Sample]:
        workers = self.options.nThreads
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        shuffle = training and not self.options.serial_batches
        sampler = EpochSampler(len(dataset), shuffle, self.seed, rank, processes)
        loader = ResumableLoader(
            dataset,
            batch_size=batch,
            sampler=sampler,
            num_workers=workers,
            drop_last=training and len(sampler) >= batch,
            persistent_workers=workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )
        if self.trainer is not None:
            loader.trainer = self.trainer
            # Workers begin to read when they are made, before Lightning tells the sampler the epoch.
            sampler.set_epoch(_epoch(self.trainer))
        return loader

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled batches of ``batchSize``; the rest that fills no batch waits for the next epoch's order."""
        return self._loader(self.train, self.options.batchSize, training=True)

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """Single pictures, whose sizes may differ; nothing without ``val_phase``."""
        return [] if self.val is None else self._loader(self.val, 1, training=False)
