import pytest
import torch

from pix2pixhd.data import DataOptions, InputError
from pix2pixhd.models import define_G
from pix2pixhd.training.checkpoint import load_generator
from pix2pixhd.training.options import ModelOptions

MODEL = ModelOptions(netG="local", ngf=4, n_downsample_global=1, n_blocks_global=1, n_blocks_local=1)
DATA = DataOptions(label_nc=4)


@pytest.fixture
def nvidia(tmp_path):
    """A file as the original writes it: a bare state dict in the old, unzipped format."""
    path = tmp_path / "latest_net_G.pth"
    network = MODEL.generator(DATA)
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    return path, network.eval()


def test_nvidia_file_loads_with_options(nvidia):
    path, network = nvidia
    generator = load_generator(path, MODEL, DATA)
    x = torch.randn(1, 5, 16, 16)
    assert torch.equal(generator.network(x), network(x))


def test_statistics_of_old_instance_norms_are_dropped(nvidia):
    path, network = nvidia
    state = dict(network.state_dict())
    state["model.2.running_mean"] = torch.zeros(8)
    state["model.2.running_var"] = torch.ones(8)
    torch.save(state, path)
    x = torch.randn(1, 5, 16, 16)
    assert torch.equal(load_generator(path, MODEL, DATA).network(x), network(x))


def test_other_options_than_in_training_are_an_error(nvidia):
    path, _ = nvidia
    other = ModelOptions(ngf=4, n_downsample_global=1, n_blocks_global=1)
    with pytest.raises(InputError, match=r"do not fit the network: .*model1_1.*options it was trained with"):
        load_generator(path, other, DATA)
    with pytest.raises(InputError, match=r"missing \(model1_2\.1"):
        load_generator(path, ModelOptions(**{**vars(MODEL), "n_blocks_local": 2}), DATA)
    with pytest.raises(InputError, match=r"of another shape .*\[8, 5, 7, 7\] instead of \[8, 7, 7, 7\]"):
        load_generator(path, MODEL, DataOptions(label_nc=6))


def test_code_is_not_run(tmp_path):
    path = tmp_path / "latest_net_G.pth"
    torch.save(define_G(3, 3, 4, "global", 1, 1), path)  # a pickled module
    with pytest.raises(InputError, match="more than weights"):
        load_generator(path, MODEL, DATA)
