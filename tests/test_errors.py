"""The command that messages name for what is not installed: the package is not in the package index."""

import importlib.metadata
import json
import types

import pytest

from pix2pixhd.errors import install_command


@pytest.fixture
def installed_from(monkeypatch):
    """Sets what pip recorded about the installation."""

    def install(record):
        distribution = types.SimpleNamespace(read_text={"direct_url.json": record}.get)
        monkeypatch.setattr(importlib.metadata, "distribution", lambda name: distribution)

    return install


def test_the_command_names_the_checkout_that_pip_installed_from(installed_from, tmp_path):
    checkout = tmp_path / "a check out ä"
    checkout.mkdir()
    (checkout / "pyproject.toml").touch()
    installed_from(json.dumps({"url": checkout.as_uri(), "dir_info": {"editable": True}}))
    assert install_command("train") == f"pip install '{checkout}[train]'"
    assert install_command(options="--no-deps") == f"pip install --no-deps '{checkout}'"


@pytest.mark.parametrize("record", [None, "file:///no/such/checkout", "file:///tmp/x.whl", "https://example.org/a.git"])
def test_without_a_checkout_the_command_is_for_the_current_folder(installed_from, record):
    installed_from(record and json.dumps({"url": record}))
    assert install_command("train,demo") == "pip install '.[train,demo]' in the checkout of pix2pixhd"
    assert install_command() == "pip install . in the checkout of pix2pixhd"


def test_the_plain_sources_have_no_record(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert install_command() == "pip install . in the checkout of pix2pixhd"
