"""Examples run: those in docstrings, the programs in examples/, and the Python code of the README and the docs."""

import doctest
import importlib
import pkgutil
import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch

import pix2pixhd
from build_tools import check_prose, option_tables
from pix2pixhd.checkpoints.format import describe
from pix2pixhd.config.schema import (
    DataOptions,
    LossOptions,
    ModelOptions,
    OptimizerOptions,
    TrainConfig,
    TrainerOptions,
)
from pix2pixhd.models.build import build_generator

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(m.name for m in pkgutil.walk_packages(pix2pixhd.__path__, "pix2pixhd.") if "._" not in m.name)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

CHECKOUT = """
import torch

class GANLoss(torch.nn.Module):
    pass

class VGGLoss(torch.nn.Module):
    pass
"""


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_print_what_they_show(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_there_are_docstring_examples():
    finder = doctest.DocTestFinder()
    found = sum(bool(t.examples) for name in MODULES for t in finder.find(importlib.import_module(name)))
    assert found > 20


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A stand-in for NVIDIA's repository, which is the current folder."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    (tmp_path / "models" / "networks.py").write_text(CHECKOUT)
    (tmp_path / "train.py").write_text(
        "import sys\nfrom models import networks\nprint(sys.argv, networks.GANLoss(use_lsgan=True))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "models"]:
        del sys.modules[name]


@pytest.fixture
def random_vgg(monkeypatch):
    """Random weights where the code asks for ImageNet's, which would be a download."""
    load = pix2pixhd.losses.perceptual.load_vgg
    for module in ("losses.perceptual", "losses.style", "models.lpips_trunks"):
        monkeypatch.setattr(
            f"pix2pixhd.{module}.load_vgg",
            lambda vgg, *args, **kwargs: load("random" if vgg == "imagenet" else vgg, *args, **kwargs),
        )


@pytest.fixture
def saved_run(checkout):
    """The checkpoint of a small untrained generator, at the path that the pages use."""
    model, data = ModelOptions(ngf=4, n_downsample_global=2, n_blocks_global=1), DataOptions()
    weights = {f"netG.{name}": value for name, value in build_generator(model, data).state_dict().items()}
    path = checkout / "runs" / "name" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    options = describe(model, data, LossOptions(), OptimizerOptions())
    torch.save({"state_dict": weights, "hyper_parameters": options}, path)


def names_of_the_reader():
    """What the code on the pages takes as given: networks, and a batch of labels and images."""
    label = torch.rand(1, 3, 64, 64) * 2 - 1

    class Discriminator(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Conv2d(3, 8, 4, 2), torch.nn.Conv2d(8, 1, 4)])

        def forward(self, x):
            features = self.layers[0](x)
            return [[features, self.layers[1](features)]] * 2

    netG, netD = torch.nn.Conv2d(3, 3, 3, padding=1), Discriminator()
    real = torch.rand(1, 3, 64, 64) * 2 - 1
    fake = netG(label)
    names = {"torch": torch, "netG": netG, "netD": netD, "label": label, "real": real, "fake": fake}
    return names | {"pred_fake": netD(fake), "pred_real": netD(real), "mask": torch.ones(1, 1, 64, 64)}


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_python_code_on_the_page_runs(page, saved_run, random_vgg):
    torch.manual_seed(0)
    names = names_of_the_reader()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in python_blocks(page):
            exec(compile(block, page.name, "exec"), names)


def test_yaml_on_the_pages_is_a_configuration(tmp_path):
    from pix2pixhd.config.parser import parse_train

    found = 0
    for page in PAGES:
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            (tmp_path / "page.yaml").write_text(block)
            parse_train(["--config", str(tmp_path / "page.yaml")])
            found += 1
    assert found


def test_links_of_the_readme_lead_to_files():
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md"))
    links = re.findall(r"\]\(([^)#\s]+)", text)
    assert [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()] == []


def test_paths_in_contributing_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:csrc|pix2pixhd|tests|docs|build_tools|benchmarks)/[\w/.]+\w)`", text)
    paths = [path for path in paths if "NAME" not in path]
    assert len(paths) > 15
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_messages_under_troubleshooting_are_in_the_sources():
    sources = [*(ROOT / "pix2pixhd").rglob("*.py"), *(ROOT / "build_tools").glob("*.py"), ROOT / "setup.py"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in [*sources, ROOT / "Makefile"])
    text = re.sub(r'"\s*\n\s*[frb]*"', "", text).replace("`", "")  # adjacent string literals are one
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8").partition("## Troubleshooting")[2]
    messages = [
        message for cell in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for message in cell.split("`")[1::2]
    ]
    assert len(messages) > 10
    pieces = [piece.strip() for message in messages for piece in message.split("…")]
    assert [piece for piece in pieces if piece not in text] == []


