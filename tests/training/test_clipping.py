"""optimizer.gradient_clip_val clips the unscaled, accumulated gradients of each optimizer by their norm."""

import lightning.pytorch as pl
import pytest
import torch

from pix2pixhd.config.schema import OptimizerOptions
from pix2pixhd.errors import InputError
from pix2pixhd.training.run import train


class Gradients(pl.Callback):
    """Records the norms of the gradients that the optimizers receive at every step."""

    def __init__(self):
        self.norms = []

    def on_train_start(self, trainer, module):
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            # Such small feature maps overflow under the default scale, and their steps would be skipped.
            scaler.load_state_dict(scaler.state_dict() | {"scale": 8.0})

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if not module.mid_accumulation:
            groups = [[module.netG, *([module.netE] if module.netE else [])], [module.netD]]
            self.norms.append([norm(network for network in group) for group in groups])


def norm(networks):
    gradients = [p.grad for network in networks for p in network.parameters() if p.grad is not None]
    return torch.cat([g.flatten().double() for g in gradients]).norm().item()


def norms(make_config, output, limit, precision="32-true", accumulate=1, encoder=False):
    config = make_config(output)
    config.model.instance_feat, config.model.nef, config.model.n_downsample_E = encoder, 4, 2
    config.optimizer.gradient_clip_val = limit
    config.optimizer.accumulate = accumulate
    config.trainer |= {"precision": precision, "max_steps": 1}
    seen = Gradients()
    train(config, callbacks=[seen])
    return seen.norms[0]


@pytest.mark.parametrize(
    ("precision", "accumulate", "encoder"),
    [
        ("32-true", 1, False),
        ("32-true", 2, True),
        ("16-mixed", 1, False),
        ("16-mixed", 2, True),
        ("bf16-true", 1, False),
    ],
)
def test_each_network_is_clipped_by_the_norm_of_its_true_gradients(make_config, precision, accumulate, encoder):
    options = {"precision": precision, "accumulate": accumulate, "encoder": encoder}
    plain_G, plain_D = norms(make_config, "plain", None, **options)
    assert plain_G != pytest.approx(plain_D, rel=0.1)
    tolerance = 2e-2 if precision == "bf16-true" else 1e-4
    # Between the two norms, so that one network is clipped and the other is not.
    limit = (plain_G * plain_D) ** 0.5
    expected = [min(plain, limit) for plain in (plain_G, plain_D)]
    assert norms(make_config, "one", limit, **options) == pytest.approx(expected, rel=tolerance)
    assert norms(make_config, "both", 1e-3, **options) == pytest.approx([1e-3, 1e-3], rel=tolerance)


def test_invalid_clipping_limits_are_rejected(make_config):
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match=r"optimizer\.gradient_clip_val must be .*got"):
            OptimizerOptions(gradient_clip_val=value)
    config = make_config()
    config.trainer["gradient_clip_val"] = 1.0
    with pytest.raises(InputError, match=r"trainer\.gradient_clip_val.*set optimizer\.gradient_clip_val instead"):
        train(config)
