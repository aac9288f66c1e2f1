"""VGGLoss in two DDP processes: the averaged gradients match one process with the whole batch."""

import warnings

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pix2pixhd.losses import VGGLoss
from tests.helpers import run_two_processes

from .helpers import random_images


def generator():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(8, 3, 1)).double()


def gradients(netG, label, real, criterion):
    criterion(torch.tanh(netG(label)), real).backward()
    return [parameter.grad.clone() for parameter in netG.parameters()]


def loss_of(vgg_file):
    warnings.simplefilter("ignore")
    return VGGLoss(vgg=vgg_file).double()


def work(rank, vgg_file, folder, label, real):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    own = slice(2 * rank, 2 * rank + 2)
    netG = DistributedDataParallel(generator())
    torch.save(gradients(netG, label[own], real[own], loss_of(vgg_file)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_match_one_process_with_the_whole_batch(vgg_file, tmp_path):
    label, real = random_images(4, 3, 32, 32).double(), random_images(4, 3, 32, 32, seed=1).double()
    run_two_processes(work, vgg_file, tmp_path, label, real)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    joint = gradients(generator(), label, real, loss_of(vgg_file))
    torch.testing.assert_close(first, joint, rtol=1e-9, atol=1e-15)
