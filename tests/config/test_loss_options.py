"""Options of the perceptual loss: what is refused before training starts, and what is written to config.yaml."""

import dataclasses

import pytest

from pix2pixhd.config.messages import as_options
from pix2pixhd.config.parser import config_text, parse_train
from pix2pixhd.config.schema import LossOptions
from pix2pixhd.errors import InputError
from pix2pixhd.losses import LPIPS, VGGLoss
from pix2pixhd.training.losses import check_loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perceptual": "ssim"}, r"loss\.perceptual must be vgg, lpips, none, got 'ssim'; choose"),
        ({"perceptual": None}, r"loss\.perceptual must be vgg, lpips, none, got None"),
        ({"perceptual_distance": "l2"}, r"loss\.perceptual_distance must be l1, mse, got 'l2'"),
        ({"perceptual_dtype": "half"}, r"loss\.perceptual_dtype must be float32, bfloat16, float16, got 'half'"),
        ({"perceptual_network": "resnet"}, r"loss\.perceptual_network must be vgg19, .*, got 'resnet'"),
        (
            {"perceptual_network": "alex"},
            r"loss\.perceptual_network must be vgg19 or vgg16 for loss\.perceptual: vgg, got 'alex'; change it, or set "
            r"loss\.perceptual: lpips",
        ),
        (
            {"perceptual": "lpips", "perceptual_network": "vgg16"},
            r"loss\.perceptual_network must be vgg or alex or squeeze .*, got 'vgg16'; .* loss\.perceptual: vgg",
        ),
        (
            {"perceptual": "lpips", "perceptual_layers": ["relu1_2"]},
            r"loss\.perceptual_layers is an option of loss\.perceptual: vgg, but loss\.perceptual is lpips; remove it",
        ),
        ({"perceptual": "lpips", "perceptual_weights": [1] * 5}, r"loss\.perceptual_weights is an option of .*vgg"),
        ({"perceptual": "lpips", "perceptual_distance": "l1"}, r"loss\.perceptual_distance is an option of .*vgg"),
        ({"lpips_weights": "alex.pth"}, r"loss\.lpips_weights is an option of loss\.perceptual: lpips"),
        ({"perceptual_layers": "relu1_2"}, r"loss\.perceptual_layers must be a list of names of layers, got 'relu1_2'"),
        ({"perceptual_weights": [1, "a"]}, r"loss\.perceptual_weights must be a list of numbers, got \[1, 'a'\]"),
        ({"perceptual_weights": [1, 2]}, r"one number for each of the 5 default layers, got 2; change one"),
        (
            {"perceptual_layers": ["relu1_2"], "perceptual_weights": [1, 2]},
            r"loss\.perceptual_weights must have one number for each of the 1 layers in loss\.perceptual_layers, got 2",
        ),
        ({"perceptual_weights": [0] * 5}, r"not all 0, got .*; to disable the loss, set loss\.perceptual: none"),
        ({"perceptual_weights": [1, 1, 1, 1, -1]}, r"finite numbers of at least 0"),
        ({"perceptual_weights": [1, 1, 1, 1, float("nan")]}, r"finite numbers of at least 0"),
        (
            {"perceptual": "none", "lambda_gan": 0, "lambda_feat": 0},
            r"loss\.perceptual: none leaves no term, because loss\.lambda_gan and loss\.lambda_feat are 0",
        ),
        ({"lambda_gan": 0, "lambda_feat": 0, "lambda_vgg": 0, "perceptual": "lpips"}, "all weights are 0"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        LossOptions(**options)


@pytest.mark.parametrize(
    ("network", "layers", "message"),
    [
        ("vgg16", ["relu1_2", "relu5_4"], r"^loss\.perceptual_layers: vgg16 has no layer 'relu5_4'; it has relu1_1, "),
        (None, ["relu1_2", "relu_1_2"], r"^loss\.perceptual_layers: 'relu_1_2' is listed twice"),
        (None, [], r"^loss\.perceptual_layers must name at least one of relu1_1"),
    ],
)
def test_names_of_layers_are_checked_against_the_network(network, layers, message):
    with pytest.raises(InputError, match=message):
        check_loss(LossOptions(perceptual_network=network, perceptual_layers=layers))
    check_loss(LossOptions(perceptual_network="vgg19", perceptual_layers=["relu5_4"]))


def test_a_disabled_loss_accepts_the_options_of_both_losses():
    LossOptions(perceptual="none", perceptual_network="alex", perceptual_distance="mse", lpips_weights="alex.pth")
    LossOptions(perceptual="lpips", lambda_vgg=0, lpips_weights="alex.pth")
    assert LossOptions(perceptual="none", perceptual_network="alex").network is None


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_dtype_of_the_loss_is_refused_where_the_trainer_converts_its_network(make_config, precision):
    config = make_config()
    config.trainer["precision"] = precision
    config.loss.perceptual_dtype = "float16"
    with pytest.raises(InputError, match=rf"loss\.perceptual_dtype: float16 cannot .* trainer\.precision: {precision}"):
        config.check()
    config.trainer["precision"] = "bf16-mixed"
    config.check()


def test_options_survive_the_command_line_and_the_file(make_config, tmp_path):
    given = ["--loss.perceptual_layers=[relu1_2, relu3_3]", "--loss.perceptual_weights=[1, 0.5]"]
    config, _ = parse_train([*given, "--loss.perceptual_network=vgg16", "--data.dataroot=data"])
    assert config.loss == LossOptions(
        perceptual_network="vgg16", perceptual_layers=["relu1_2", "relu3_3"], perceptual_weights=[1.0, 0.5]
    )
    lpips = LossOptions(perceptual="lpips", perceptual_dtype="bfloat16", lpips_weights="/vgg.pth")
    for loss in (config.loss, lpips, LossOptions(perceptual="none")):
        (tmp_path / "run.yaml").write_text(config_text(dataclasses.replace(make_config(), loss=loss)))
        assert parse_train([f"--config={tmp_path / 'run.yaml'}"])[0].loss == loss
    with pytest.raises(InputError, match=r"loss\.perceptual"):
        parse_train(["--loss.perceptual=ssim"])


def test_messages_of_the_losses_name_options(tmp_path):
    for make in (
        lambda: VGGLoss(vgg=tmp_path / "no.pth"),
        lambda: LPIPS(net="squeeze", trunk=tmp_path / "no.pth"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            make()
        assert as_options(str(caught.value)) == (
            f"loss.vgg: file {tmp_path / 'no.pth'} does not exist; pass 'imagenet', 'random', or the path of a state "
            "dict"
        )
