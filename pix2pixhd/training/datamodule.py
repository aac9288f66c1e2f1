"""The Lightning data module, with data loaders that resume within an epoch."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data import DataError, EpochSampler, Pair, PairedDataset, Problem, Sample, check_pairs, find_pairs
from pix2pixhd.data.folders import check_command
from pix2pixhd.data.rules import batch_problem
from pix2pixhd.errors import InputError, dead_worker
from pix2pixhd.reporting.progress import check_progress
from pix2pixhd.training.first_process import on_first_process
from pix2pixhd.training.processes import raise_together
from pix2pixhd.training.resume import division_problem

__all__ = ["PairedData", "reporting_dead_workers"]


def _epoch(trainer: pl.Trainer) -> int:
    """Returns the epoch to load; ``trainer.current_epoch`` is one less in a checkpoint written at an epoch's end."""
    return int(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class _Failure:
    """A sample or batch that cannot be used, sent from a worker process to the main process.

    An exception would contain the worker's traceback in its message.
    """

    problems: tuple[Problem, ...]


class _FailureReporting(Dataset[Sample | _Failure]):
    """Wraps a dataset to return unusable samples as failures, which ``ResumableLoader`` raises."""

    def __init__(self, dataset: PairedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int) -> Sample | _Failure:
        try:
            return self.dataset[key]
        except DataError as error:
            return _Failure(error.problems)


def _collate(samples: list[Sample | _Failure]) -> Any:
    """Collates samples to a batch, or returns the reasons why that is not possible."""
    problems = tuple(problem for sample in samples if isinstance(sample, _Failure) for problem in sample.problems)
    if problems:
        return _Failure(problems)
    examples: dict[tuple[int, int], str] = {}
    for sample in samples:
        assert not isinstance(sample, _Failure)
        height, width = sample["input"].shape[-2:]
        examples.setdefault((width, height), sample["name"])
    problem = batch_problem(examples, len(samples))
    return default_collate(samples) if problem is None else _Failure((problem,))


@contextlib.contextmanager
def reporting_dead_workers() -> Iterator[None]:
    """Replaces the error that PyTorch raises in the main process when a worker process of a data loader dies.

    Raises:
        InputError: In place of that error.
    """
    try:
        yield
    except RuntimeError as error:
        reason = dead_worker(error)
        if reason is None:
            raise
        raise InputError(
            f"the system terminated a process that loads images ({reason}); the usual reason is "
            "too little memory or shared memory (/dev/shm): lower data.nThreads or data.batchSize"
        ) from error


def _raising(batches: Iterator[Any]) -> Iterator[Any]:
    """Yields batches; raises one error for all images of a batch that could not be read."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        if isinstance(batch, _Failure):
            raise DataError(batch.problems)
        yield batch


class ResumableLoader(DataLoader[Any]):
    """A ``DataLoader`` whose state is saved in checkpoints, to resume within an epoch.

    Lightning calls ``state_dict`` when it writes a checkpoint. The order of the images and their augmentation depend
    only on seed and epoch, so the number of finished batches determines the position.
    """

    trainer: pl.Trainer

    def __iter__(self) -> Any:
        """Yields batches.

        Raises:
            InputError: For files that cannot be used.
        """
        return _raising(super().__iter__())

    def state_dict(self) -> dict[str, Any]:
        """Returns the epoch, its number of finished batches, and the values that determine their contents."""
        loop = self.trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        batches = 0 if done >= loop.max_batches else done
        return {"epoch": _epoch(self.trainer), "batches": batches, "seed": self._order().seed, **self._division()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Skips the finished batches in the next epoch that is loaded.

        Raises:
            InputError: In the first process, if the batches of an unfinished epoch would differ.
        """
        if state["batches"]:
            division = self._division()
            path = pathlib.Path(str(self.trainer.ckpt_path))
            raise_together(division_problem(path, {name: state.get(name) for name in division}, division))
        sampler = self._order()
        sampler.set_epoch(state["epoch"])
        sampler.skip = state["batches"] * (self.batch_size or 1)

    def _order(self) -> EpochSampler:
        assert isinstance(self.sampler, EpochSampler)
        return self.sampler

    def _division(self) -> dict[str, Any]:
        """Returns the values that determine each process's batches, besides the options in the checkpoint."""
        assert isinstance(self.dataset, _FailureReporting)
        names = "\0".join(pair.name for pair in self.dataset.dataset.pairs)
        combined: Any = self.trainer.fit_loop._combined_loader
        return {
            "processes": self._order().processes,
            "images": hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest(),
            "max_batches": combined.limits[0],
        }


class PairedData(pl.LightningDataModule):
    """Training and validation images, matched and checked on construction.

    If there are several processes, the first one checks and the others wait for it.

    Args:
        options: The ``data`` section.
        multiple: Height and width must be multiples of this.
        seed: Seed of order and augmentation.

    Attributes:
        train: Training images, randomly cropped and flipped.
        val: Validation images; None without ``val_phase``.

    Raises:
        InputError: For data that cannot be used; the message names the file, the value and the remedy.

    Example:
        >>> data = PairedData(DataOptions(dataroot="datasets/cityscapes"), multiple=16)  # doctest: +SKIP
    """

    def __init__(self, options: DataOptions, multiple: int, seed: int = 0) -> None:
        super().__init__()
        self.options = options
        self.multiple = multiple
        self.seed = seed
        self._pairs: dict[str, list[Pair]] = {}
        on_first_process(self._check)
        self.train = PairedDataset(self._matched(options.phase), options, multiple, augment=True, seed=seed)
        self.val: PairedDataset | None = None
        if options.val_phase is not None:
            self.val = PairedDataset(self._matched(options.val_phase), options, multiple, augment=False)

    def _matched(self, phase: str) -> list[Pair]:
        if phase not in self._pairs:
            self._pairs[phase] = find_pairs(self.options, phase)
        return self._pairs[phase]

    def _check(self) -> None:
        """Matches the files of all phases, and decodes them unless ``check`` is off."""
        phases = [phase for phase in (self.options.phase, self.options.val_phase) if phase is not None]
        for phase in phases:
            pairs = self._matched(phase)
            if not self.options.check:
                continue
            training = phase == self.options.phase
            with check_progress(phase, len(pairs)) as on_checked:
                found = check_pairs(
                    pairs, self.options, self.multiple, training, on_checked, check_command(self.options)
                )
            for hint in found.hints(self.options) if training else []:
                print(f"hint: {hint}", file=sys.stderr)

    def _loader(self, dataset: PairedDataset, batch: int, training: bool) -> DataLoader[Sample]:
        workers = self.options.nThreads
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        shuffle = training and not self.options.serial_batches
        sampler = EpochSampler(len(dataset), shuffle, self.seed, rank, processes)
        loader = ResumableLoader(
            _FailureReporting(dataset),
            batch_size=batch,
            sampler=sampler,
            num_workers=workers,
            drop_last=training and len(sampler) >= batch,
            persistent_workers=workers > 0,
            collate_fn=_collate,
            # For the seeds of the processes that load images, which the global generator would provide otherwise. It
            # would then have another state after resuming within an epoch, which creates one more iterator.
            generator=torch.Generator(),
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )
        if self.trainer is not None:
            loader.trainer = self.trainer
            # Workers start to load when they are created, before Lightning sets the sampler's epoch.
            sampler.set_epoch(_epoch(self.trainer))
        return loader

    def train_dataloader(self) -> DataLoader[Sample]:
        """Returns shuffled batches of ``batchSize``; an incomplete last batch is dropped, unless it is the only one."""
        return self._loader(self.train, self.options.batchSize, training=True)

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """Returns single images, whose sizes may differ; an empty list without ``val_phase``."""
        return [] if self.val is None else self._loader(self.val, 1, training=False)
