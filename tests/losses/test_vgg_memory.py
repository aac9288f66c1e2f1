"""VGGLoss with a memory limit: processing in groups of images and bands of rows."""

import copy
import itertools

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from pix2pixhd.losses import VGGLoss
from pix2pixhd.models.vgg import PAPER_LAYERS
from pix2pixhd.ops import perceptual_engine
from pix2pixhd.ops.perceptual_distance import Comparison
from pix2pixhd.ops.perceptual_engine import TilePass, run_tile, transposed
from pix2pixhd.ops.perceptual_tiling import plan_tiles

from .helpers import narrow_vgg, random_images


@pytest.fixture(scope="module")
def narrow():
    return narrow_vgg("vgg19", PAPER_LAYERS)


def tiles_of(vgg, shape, itemsize, limit, squared=False, sides=2):
    channels = [layer.out_channels for layer in vgg.convolutions()]
    return plan_tiles(vgg.layer_kinds, channels, shape, itemsize, squared, sides, limit)


def minimum_limit(vgg, shape, itemsize=8, squared=False):
    """Returns the smallest memory limit at which images are not split into bands."""
    low, high = 1, 2**40
    while high - low > 1:
        middle = (low + high) // 2
        try:
            whole = len(tiles_of(vgg, shape, itemsize, middle, squared)) <= shape[0]
        except ValueError:
            whole = False
        low, high = (low, middle) if whole else (middle, high)
    return high


@pytest.fixture(scope="module")
def wide(vgg):
    return copy.deepcopy(vgg).double()


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors that were allocated in this mode.

    The Python object of a storage may be freed and created again while the storage lives, so storages are identified by
    PyTorch's own weak references.
    """

    def __init__(self, *given):
        super().__init__()
        self.peak = 0
        self.given = {tensor.untyped_storage()._cdata for tensor in given}
        self.found = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.given:
                    self.found.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.peak = max(self.peak, self.now)
        return out

    @property
    def now(self):
        self.found = {key: value for key, value in self.found.items() if not value[0].expired()}
        return sum(size for _, size in self.found.values())


def uncounted_transposed(weight):
    with _disable_current_modes():
        return transposed(weight)


def test_transposing_weights_allocates_two_copies():
    weight = torch.randn(64, 96, 3, 3, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    with LiveBytes(weight) as live:
        found = transposed(weight)
    assert live.peak == 2 * weight.nbytes
    assert live.now == found.nbytes == weight.nbytes


@pytest.mark.parametrize(
    ("name", "layers", "height"),
    [
        ("vgg19", PAPER_LAYERS, 384),
        ("vgg19", PAPER_LAYERS, 415),
        ("vgg16", ("relu1_2", "relu2_2", "relu3_3", "relu4_3"), 401),
        ("vgg19", ("relu5_4",), 401),
    ],
)
def test_bands_match_the_value_and_gradient_without_limit(name, layers, height):
    vgg = narrow_vgg(name, layers).double()
    fake, real = (
        random_images(2, 3, height, 17).double().requires_grad_(),
        random_images(2, 3, height, 17, seed=1).double(),
    )
    mask = random_images(2, 1, height, 17, seed=2).double()
    whole = VGGLoss(vgg=vgg)
    features = whole.features(real)
    expected = [whole(fake, real, mask), whole(fake, features)]
    gradients = [torch.autograd.grad(loss, fake)[0] for loss in expected]
    needed = minimum_limit(vgg, fake.shape)
    counts = set()
    for share in (1.5, 0.8, 0.72):
        limit = int(share * needed)
        counts.add(len(tiles_of(vgg, fake.shape, 8, limit)))
        bounded = VGGLoss(vgg=vgg, memory_limit=limit)
        # With and without a mask, against the image and against its features.
        found = bounded(fake, real, mask), bounded(fake, features)
        for loss, value, gradient in zip(found, expected, gradients, strict=True):
            torch.testing.assert_close(loss, value, rtol=1e-12, atol=0)
            torch.testing.assert_close(torch.autograd.grad(loss, fake)[0], gradient, rtol=1e-9, atol=1e-15)
    assert 2 in counts  # one image at a time
    assert max(counts) >= 4  # bands of rows


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [1.0, 0.7, 0.5])
def test_peak_memory_is_close_to_but_below_the_limit(narrow, squared, dtype, share, monkeypatch):
    """Counts the feature maps, saved bits and gradients of every tile, but not the copies of weights."""
    monkeypatch.setattr(perceptual_engine, "transposed", uncounted_transposed)
    shape = (1, 3, 512, 16)
    fake, real = random_images(*shape), random_images(*shape, seed=1)
    stack, comparison = narrow.conv_stack().to(dtype), Comparison([1.0] * 5, "mse" if squared else "l1")
    limit = int(share * minimum_limit(narrow, shape, dtype.itemsize, squared))
    tiles, peak = tiles_of(narrow, shape, dtype.itemsize, limit, squared), 0
    assert (len(tiles) > 1) == (share < 1.0)
    for tile in tiles:
        with torch.no_grad(), LiveBytes(fake, real) as live:
            run_tile(TilePass(stack, comparison, tile, True), fake, real, [], None, dtype)
        peak = max(peak, live.peak)
    assert peak <= limit + 4096  # a few scalars
    assert peak > 0.7 * limit


def test_tiles_are_as_few_as_the_limit_allows(wide):
    shape = (5, 3, 64, 32)
    one = minimum_limit(wide, (1, *shape[1:]))
    assert [(p.first, p.end) for p in tiles_of(wide, shape, 8, 2 * one)] == [(0, 2), (2, 4), (4, 5)]
    assert len(tiles_of(wide, shape, 8, 5 * one)) == 1
    assert len(tiles_of(wide, shape, 8, None)) == 1


def test_bands_cover_every_row_once(wide):
    shape = (1, 3, 1000, 32)
    for share in (0.6, 0.4, 0.3):
        tiles = tiles_of(wide, shape, 8, int(share * minimum_limit(wide, shape)))
        for level in range(5):
            rows = [tile.stages[level] for tile in tiles]
            assert rows[0].own_first == 0
            assert rows[-1].own_end == 1000 >> level
            assert all(a.own_end == b.own_first for a, b in itertools.pairwise(rows))
            assert all(0 <= r.first <= r.own_first < r.own_end <= r.end <= r.height for r in rows)


def test_too_low_limit_is_rejected(vgg):
    x = torch.zeros(1, 3, 512, 256)
    with pytest.raises(
        ValueError, match=r"memory_limit is 10 MiB, but images of 512x256 need at least \d+ MiB in 32-bit"
    ):
        VGGLoss(vgg=vgg, memory_limit=10 * 2**20)(x, x)


def test_half_precision_with_a_limit_matches_the_result_without(narrow):
    fake, real = random_images(1, 3, 400, 16).requires_grad_(), random_images(1, 3, 400, 16, seed=1)
    assert minimum_limit(narrow, fake.shape, 2) > 2**20
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        whole = VGGLoss(vgg=narrow, dtype=dtype)(fake, real)
        bounded = VGGLoss(vgg=narrow, dtype=dtype, memory_limit=2**20)(fake, real)
        torch.testing.assert_close(bounded, whole, rtol=1e-4, atol=0)
        (a,), (b,) = (torch.autograd.grad(loss, fake) for loss in (bounded, whole))
        assert (a - b).norm() / b.norm() < tolerance
