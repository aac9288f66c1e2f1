"""The checkpoints of an epoch are written before its validation, the kept one before last.ckpt."""

import lightning.pytorch as pl
import pytest

from pix2pixhd.training.callbacks.checkpoints import CheckpointSchedule
from pix2pixhd.training.run import train

from .helpers import BatchRecorder, assert_identical, files, training_state


class Interruption(Exception):
    pass


class InValidation(pl.Callback):
    """Interrupts a run in the validation of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch:
            raise Interruption


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_killed_during_validation_has_saved_the_epoch(three_epoch_config, tmp_path, workers):
    uninterrupted, interrupted = BatchRecorder(), BatchRecorder()
    train(three_epoch_config("uninterrupted", workers), callbacks=[uninterrupted])
    for epoch in range(3):
        config = three_epoch_config("interrupted", workers)
        config.run.save_epoch_freq = 1
        with pytest.raises(Interruption):
            train(config, resume=epoch > 0, callbacks=[interrupted, InValidation(epoch)])
        assert files(tmp_path / "interrupted" / "checkpoints") == [
            *(f"epoch_000{k}.ckpt" for k in range(epoch + 1)),
            "last.ckpt",
        ]
    module = train(config, resume=True, callbacks=[interrupted])
    assert module.trainer.current_epoch == 3
    assert interrupted.seen == uninterrupted.seen
    assert_identical(training_state(tmp_path, "uninterrupted"), training_state(tmp_path, "interrupted"))


def test_the_kept_checkpoint_is_written_before_last_ckpt(three_epoch_config, tmp_path, monkeypatch):
    save = CheckpointSchedule._save

    def killed(self, trainer, name):
        if name == "last":
            raise Interruption
        save(self, trainer, name)

    monkeypatch.setattr(CheckpointSchedule, "_save", killed)
    config = three_epoch_config("run")
    config.run.save_epoch_freq, config.data.val_phase = 1, None
    with pytest.raises(Interruption):
        train(config)
    assert files(tmp_path / "run" / "checkpoints") == ["epoch_0000.ckpt"]
