import pytest

from tests.training_fixtures import command_line, data_root, full_disk, make_checkpoint, make_config, own_cache

__all__ = ["command_line", "data_root", "full_disk", "make_checkpoint", "make_config", "own_cache"]


@pytest.fixture
def three_epoch_config(make_config):
    """Makes configurations of three epochs of three batches that use every kind of checkpoint state."""

    def make(output, workers=0, accumulate=1, **trainer):
        config = make_config(output, epochs=2, nThreads=workers, val_phase="test")
        config.optimizer.niter_decay = 1
        config.optimizer.ema_decay = 0.9
        config.optimizer.accumulate = accumulate
        config.loss.pool_size = 2
        config.run.results_count = config.run.display_freq = 0
        config.trainer |= trainer
        return config

    return make
