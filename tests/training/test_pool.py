"""The image pool: alone, in the training step, and in a resumed run."""

import pytest
import torch

from pix2pixhd.checkpoints.format import read_checkpoint
from pix2pixhd.config.schema import LossOptions
from pix2pixhd.errors import InputError
from pix2pixhd.training.image_pool import ImagePool
from pix2pixhd.training.run import train

from .helpers import assert_identical, make_batch, make_module, plain_step, relative, weights


def image(value):
    return torch.full((1, 4, 2, 2), float(value))


def values(pool, numbers):
    return [int(pool.query(image(number))[0, 0, 0, 0]) for number in numbers]


def test_the_pool_fills_up_and_then_exchanges_images():
    pool = ImagePool(3)
    assert values(pool, range(3)) == [0, 1, 2]
    back = values(pool, range(3, 403))
    old = [(given, got) for given, got in zip(range(3, 403), back, strict=True) if given != got]
    assert 150 < len(old) < 250  # one half
    assert all(got < given for given, got in old)
    assert len({got for _, got in old}) == len(old)  # each is returned at most once later


def test_a_pool_of_size_zero_returns_its_input():
    x = image(1)
    assert ImagePool(0).query(x) is x
    with pytest.raises(ValueError, match="size must be at least 0, got -1"):
        ImagePool(-1)
    with pytest.raises(InputError, match=r"loss\.pool_size must be at least 0, got -1"):
        LossOptions(pool_size=-1)


def test_the_pool_stores_detached_copies_and_never_mixes_sizes():
    pool = ImagePool(1)
    x = image(1).requires_grad_()
    assert not pool.query(x).requires_grad
    with torch.no_grad():
        x.fill_(9)
    got = [pool.query(torch.zeros(1, 4, 3, 3)).shape[2:] for _ in range(8)]
    assert set(got) == {(3, 3)}
    assert 1 in values(pool, [5] * 20)  # the stored image did not change with x


def test_a_restored_pool_continues_the_same_sequence():
    pool, other = ImagePool(3, "a"), ImagePool(3, "b")
    values(pool, range(20))
    other.load_state_dict(pool.state_dict())
    assert values(pool, range(20, 60)) == values(other, range(20, 60))


def test_the_step_uses_pooled_images_only_for_the_discriminator():
    module, batch = make_module(), make_batch()
    module.double()
    condition, real = module.encode(batch).double(), batch["image"].double()
    module.pool = ImagePool(8)
    terms = module.compute_gradients(condition, real)  # the pool is still filling, so it has no effect
    expected, expected_G, expected_D = plain_step(module, condition, real)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value.detach(), rtol=1e-9, atol=0)
    for network, gradients in ((module.netG, expected_G), (module.netD, expected_D)):
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            assert relative(parameter.grad, gradient) < 1e-9 or gradient.norm() < 1e-9
    module.pool._stored = [torch.zeros_like(x) for x in module.pool._stored] * 4
    module.pool._random.random = lambda: 0.9  # always exchange
    again = module.compute_gradients(condition, real)
    for name in ("G_GAN", "G_GAN_Feat", "D_real"):
        torch.testing.assert_close(again[name], terms[name])
    assert not torch.allclose(again["D_fake"], terms["D_fake"])
    assert all(parameter.requires_grad for parameter in module.netD.parameters())


def test_a_resumed_run_with_a_pool_reaches_the_same_weights(make_config):
    def config(name):
        made = make_config(name, epochs=3)
        made.loss.pool_size = 2
        return made

    uninterrupted = weights(train(config("uninterrupted")))
    interrupted = config("interrupted")
    interrupted.trainer["max_epochs"] = 1
    train(interrupted)
    interrupted.trainer["max_epochs"] = 3
    assert_identical(uninterrupted, weights(train(interrupted, resume=True)))
    without = make_config("without", epochs=3)
    assert not torch.equal(
        uninterrupted["netD.scale0_layer0.0.weight"], weights(train(without))["netD.scale0_layer0.0.weight"]
    )


def test_a_checkpoint_contains_the_pool_of_every_process(make_config, tmp_path):
    config = make_config()
    config.loss.pool_size = 3
    train(config)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(saved["processes"]) == 1
    assert len(saved["processes"][0]["pool"]["kept"]) == 3
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").loss.pool_size == 3
