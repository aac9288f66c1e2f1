"""Training steps for the benchmarks, with the same weights: NVIDIA's in plain PyTorch, and this package's."""

import argparse
import contextlib
import dataclasses
import os

from arguments import image_size, positive

# Huge pages for large tensors, as the package's commands request them, for both implementations.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

IMPLEMENTATIONS = ["original", "ours"]
DTYPES = ["float32", "bfloat16"]


@dataclasses.dataclass
class Setup:
    """Networks and image of a step. The defaults are the paper's 512p setting."""

    size: str = "1024x512"
    network: str = "global"
    ngf: int = 64
    ndf: int = 64
    n_downsample: int = 4
    n_blocks: int = 9
    num_D: int = 2
    label_nc: int = 35
    empty_convolutions: bool = False

    @property
    def width_height(self):
        return tuple(int(side) for side in self.size.split("x"))

    def arguments(self):
        """The command line from which ``read`` returns this setup."""
        found = []
        for name, value in dataclasses.asdict(self).items():
            option = f"--{name.replace('_', '-')}"
            found += ([option] if value else []) if isinstance(value, bool) else [option, str(value)]
        return found

    @classmethod
    def add_arguments(cls, parser, **defaults):
        """Add one option per field; ``defaults`` replace those of the class."""
        for field in dataclasses.fields(cls):
            if field.type is bool:
                continue
            default = defaults.get(field.name, field.default)
            help_text = "width x height" if field.name == "size" else None
            choices = ["global", "local"] if field.name == "network" else None
            option = f"--{field.name.replace('_', '-')}"
            kind = image_size if field.name == "size" else positive(int) if field.type is int else field.type
            parser.add_argument(option, type=kind, default=default, choices=choices, help=help_text)

    @staticmethod
    def add_empty_convolutions(parser):
        """Add the option of the commands that measure memory alone."""
        text = "leave out the convolutions' computation and workspaces; see benchmarks/empty_convolutions.py"
        parser.add_argument("--empty-convolutions", action="store_true", help=text)

    @classmethod
    def read(cls, options: argparse.Namespace):
        return cls(**{name: value for name, value in vars(options).items() if name in cls.__dataclass_fields__})


def networks(setup, device="cpu"):
    import torch

    from pix2pixhd.models import define_D, define_G

    torch.manual_seed(0)
    channels = setup.label_nc + 1  # one-hot labels and instance edges
    netG = define_G(channels, 3, setup.ngf, setup.network, setup.n_downsample, setup.n_blocks)
    netD = define_D(channels + 3, setup.ndf, 3, num_D=setup.num_D, getIntermFeat=True)
    return netG.to(device), netD.to(device)


def batch(setup, device="cpu"):
    """An encoded label map of 16×16 regions, and an image."""
    import torch
    import torch.nn.functional as F

    width, height = setup.width_height
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, setup.label_nc, (1, height // 16, width // 16), generator=generator)
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    one_hot = F.one_hot(labels, setup.label_nc).permute(0, 3, 1, 2).float()
    condition = torch.cat([one_hot, torch.zeros(1, 1, height, width)], dim=1)
    real = torch.rand(1, 3, height, width, generator=generator) * 2 - 1
    return condition.to(device), real.to(device)


def adam(netG, netD, fused=False):
    import torch

    from pix2pixhd.training.optimizer import Adam

    kind = Adam if fused else torch.optim.Adam
    return [kind(net.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=fused) for net in (netG, netD)]


class OurStep:
    """One optimization step of G and D as in the training package, with the interface of ``OriginalStep``."""

    def __init__(self, netG, netD, vgg, optimizers):
        from pix2pixhd.losses import DiscriminatorLoss, GeneratorLoss

        self.netG, self.netD, self.vgg = netG, netD, vgg
        self.optimizers = optimizers
        self.loss_G = GeneratorLoss(preset="nvidia", vgg=vgg).to(next(netG.parameters()).device)
        self.loss_D = DiscriminatorLoss(preset="nvidia")

    def __call__(self, condition, real):
        from pix2pixhd.training.optimizer import stepping_in_backward
        from pix2pixhd.training.step import compute_gradients

        for optimizer in self.optimizers:
            optimizer.zero_grad()
        with stepping_in_backward(self.optimizers):
            terms = compute_gradients(self.netG, self.netD, self.loss_G, self.loss_D, condition, real)
        for optimizer in self.optimizers:
            optimizer.step()
        return terms


def make_step(implementation, setup, device="cpu", channels_last=False):
    """A function from the encoded input and the image to the loss terms, which updates the weights."""
    import torch
    from original_step import OriginalStep

    from pix2pixhd.models.vgg import load_vgg
    from pix2pixhd.nn import lean

    netG, netD = networks(setup, device)
    vgg = load_vgg("random").to(device)
    optimizers = adam(netG, netD, fused=implementation == "ours")  # as in the training package
    if implementation == "original":
        vgg.to(memory_format=torch.contiguous_format)
        return OriginalStep(netG, netD, vgg, optimizers)
    for net in (netG, netD):
        if channels_last:
            net.to(memory_format=torch.channels_last)
        lean(net)
    return OurStep(netG, netD, vgg, optimizers)


def free_gradients(step):
    """Free the gradients that a step leaves behind.

    The memory before a step is then the same for all implementations, whenever they free their gradients.
    """
    for optimizer in step.optimizers:
        optimizer.zero_grad()


@contextlib.contextmanager
def prepared(implementation, dtype, setup, device="cpu"):
    """Yield a step that runs in ``dtype`` with the implementation's operators, and its inputs."""
    import torch

    import pix2pixhd

    half = torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bfloat16")
    convolutions = contextlib.nullcontext()
    if setup.empty_convolutions:
        from empty_convolutions import empty_convolutions

        convolutions = empty_convolutions(device)
    with convolutions, pix2pixhd.backend("reference" if implementation == "original" else "fused"):
        # channels-last under autocast, as in the training package
        step = make_step(implementation, setup, device, channels_last=dtype == "bfloat16")

        def run(condition, real):
            with half:
                return step(condition, real)

        yield step, run, batch(setup, device)
