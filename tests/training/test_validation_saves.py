"""The checkpoints of an epoch: before its validation, and the kept one before last.ckpt."""

import lightning.pytorch as pl
import pytest

from pix2pixhd.training.callbacks.checkpoints import CheckpointSchedule
from pix2pixhd.training.run import train

from .test_limits import Names, make, states  # noqa: F401
from .test_run import assert_identical, files


class Gone(Exception):
    pass


class InValidation(pl.Callback):
    """Ends a run in the validation of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch:
            raise Gone


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_ends_in_validation_has_saved_the_epoch(make, tmp_path, workers):  # noqa: F811
    unbroken, broken = Names(), Names()
    train(make("unbroken", workers), callbacks=[unbroken])
    for epoch in range(3):
        config = make("broken", workers)
        config.run.save_epoch_freq = 1
        with pytest.raises(Gone):
            train(config, resume=epoch > 0, callbacks=[broken, InValidation(epoch)])
        assert files(tmp_path / "broken" / "checkpoints") == [
            *(f"epoch_000{k}.ckpt" for k in range(epoch + 1)),
            "last.ckpt",
        ]
    module = train(config, resume=True, callbacks=[broken])
    assert module.trainer.current_epoch == 3
    assert broken.seen == unbroken.seen
    assert_identical(states(tmp_path, "unbroken"), states(tmp_path, "broken"))


def test_a_run_that_is_killed_before_last_ckpt_has_the_kept_one(make, tmp_path, monkeypatch):  # noqa: F811
    save = CheckpointSchedule._save

    def killed(self, trainer, name):
        if name == "last":
            raise Gone
        save(self, trainer, name)

    monkeypatch.setattr(CheckpointSchedule, "_save", killed)
    config = make("run")
    config.run.save_epoch_freq, config.data.val_phase = 1, None
    with pytest.raises(Gone):
        train(config)
    assert files(tmp_path / "run" / "checkpoints") == ["epoch_0000.ckpt"]
