"""A run stopped by max_steps, max_time or max_epochs is saved, and resumes to the result of an uninterrupted run."""

import types

import lightning.pytorch as pl
import pytest

from pix2pixhd.config.schema import OptimizerOptions
from pix2pixhd.errors import InputError
from pix2pixhd.training import run, shutdown
from pix2pixhd.training.run import train

from .helpers import BatchRecorder, assert_identical, files, training_state


@pytest.mark.parametrize(
    ("workers", "accumulate", "limits"),
    [(1, 1, [1, 5, 6, 8]), (0, 1, [2, 3]), (0, 2, [1, 3])],  # steps; with accumulate 2 an epoch has two
)
def test_a_run_stopped_by_max_steps_resumes_bit_for_bit(three_epoch_config, tmp_path, workers, accumulate, limits):
    uninterrupted, interrupted = BatchRecorder(), BatchRecorder()
    train(three_epoch_config("uninterrupted", workers, accumulate), callbacks=[uninterrupted])
    for k, limit in enumerate(limits):
        module = train(
            three_epoch_config("interrupted", workers, accumulate, max_steps=limit),
            resume=k > 0,
            callbacks=[interrupted],
        )
        assert module.trainer.global_step == 2 * limit
        assert not module.mid_accumulation
    train(three_epoch_config("interrupted", workers, accumulate), resume=True, callbacks=[interrupted])
    assert interrupted.seen == uninterrupted.seen
    assert_identical(training_state(tmp_path, "uninterrupted"), training_state(tmp_path, "interrupted"))


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test advances."""
    clock = types.SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(run, "time", clock)
    monkeypatch.setattr(shutdown, "time", clock)
    return clock


class Tick(pl.Callback):
    """Advances the clock by a minute with every step."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.clock.now += 60


@pytest.mark.parametrize("max_time", ["00:00:02:00", {"minutes": 4}])
def test_a_run_stopped_by_max_time_resumes_bit_for_bit(three_epoch_config, tmp_path, clock, max_time):
    """Simulates consecutive jobs of a cluster with the same time limit, until the run is finished."""
    uninterrupted, interrupted = BatchRecorder(), BatchRecorder()
    train(three_epoch_config("uninterrupted"), callbacks=[uninterrupted])
    jobs = 0
    while len(interrupted.seen) < len(uninterrupted.seen):
        clock.now += 1000
        train(
            three_epoch_config("interrupted", max_time=max_time), resume=jobs > 0, callbacks=[Tick(clock), interrupted]
        )
        jobs += 1
        assert jobs <= 5
    assert jobs > 2
    assert interrupted.seen == uninterrupted.seen
    assert_identical(training_state(tmp_path, "uninterrupted"), training_state(tmp_path, "interrupted"))


def test_max_time_does_not_stop_before_min_steps(three_epoch_config, clock):
    config = three_epoch_config("run", max_time="00:00:01:00", min_steps=4)
    assert train(config, callbacks=[Tick(clock)]).trainer.global_step == 2 * 4


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stop_that_a_callback_requests_is_saved_within_the_epoch(three_epoch_config, tmp_path, accumulate):
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            trainer.should_stop = trainer.fit_loop.total_batch_idx == 3

    uninterrupted, interrupted = BatchRecorder(), BatchRecorder()
    train(three_epoch_config("uninterrupted", accumulate=accumulate), callbacks=[uninterrupted])
    train(three_epoch_config("interrupted", accumulate=accumulate), callbacks=[interrupted, Stop()])
    assert len(interrupted.seen) == 3 + accumulate
    train(three_epoch_config("interrupted", accumulate=accumulate), resume=True, callbacks=[interrupted])
    assert interrupted.seen == uninterrupted.seen
    assert_identical(training_state(tmp_path, "uninterrupted"), training_state(tmp_path, "interrupted"))


def test_raising_max_epochs_twice_reaches_the_same_weights(three_epoch_config, tmp_path):
    train(three_epoch_config("uninterrupted", workers=1))
    for epochs in (1, 2, 3):
        train(three_epoch_config("interrupted", workers=1, max_epochs=epochs), resume=epochs > 1)
    assert_identical(training_state(tmp_path, "uninterrupted"), training_state(tmp_path, "interrupted"))


def test_resuming_a_run_at_its_step_limit_does_not_train(three_epoch_config, tmp_path):
    train(three_epoch_config("run", max_steps=4))
    before = training_state(tmp_path, "run")
    assert train(three_epoch_config("run", max_steps=4), resume=True).trainer.global_step == 2 * 4
    assert_identical(before, training_state(tmp_path, "run"))


def test_save_latest_freq_counts_steps(three_epoch_config, tmp_path):
    """With accumulation, the number of batches at a step is not always a multiple of the option."""
    config = three_epoch_config("run", accumulate=2)  # two steps an epoch, after the batches 2, 3, 5, 6, 8, 9
    config.run.save_latest_freq = 3

    class Interruption(Exception):
        pass

    class Crash(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.fit_loop.total_batch_idx == 5:
                raise Interruption

    with pytest.raises(Interruption):
        train(config, callbacks=[Crash()])
    assert training_state(tmp_path, "run")["global_step"] == 2 * 3
    train(config, resume=True)
    train(three_epoch_config("uninterrupted", accumulate=2))
    assert_identical(training_state(tmp_path, "uninterrupted"), training_state(tmp_path, "run"))


def test_sample_sheets_count_steps(three_epoch_config, tmp_path):
    config = three_epoch_config("run", accumulate=2, max_steps=3)
    config.run.display_freq = 2
    train(config)
    assert files(tmp_path / "run" / "samples") == ["step_000002.png", "step_000003.png"]


@pytest.mark.parametrize("every", [1, 2])
def test_save_epoch_freq_determines_the_kept_checkpoints(three_epoch_config, tmp_path, every):
    config = three_epoch_config("run")
    config.run.save_epoch_freq = every
    train(config)
    kept = {1: ["epoch_0000.ckpt", "epoch_0001.ckpt", "epoch_0002.ckpt"], 2: ["epoch_0001.ckpt"]}[every]
    assert files(tmp_path / "run" / "checkpoints") == [*kept, "last.ckpt"]


@pytest.mark.parametrize(("niter", "niter_decay"), [(1, 0), (0, 1), (2, 3), (3, 0)])
def test_the_learning_rate_is_never_negative(niter, niter_decay):
    options = OptimizerOptions(niter=niter, niter_decay=niter_decay)
    rates = [options.rate(epoch) for epoch in range(12)]
    assert rates[:niter] == [1.0] * niter
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 0.0


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"max_epochs": 4}, r"trainer\.max_epochs must be at most optimizer\.niter .* = 3, .* got 4; raise"),
        ({"max_epochs": -1}, r"trainer\.max_epochs"),
        ({"max_steps": 0}, r"trainer\.max_steps"),
        ({"max_steps": 3, "min_steps": 4}, r"trainer\.min_steps must be at most trainer\.max_steps = 3, got 4"),
    ],
)
def test_inconsistent_limits_are_rejected_before_training(three_epoch_config, tmp_path, trainer, message):
    with pytest.raises(InputError, match=message):
        train(three_epoch_config("run", **trainer))
    assert not (tmp_path / "run").exists()
