import numpy as np
import pytest
from PIL import Image


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def make_data():
    """Writes a small dataset in NVIDIA's layout. ``label_nc=0`` writes A/B images."""

    def make(root, names=("a", "b", "c"), size=(24, 32), label_nc=4, instances=True, phase="train"):
        rng = np.random.default_rng(len(names))
        for name in names:
            if label_nc:
                label = rng.integers(0, label_nc, size, dtype=np.uint8)
                save(root / f"{phase}_label" / f"{name}.png", label)
            else:
                save(root / f"{phase}_A" / f"{name}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
            if instances:
                ids = rng.integers(40000, 65536, size).astype(np.uint16)
                save(root / f"{phase}_inst" / f"{name}.png", ids)
            folder = "img" if label_nc else "B"
            save(root / f"{phase}_{folder}" / f"{name}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        return root

    return make


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """Gives every test an empty cache folder, so that the user's cache is neither read nor written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
