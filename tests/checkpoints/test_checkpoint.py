import pytest
import torch

from pix2pixhd.checkpoints.format import read_checkpoint
from pix2pixhd.checkpoints.generators import load_generator
from pix2pixhd.config.schema import DataOptions, ModelOptions
from pix2pixhd.errors import InputError
from pix2pixhd.models import define_G
from pix2pixhd.models.build import build_generator

MODEL = ModelOptions(netG="local", ngf=4, n_downsample_global=1, n_blocks_global=1, n_blocks_local=1)
DATA = DataOptions(label_nc=4)


@pytest.fixture
def nvidia(tmp_path):
    """A file as NVIDIA's code writes it: a bare state dict in the legacy format without zip."""
    path = tmp_path / "latest_net_G.pth"
    network = build_generator(MODEL, DATA)
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    return path, network.eval()


def test_an_nvidia_file_loads_with_options(nvidia):
    path, network = nvidia
    generator = load_generator(path, MODEL, DATA)
    x = torch.randn(1, 5, 16, 16)
    assert torch.equal(generator.network(x), network(x))


def test_unused_instance_norm_statistics_are_dropped(nvidia):
    path, network = nvidia
    state = dict(network.state_dict())
    state["model.2.running_mean"] = torch.zeros(8)
    state["model.2.running_var"] = torch.ones(8)
    torch.save(state, path)
    x = torch.randn(1, 5, 16, 16)
    assert torch.equal(load_generator(path, MODEL, DATA).network(x), network(x))


def test_options_that_differ_from_training_are_rejected(nvidia):
    path, _ = nvidia
    other = ModelOptions(ngf=4, n_downsample_global=1, n_blocks_global=1)
    with pytest.raises(InputError, match=r"do not fit the network: .*model1_1.*options it was trained with"):
        load_generator(path, other, DATA)
    with pytest.raises(InputError, match=r"missing \(model1_2\.1"):
        load_generator(path, ModelOptions(**{**vars(MODEL), "n_blocks_local": 2}), DATA)
    with pytest.raises(InputError, match=r"of another shape .*\[8, 5, 7, 7\] instead of \[8, 7, 7, 7\]"):
        load_generator(path, MODEL, DataOptions(label_nc=6))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_executed(tmp_path, zipped):
    path = tmp_path / "latest_net_G.pth"
    # A pickled module.
    torch.save(define_G(3, 3, 4, "global", 1, 1), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"more than weights: .*GlobalGenerator.*state_dict\(\)") as caught:
        load_generator(path, MODEL, DATA)
    assert_no_unsafe_advice(caught)


def assert_no_unsafe_advice(caught):
    assert "\n" not in str(caught.value)
    for word in ("weights_only", "two options", "trust", "allowlist", "safe_globals"):
        assert word not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"PK\x03\x04 nothing", b"\x80\x02"])
@pytest.mark.parametrize("name", ["latest_net_G.pth", "last.ckpt"])
def test_damaged_files_are_reported(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"the checkpoint cannot be read: .*; choose another file") as caught:
        load_generator(path)
    assert_no_unsafe_advice(caught)


def test_errors_of_vgg_weights_do_not_recommend_unsafe_loading(tmp_path):
    from pix2pixhd.models.vgg import load_vgg

    path = tmp_path / "vgg.pth"
    torch.save(define_G(3, 3, 4, "global", 1, 1), path)
    with pytest.raises(ValueError, match="more than weights") as caught:
        load_vgg(path)
    assert_no_unsafe_advice(caught)


REMOVED = object()


def position(loader):
    """Makes the part of a checkpoint that contains the position within an epoch."""
    return {"fit_loop": {"state_dict": {"combined_loader": loader}}}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("hyper_parameters", REMOVED, "not a checkpoint of pix2pixhd"),
        ("hyper_parameters", [1], "not a checkpoint of pix2pixhd"),
        ("state_dict", REMOVED, "not a checkpoint of pix2pixhd"),
        ("state_dict", {"netG.a": 3}, "not a checkpoint of pix2pixhd"),
        ("hyper_parameters.format", 2, "written in format 2, this version reads 1; upgrade"),
        ("hyper_parameters.model", REMOVED, "the options 'model' are missing"),
        ("hyper_parameters.data", "data", "the options 'data' are missing"),
        ("hyper_parameters.model.ngf", REMOVED, r"model\.ngf is missing in the checkpoint"),
        ("hyper_parameters.data.resize_or_crop", REMOVED, r"data\.resize_or_crop is missing"),
        ("hyper_parameters.model.ngf", "many", r"model\.ngf should be of type int in the checkpoint, got 'many'"),
        ("hyper_parameters.model.ngf", True, r"model\.ngf should be of type int"),
        ("hyper_parameters.model.ngf", 0, r"options are invalid: model\.ngf must be at least 1"),
        ("hyper_parameters.model.ngf", 10**9, "cannot be built|do not fit"),
        ("hyper_parameters.model.netG", "other", r"model\.netG should be of type Literal.*global.*got 'other'"),
        ("hyper_parameters.data.label_nc", 4.5, r"data\.label_nc should be of type int"),
        ("hyper_parameters.data.max_dataset_size", "all", r"data\.max_dataset_size should be of type int \| None"),
        ("hyper_parameters.optimizer.lr", "x", r"optimizer\.lr should be of type float"),
        ("hyper_parameters.loss.unknown", 1, r"unknown options \['unknown'\]; .* upgrade"),
        ("hyper_parameters.model.ngf", 8, "the weights do not fit the network"),
        *(("loops", value, "'loops'.* was altered") for value in (None, [1], {"fit_loop": None}, {"fit_loop": [2]})),
        *(("loops", position(value), "'loops'.* was altered") for value in (None, {"batches": 1}, 3, [4], [[]])),
        *(("loops", position([{"batches": value}]), "'loops'.* was altered") for value in (None, "2", 1.5, -1, True)),
    ],
)
def test_altered_parts_of_a_checkpoint_are_named(make_checkpoint, place, value, message):
    path = make_checkpoint()
    content = torch.load(path)
    *outer, last = place.split(".")
    section = content
    for name in outer:
        section = section[name]
    if value is REMOVED:
        del section[last]
    else:
        section[last] = value
    torch.save(content, path)
    with pytest.raises(InputError, match=message) as caught:
        load_generator(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("loops", "batches"), [(position([{"epoch": 1, "batches": 3}]), 3), (position([{}]), 0), (position([]), 0), ({}, 0)]
)
def test_the_position_within_an_epoch_is_read(make_checkpoint, loops, batches):
    path = make_checkpoint()
    torch.save(torch.load(path) | {"loops": loops}, path)
    assert read_checkpoint(path).batches == batches
