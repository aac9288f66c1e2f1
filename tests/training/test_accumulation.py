"""Gradient accumulation: several batches make one step."""

import torch

from pix2pixhd.training.run import train

from .helpers import make_batch, make_module


def test_accumulated_gradients_equal_those_of_the_larger_batch():
    module, batch = make_module(), make_batch()
    module.double()
    condition, real = module.encode(batch), batch["image"].double()
    module.compute_gradients(condition, real)
    expected = [p.grad.clone() for p in module.parameters() if p.requires_grad]
    module.zero_grad()
    for k in range(2):
        module.compute_gradients(condition[k : k + 1], real[k : k + 1], batches=2, last=k == 1)
    for found, gradient in zip((p.grad for p in module.parameters() if p.requires_grad), expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-8, atol=1e-14)


def test_leftover_batches_of_an_epoch_form_a_step(make_config):
    config = make_config()
    config.optimizer.accumulate = 2  # of three batches
    config.trainer["max_steps"] = 2
    module = train(config)
    assert module.trainer.global_step == 4  # counted by Lightning for each of the two optimizers
    assert not module.mid_accumulation