@pytest.mark.parametrize(
    ("name", "steps"),
    [("own_loop", 3), ("lightning_module", 2), ("super_resolution", 5), ("autoencoder", 5)],
    ids=lambda x: str(x),
)
def test_example_trains(name, steps, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["train"](steps, "random")
    if name == "lightning_module":
        assert result.global_step == 2 * steps
    else:
        before, after = result
        assert after < before


def test_example_of_lean_networks_saves_less_and_has_the_same_gradients(capsys):
    results = runpy.run_path(str(ROOT / "examples" / "lean_networks.py"))["main"](64, 8)
    assert len(results) == 2
    for plain, less, difference in results:
        assert less < 0.9 * plain
        assert difference < 1e-5


def test_example_runs_an_unmodified_checkout_with_the_fused_losses(checkout, capsys):
    main = runpy.run_path(str(ROOT / "examples" / "nvidia_patch.py"))["main"]
    assert main(checkout, ["--name", "city"]) == ["models.networks.GANLoss", "models.networks.VGGLoss"]
    assert "['train.py', '--name', 'city'] GANLoss(mode='lsgan'" in capsys.readouterr().out


def test_example_writes_a_dataset_without_problems(tmp_path, capsys):
    from PIL import Image

    from pix2pixhd.cli.main import main

    (tmp_path / "photos").mkdir()
    for index in range(5):
        Image.effect_noise((50, 40), 40).convert("RGB").save(tmp_path / "photos" / f"{index}.jpg")
    build = runpy.run_path(str(ROOT / "examples" / "photos_to_pairs.py"))["build"]
    assert build(tmp_path / "photos", tmp_path / "pairs", 32, 2) == 5
    assert main(["data", "check", str(tmp_path / "pairs"), "--label-nc", "0", "--no-instance"]) == 0
    assert "train: 3 images, no problems" in capsys.readouterr().out


def test_every_option_is_in_the_generated_tables():
    import dataclasses

    tables = option_tables.tables()
    for section in [field.name for field in dataclasses.fields(TrainConfig)]:
        assert f"## {section}\n" in tables
    for field in dataclasses.fields(TrainerOptions):
        assert f"| `{field.name}` |" in tables
    assert "| `lr` | `0.0002` | number |" in tables
    assert option_tables.on_page_markdown(f"# Page\n{option_tables.MARKER}").startswith("# Page\n## data")


def test_words_to_avoid_are_found_in_text_and_identifiers(tmp_path, monkeypatch):
    monkeypatch.setattr(check_prose, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text("A gadget.\n\n```\ngadget\n```\nThe `gadget` option, [link](gadget.md).\n")
    (tmp_path / "code.py").write_text('old_gadget = chart  # a gadget\n"""Two\ngadgets, ``gadget``."""\n')
    (tmp_path / "code.cpp").write_text("int gadgetSize = chart;  // Inspector Gadget's chart\n")
    rules = check_prose.Rules({"gadgets?": "device"}, {"charts?": "figure"}, ["inspector gadget"])
    found = list(check_prose.problems(["page.md", "code.py", "code.cpp"], rules))
    places = ["page.md:1", "code.py:1", "code.py:1", "code.py:3", "code.cpp:1", "code.cpp:1"]
    assert [problem.partition(": ")[0] for problem in found] == places
