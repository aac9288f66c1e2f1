"""Instance features: trained with the generator, clustered, drawn, and encoded from images."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from pix2pixhd.checkpoints.generators import load_generator
from pix2pixhd.cli.main import main
from pix2pixhd.config.schema import ModelOptions
from pix2pixhd.data import PairedDataset, find_pairs
from pix2pixhd.errors import InputError
from pix2pixhd.inference import instance_features as features
from pix2pixhd.inference.generate import generate_image
from pix2pixhd.inference.instance_features import FeatureClusters, cluster_features, encode_image
from pix2pixhd.inference.padding import encode_padded
from pix2pixhd.training.run import train
from tests.training.helpers import assert_identical, weights


@pytest.fixture
def with_features(make_config):
    def make(*args, **options):
        config = make_config(*args)
        config.model = dataclasses.replace(
            config.model, **{"instance_feat": True, "feat_num": 2, "nef": 4, "n_downsample_E": 2} | options
        )
        return config

    return make


@pytest.fixture
def checkpoint(with_features, tmp_path):
    train(with_features())
    return tmp_path / "run" / "checkpoints" / "last.ckpt"


def test_the_encoder_learns_and_the_discriminator_does_not_see_features(with_features):
    config = with_features()
    config.trainer["max_steps"] = 1
    before = {}

    import lightning.pytorch as pl

    class Spy(pl.Callback):
        def on_train_start(self, trainer, module):
            before.update(weights(module))

    module = train(config, callbacks=[Spy()])
    after = weights(module)
    for net in ("netG", "netD", "netE"):
        changed = [name for name in after if name.startswith(net) and not torch.equal(before[name], after[name])]
        assert changed, net
    assert module.netG.input_nc == 4 + 1 + 2
    assert after["netD.scale0_layer0.0.weight"].shape[1] == 4 + 1 + 3


def test_gradients_reach_the_encoder_as_in_one_backward(with_features):
    """Against one plain graph from the losses to the encoder."""
    from pix2pixhd.training.module import Pix2PixHD

    config = with_features()
    torch.manual_seed(0)
    module = Pix2PixHD(config.model, config.data, config.loss).double()
    module.manual_backward = lambda loss, **options: loss.backward(**options)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, (2, 16, 24), generator=generator, dtype=torch.int32)
    real = torch.rand(2, 3, 16, 24, generator=generator, dtype=torch.float64) * 2 - 1
    condition = module.encode({"input": ids, "instance": ids}).double()
    features = module.encode_features({"input": ids, "instance": ids, "image": real})
    module.compute_gradients(condition, real, features)
    found = [p.grad.clone() for p in module.netE.parameters()]
    features = module.encode_features({"input": ids, "instance": ids, "image": real})
    fake = module.netG(torch.cat([condition, features], dim=1))
    pred_fake, pred_real = (module.netD(torch.cat([condition, x], dim=1)) for x in (fake, real))
    total = module.generator_loss(pred_fake, pred_real).total
    expected = torch.autograd.grad(total, list(module.netE.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-14)


def test_a_resumed_run_with_an_encoder_reaches_the_same_weights(with_features):
    uninterrupted = with_features("uninterrupted")
    uninterrupted.optimizer.niter = 2
    interrupted = with_features("interrupted")
    interrupted.optimizer.niter = 2
    interrupted.trainer["max_epochs"] = 1
    train(interrupted)
    interrupted.trainer["max_epochs"] = 2
    assert_identical(weights(train(uninterrupted)), weights(train(interrupted, resume=True)))


def test_clusters_are_those_of_the_classes(checkpoint, with_features, tmp_path):
    """Every class holds the styles of its own instances, and styles are drawn per class."""
    generator = load_generator(checkpoint)
    data = with_features().data
    for folder in ("train_label", "train_inst"):  # class k in column k, one instance each
        for path in (tmp_path / "data" / folder).iterdir():
            column = np.repeat(np.arange(4), 8)[None].repeat(24, 0)
            array = column.astype(np.uint8) if folder == "train_label" else (column + 40000).astype(np.uint16)
            Image.fromarray(array).save(path)
    dataset = PairedDataset(find_pairs(data, "train"), data, 4, augment=False)
    clusters = cluster_features(generator, dataset, n_clusters=3)
    assert sorted(clusters.centers) == [0, 1, 2, 3]
    found = {label: set() for label in range(4)}
    for i in range(3):
        features = encode_image(generator, dataset[i])
        for label in range(4):
            found[label].add(tuple(np.round(features[:, 0, 8 * label].numpy(), 4)))
    for label, center in clusters.centers.items():
        assert {tuple(np.round(row, 4)) for row in center} == found[label]
    drawn = clusters.draw(dataset[0], generator, "a")
    assert drawn.shape == (2, 24, 32)
    for label in range(4):
        assert tuple(np.round(drawn[:, 5, 8 * label + 3].numpy(), 4)) in found[label]
    assert torch.equal(drawn, clusters.draw(dataset[0], generator, "a"))
    assert any(not torch.equal(drawn, clusters.draw(dataset[0], generator, seed)) for seed in "bcdef")


def test_a_class_never_seen_gets_the_mean_style(checkpoint):
    generator = load_generator(checkpoint)
    clusters = FeatureClusters({0: np.array([[0.0, 1.0], [1.0, 0.0]], dtype=np.float32)})
    ids = torch.full((8, 8), 3, dtype=torch.int32)
    drawn = clusters.draw({"input": ids, "instance": ids, "name": "a"}, generator, "a")
    assert torch.equal(drawn, torch.full((2, 8, 8), 0.5))


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_features_and_generate_use_styles_and_encoded_images(checkpoint, data_root, tmp_path, capsys):
    styles = tmp_path / "styles.npz"
    assert run("features", "--checkpoint", checkpoint, "--n_clusters", 2, "--output", styles) == 0
    assert "styles of 4 classes" in capsys.readouterr().out
    common = ["generate", "--checkpoint", checkpoint, "--input", data_root]
    assert run(*common, "--output", tmp_path / "none") == 2
    assert "--features FILE" in capsys.readouterr().err
    for seed in (0, 1):
        target = tmp_path / f"seed{seed}"
        assert run(*common, "--output", target, "--features", styles, "--style-seed", seed, "--batch", 2) == 0
    assert run(*common, "--output", tmp_path / "encoded", "--encode", data_root / "test_img") == 0
    images = {
        name: np.asarray(Image.open(tmp_path / name / "x.png")).astype(int) for name in ("seed0", "seed1", "encoded")
    }
    assert np.abs(images["seed0"] - images["seed1"]).max() > 0
    assert np.abs(images["seed0"] - images["encoded"]).max() > 0
    assert run(*common, "--output", tmp_path / "a", "--features", styles, "--encode", data_root) == 2
    styles.write_bytes(b"x")
    assert run(*common, "--output", tmp_path / "a", "--features", styles) == 2
    assert "is not a file of `pix2pixhd features`" in capsys.readouterr().err


def test_encoded_images_give_the_features_of_training(checkpoint, with_features, data_root):
    module = train(with_features("again"))
    generator = load_generator(checkpoint)  # the same run, so the same weights
    data = with_features().data
    dataset = PairedDataset(find_pairs(data, "test"), data, 4, augment=False)
    sample = dataset[0]
    batch = torch.utils.data.default_collate([sample])
    module.eval()
    with torch.no_grad():
        expected = module.generate(batch)[0]
    features = encode_image(generator, sample)
    torch.testing.assert_close(generate_image(generator, sample["input"], sample["instance"], features), expected)


def test_label_features_train_and_generate_odd_sizes(make_config, tmp_path):
    config = make_config(no_instance=True)
    config.model = dataclasses.replace(config.model, label_feat=True, nef=4, n_downsample_E=3)
    module = train(config)
    ids = torch.randint(4, (1, 19, 37), dtype=torch.int32)
    image = module.generate({"input": ids, "image": torch.zeros(1, 3, 19, 37), "name": "a"})
    assert image.shape == (1, 3, 19, 37)


def test_features_need_something_to_average_over(make_config):
    config = make_config(no_instance=True)
    config.model = dataclasses.replace(config.model, instance_feat=True, n_downsample_E=2)
    with pytest.raises(InputError, match=r"model\.instance_feat averages over instances; set data\.no_instance: false"):
        train(config)
    with pytest.raises(InputError, match="instance_feat and label_feat are both true"):
        ModelOptions(instance_feat=True, label_feat=True)


def test_a_checkpoint_without_encoder_is_rejected(make_config, tmp_path, capsys):
    train(make_config())
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert run("features", "--checkpoint", last, "--output", tmp_path / "a.npz") == 2
    assert "has no encoder" in capsys.readouterr().err


def test_small_instances_count_only_where_there_is_no_large_one(checkpoint, monkeypatch):
    def style(*values):
        return np.array(values, dtype=np.float32)

    found = {0: [(0.5, style(1, 1)), (1 / 64, style(9, 9))], 1: [(1 / 64, style(2, 2)), (0.001, style(3, 3))]}
    monkeypatch.setattr(features, "_collect", lambda generator, dataset, advance: found)
    centers = cluster_features(load_generator(checkpoint), dataset=None, n_clusters=5).centers
    assert centers[0].tolist() == [[1, 1]]
    assert sorted(centers[1].tolist()) == [[2, 2], [3, 3]]


def test_padding_keeps_every_id():
    ids = torch.tensor([[[0, 32768, 65535], [2**31 - 1, 2**24 + 1, -1]]], dtype=torch.int32)
    seen = []

    def encoder(image, region):
        seen.append(region)
        return image

    encode_padded(encoder, torch.zeros(1, 3, 2, 3), ids, multiple=4)
    assert seen[0].shape == (1, 8, 8)
    assert torch.equal(seen[0][:, :2, :3], ids)
    assert torch.equal(seen[0][0, :, -1], ids[0, [0, 1, 1, 1, 1, 1, 1, 1], 2])
