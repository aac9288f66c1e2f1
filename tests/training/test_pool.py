"""The image pool: by itself, in the step, and across a resumed run."""

import pytest
import torch

from pix2pixhd.checkpoints.format import read_checkpoint
from pix2pixhd.config.schema import LossOptions
from pix2pixhd.errors import InputError
from pix2pixhd.training.image_pool import ImagePool
from pix2pixhd.training.run import train

from .helpers import assert_identical, make_batch, make_module, plain_step, relative, weights


def picture(value):
    return torch.full((1, 4, 2, 2), float(value))


def values(pool, numbers):
    return [int(pool.query(picture(number))[0, 0, 0, 0]) for number in numbers]


def test_it_fills_up_and_then_exchanges():
    pool = ImagePool(3)
    assert values(pool, range(3)) == [0, 1, 2]
    back = values(pool, range(3, 403))
    old = [(given, got) for given, got in zip(range(3, 403), back, strict=True) if given != got]
    assert 150 < len(old) < 250  # one half
    assert all(got < given for given, got in old)
    assert len({got for _, got in old}) == len(old)  # each comes back once at most


def test_none_gives_back_what_comes():
    x = picture(1)
    assert ImagePool(0).query(x) is x
    with pytest.raises(ValueError, match="size must be at least 0, got -1"):
        ImagePool(-1)
    with pytest.raises(InputError, match=r"loss\.pool_size must be at least 0, got -1"):
        LossOptions(pool_size=-1)


def test_it_keeps_copies_without_graph_and_never_mixes_sizes():
    pool = ImagePool(1)
    x = picture(1).requires_grad_()
    assert not pool.query(x).requires_grad
    with torch.no_grad():
        x.fill_(9)
    got = [pool.query(torch.zeros(1, 4, 3, 3)).shape[2:] for _ in range(8)]
    assert set(got) == {(3, 3)}
    assert 1 in values(pool, [5] * 20)  # what was kept did not change with x


def test_it_goes_on_where_it_was_saved():
    pool, other = ImagePool(3, "a"), ImagePool(3, "b")
    values(pool, range(20))
    other.load_state_dict(pool.state_dict())
    assert values(pool, range(20, 60)) == values(other, range(20, 60))


def test_the_step_with_a_full_pool_uses_its_pictures_for_the_discriminator_alone():
    module, batch = make_module(), make_batch()
    module.double()
    condition, real = module.encode(batch).double(), batch["image"].double()
    module.pool = ImagePool(8)
    terms = module.compute_gradients(condition, real)  # the pool fills: the same as without
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


def test_a_resumed_run_with_a_pool_ends_where_an_unbroken_one_does(make_config):
    def config(name):
        made = make_config(name, epochs=3)
        made.loss.pool_size = 2
        return made

    unbroken = weights(train(config("unbroken")))
    broken = config("broken")
    broken.trainer["max_epochs"] = 1
    train(broken)
    broken.trainer["max_epochs"] = 3
    assert_identical(unbroken, weights(train(broken, resume=True)))
    without = make_config("without", epochs=3)
    assert not torch.equal(
        unbroken["netD.scale0_layer0.0.weight"], weights(train(without))["netD.scale0_layer0.0.weight"]
    )


def test_checkpoints_of_other_processes_pools(make_config, tmp_path):
    config = make_config()
    config.loss.pool_size = 3
    train(config)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(saved["processes"]) == 1
    assert len(saved["processes"][0]["pool"]["kept"]) == 3
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").loss.pool_size == 3
