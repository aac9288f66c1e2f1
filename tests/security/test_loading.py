"""Weights and styles from files and downloads: no code is executed, and memory is bounded by the size of the file."""

import ast
import copy
import hashlib
import os
import pathlib
import pickle
import re
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from pix2pixhd.errors import InputError
from pix2pixhd.inference import instance_features
from pix2pixhd.inference.instance_features import FeatureClusters
from pix2pixhd.losses import LPIPS
from pix2pixhd.models.vgg import load_vgg
from pix2pixhd.models.weights import download_weights, imagenet_weights, read_weights
from pix2pixhd.reporting.metrics import build_metrics
from tests.helpers import fails

ROOT = pathlib.Path(__file__).resolve().parents[2]
UNSAFE = {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load"}


class Code:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_the_file_of_these_tests_would_execute_code(tmp_path):
    path = tmp_path / "executed"
    with pytest.raises(FileExistsError):
        pickle.loads(pickle.dumps([Code(path), Code(path)]))
    assert path.is_dir()


@pytest.mark.parametrize("name", ["a.ckpt", "latest_net_G.pth"])
def test_commands_execute_no_code_of_a_checkpoint(capsys, command_line, data_root, tmp_path, marker, name):
    path = tmp_path / name
    torch.save({"state_dict": {}, "hyper_parameters": {"format": 1, "x": Code(marker)}}, path)
    inputs = ["--input", data_root / "test_label", "--output", tmp_path / "out"]
    fails(capsys, ["generate", "--checkpoint", path, *inputs], "could execute code")
    fails(capsys, ["export", "--checkpoint", path, "--output", tmp_path / "g.pt2"], "could execute code")
    pretrained = path if path.suffix == ".ckpt" else tmp_path
    fails(capsys, command_line(f"--run.load_pretrain={pretrained}"), "could execute code")
    if path.suffix == ".ckpt":
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        path.rename(tmp_path / "run" / "checkpoints" / "last.ckpt")
        fails(capsys, command_line("--resume"), "could execute code")


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_losses_execute_no_code_of_their_weights(tmp_path, marker):
    path = tmp_path / "weights.pth"
    torch.save({"features.0.weight": Code(marker)}, path)
    with pytest.raises(ValueError, match="could execute code"):
        load_vgg(path)
    for options in ({"trunk": str(path)}, {"trunk": "random", "model_path": str(path)}):
        with pytest.raises(ValueError, match="could execute code"):
            LPIPS(net="squeeze", **options)


def test_styles_are_not_unpickled(tmp_path, marker):
    path = tmp_path / "features.npz"
    np.savez(path, class_0=np.array([Code(marker)], dtype=object))
    with pytest.raises(InputError, match="data other than arrays of numbers"):
        FeatureClusters.load(path)


def test_weights_in_a_compressed_archive_are_refused(tmp_path):
    """A deflated archive of 100 kB can contain 100 MB."""
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save({"weight": torch.zeros(1000, 100)}, plain)
    assert read_weights(plain)["weight"].shape == (1000, 100)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(ValueError, match="compressed, as in TorchScript archives; save the network's state_dict"):
        read_weights(bomb)


def test_weights_whose_entries_share_their_bytes_are_refused(tmp_path):
    path = tmp_path / "shared.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(10_000))
        for k in range(1, 10):
            twin = copy.copy(archive.filelist[0])
            twin.filename = f"archive/data/{k}"
            archive.filelist.append(twin)
    with pytest.raises(ValueError, match="entries overlap"):
        read_weights(path)


def test_styles_larger_than_any_real_file_are_refused_before_they_are_read(tmp_path, monkeypatch):
    """A compressed file of 300 kB can contain 300 MB."""
    path = tmp_path / "features.npz"
    np.savez_compressed(path, class_0=np.zeros((10_000, 3), np.float32))
    assert path.stat().st_size < 1000
    assert FeatureClusters.load(path).centers[0].shape == (10_000, 3)
    monkeypatch.setattr(instance_features, "_MAX_BYTES", 100_000)
    with pytest.raises(InputError, match=r"features\.npz is not a file of .*have 120128 bytes, more than the limit"):
        FeatureClusters.load(path)


def publish(folder, content, digits=None):
    """Writes a state dict whose name contains its hash, and returns its URL."""
    path = folder / "published"
    torch.save(content, path)
    digits = digits or hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return path.rename(folder / f"weights-{digits}.pth").as_uri()


def test_a_download_must_have_the_hash_in_its_name(tmp_path, hub):
    url = publish(tmp_path, {"weight": torch.ones(3)})
    path = download_weights(url)
    assert path.parent == hub
    assert torch.equal(read_weights(path)["weight"], torch.ones(3))
    other = publish(tmp_path, {"weight": torch.ones(3)}, "0" * 8)
    with pytest.raises(RuntimeError, match="invalid hash value"):
        download_weights(other)
    assert list(hub.iterdir()) == [path]
    with pytest.raises(ValueError, match="cannot be verified"):
        download_weights("https://example.org/weights.pth")


def test_torchvisions_weights_are_verified_and_read_without_code(monkeypatch, hub):
    options = {}
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **given: options.update(given))
    imagenet_weights("vgg19", "VGGLoss", "vgg")
    assert options["check_hash"] is True
    assert options["weights_only"] is True


def test_the_weights_of_fid_are_verified_before_torch_fidelity_unpickles_them(tmp_path, hub, monkeypatch, marker):
    inception = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", inception)
    inception.URL_INCEPTION_V3 = publish(tmp_path, {"weight": torch.ones(3)}, "0" * 8)
    with pytest.raises(InputError, match=r"run\.metrics: fid needs Inception's weights.*invalid hash value"):
        build_metrics(["fid"])
    inception.URL_INCEPTION_V3 = publish(tmp_path, {"weight": Code(marker)})
    with pytest.raises(InputError, match=r"run\.metrics: fid needs Inception's weights.*could execute code"):
        build_metrics(["fid"])


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def test_no_source_file_loads_anything_unsafely():
    words = re.compile(r"\b(eval|exec|load|loads|unsafe_load|read_array|subprocess)\b")
    for folder in ("pix2pixhd", "benchmarks", "build_tools", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            for name, options in calls(ast.parse(text)) if words.search(text) else ():
                assert name not in UNSAFE, path
                if name == "torch.load":
                    assert options.get("weights_only") == "True", path
                if name in {"np.load", "np.lib.format.read_array"}:
                    assert options.get("allow_pickle") == "False", path
                if name.startswith("subprocess."):
                    assert "shell" not in options, path
