"""Two processes on the CPU compute the gradients of the joint batch, keep equal weights, and write one set of files."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import yaml

from pix2pixhd.checkpoints.format import read_checkpoint
from pix2pixhd.checkpoints.generators import load_generator
from pix2pixhd.config.schema import DataOptions, LossOptions, ModelOptions, OptimizerOptions
from pix2pixhd.data import PairedDataset, encode_input, find_pairs
from pix2pixhd.inference.padding import generate_padded
from pix2pixhd.training.distributed import AveragedGradients, _buckets
from pix2pixhd.training.module import Pix2PixHD
from tests.helpers import run_two_processes

ROOT = pathlib.Path(__file__).resolve().parents[2]


def make_module(seed=0):
    torch.manual_seed(seed)
    module = Pix2PixHD(
        ModelOptions(ngf=4, n_downsample_global=2, n_blocks_global=1, ndf=4, n_layers_D=2),
        DataOptions(label_nc=4),
        LossOptions(lambda_vgg=0.0),
        OptimizerOptions(gradient_clip_val=1e-2),
    ).double()
    module.manual_backward = lambda loss, **options: loss.backward(**options)
    return module


def inputs():
    generator = torch.Generator().manual_seed(1)
    condition = torch.rand(4, 5, 16, 24, generator=generator, dtype=torch.float64)
    return condition, torch.rand(4, 3, 16, 24, generator=generator, dtype=torch.float64) * 2 - 1


def gradients(module, own):
    condition, real = inputs()
    module.compute_gradients(condition[own], real[own])
    plain = {name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad}
    for optimizer in module.configure_optimizers()[0]:
        module.on_before_optimizer_step(optimizer)
    return plain | {f"clipped {name}": p.grad for name, p in module.named_parameters() if p.requires_grad}


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    module = make_module(seed=rank)  # different weights in every process, which the strategy must synchronize
    strategy = AveragedGradients()
    strategy.model = module
    strategy.configure_ddp()
    torch.save(gradients(module, slice(2 * rank, 2 * rank + 2)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_gradients_of_two_processes_equal_those_of_the_joint_batch(tmp_path):
    run_two_processes(work, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    joint = gradients(make_module(), slice(None))
    assert not torch.equal(joint["netG.model.1.weight"], joint["clipped netG.model.1.weight"])
    assert first.keys() == joint.keys()
    torch.testing.assert_close(first, joint, rtol=1e-9, atol=1e-15)


def test_buckets_contain_every_tensor_once_and_one_dtype_each():
    tensors = [torch.zeros(2**20), torch.zeros(7 * 2**20), torch.zeros(1, dtype=torch.float64), torch.zeros(3)]
    buckets = _buckets(tensors)
    assert [[x.numel() for x in bucket] for bucket in buckets] == [[2**20, 7 * 2**20], [1], [3]]
    assert _buckets([]) == []


def validation_error(checkpoint, data):
    """Computes the mean absolute difference between generated and real images in one process."""
    generator = load_generator(checkpoint)
    samples = PairedDataset(find_pairs(data, "test"), data, 4, augment=False)
    total = 0.0
    for sample in (samples[k] for k in range(len(samples))):
        condition = encode_input(sample["input"][None], sample["instance"][None], data.label_nc, torch.float32)
        with torch.no_grad():
            total += (
                (generate_padded(generator.network, condition, 4)[0] - sample["image"]).abs().double().mean().item()
            )
    return total / len(samples)


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_under_another_launcher_and_validates(make_config, data_root, tmp_path):
    for kind in ("label", "inst", "img"):  # three validation images, one of which is loaded twice
        shutil.copy(data_root / f"train_{kind}" / "a.png", data_root / f"test_{kind}" / "z.png")
    config = make_config(epochs=2)
    sections = {
        "data": {
            "dataroot": str(data_root),
            "label_nc": 4,
            "resize_or_crop": "crop",
            "fineSize": 16,
            "nThreads": 0,
            "val_phase": "test",
        },
        "model": vars(config.model),
        "loss": {"lambda_vgg": 0.0, "pool_size": 2},
        "optimizer": {"niter": 2, "niter_decay": 0, "gradient_clip_val": 0.5},
        "run": {"output": str(tmp_path / "run"), "display_freq": 1, "sample_count": 1},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(sections))
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for start, arguments in (
        (torchrun, ["--trainer.max_steps=3"]),  # stops all processes within the second epoch
        ([], ["--trainer.devices=2", "--resume", "--optimizer.niter=3"]),  # Lightning starts the second process
    ):
        command = [sys.executable, *start, "-m", "pix2pixhd", "train", "--config", str(tmp_path / "config.yaml")]
        done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    rows = (tmp_path / "run" / "logs" / "run_1" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val_L1")
    reported = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    assert reported[-1] == pytest.approx(validation_error(last, config.data), rel=1e-4)
    saved = read_checkpoint(last)
    pools = [process["pool"] for process in torch.load(last, weights_only=True)["processes"]]
    assert len(pools) == 2
    assert pools[0]["random"] != pools[1]["random"]
    assert all(torch.isfinite(value).all() for value in saved.weights.values())
    # Three images for two processes: two steps an epoch, three epochs.
    assert sorted(p.name for p in (tmp_path / "run" / "samples").iterdir()) == [
        f"step_{k:06d}.png" for k in range(1, 7)
    ]
    assert sorted(p.name for p in (tmp_path / "run" / "logs").iterdir()) == ["run_0", "run_1"]
