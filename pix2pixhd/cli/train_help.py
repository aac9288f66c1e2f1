"""The short help of ``pix2pixhd train``, which does not import PyTorch or Lightning."""

from __future__ import annotations

__all__ = ["MOST_USED", "short_help"]

# The most used options, in the order in which a user needs them.
MOST_USED: dict[str, str] = {
    "--config": "YAML file, or a shipped name: cityscapes_512p, cityscapes_1024p, pairs",
    "--resume": "resume the run in run.output from its last checkpoint, with its config.yaml",
    "--data.dataroot": "folder with train_label/, train_inst/, train_img/ (or train_A/, train_B/)",
    "--data.label_nc": "number of classes in the label maps; 0 for images as input",
    "--data.no_instance": "true: train without instance maps",
    "--data.batchSize": "batch size per process",
    "--data.val_phase": "prefix of the folders to validate on, for example test",
    "--model.netG": "global, or local for 1024p and above",
    "--loss.preset": "paper, nvidia, spade, imaginaire or mlops",
    "--loss.perceptual": "perceptual loss: vgg, lpips or none",
    "--optimizer.lr": "learning rate of Adam",
    "--optimizer.niter": "epochs with the initial learning rate",
    "--optimizer.niter_decay": "epochs in which the learning rate then decays linearly to 0",
    "--run.output": "folder for checkpoints, sample images and logs",
    "--run.load_pretrain": "initial weights: a run folder, a .ckpt, or a folder with NVIDIA's latest_net_G.pth",
    "--trainer.devices": "number of GPUs or processes, or a list of GPU ids such as 0,2",
    "--trainer.precision": "32-true, bf16-mixed, 16-mixed, bf16-true or 64-true",
}


def short_help() -> str:
    """Returns the usage, the most used options, and how to list the others."""
    width = max(map(len, MOST_USED)) + 2
    lines = [f"  {name:<{width}}{purpose}" for name, purpose in MOST_USED.items()]
    return "\n".join(
        [
            "usage: pix2pixhd train --config FILE [--resume] [--SECTION.OPTION VALUE ...]",
            "",
            "Train a generator on a folder of paired images. Options are read from a YAML file; options on the command",
            "line override the file.",
            "",
            "most used options:",
            *lines,
            "",
            "examples:",
            "  pix2pixhd train --config cityscapes_512p --data.dataroot datasets/cityscapes --run.output runs/city",
            "  pix2pixhd train --resume --run.output runs/city",
            "",
            "--help-all lists all options with their defaults; --print_config prints them as a YAML file.",
        ]
    )
