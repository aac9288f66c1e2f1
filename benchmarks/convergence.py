"""Whether training with the fused operators ends at the same image quality as with plain PyTorch.

    python benchmarks/convergence.py                              every case with five seeds; continues earlier results
    python benchmarks/convergence.py --cases paper --seeds 0 1    a part of them
    python benchmarks/convergence.py --table                      print the table of the results that there are

Each case is a definition of the losses, and trains on the data of ``pix2pixhd demo`` with smaller networks and fewer
steps. For every seed there are three runs, which differ in nothing but the implementation:

* ``fused``: the fused operators, lean networks and the optimizer's step within the backward pass, as by default;
* ``plain``: ``pix2pixhd.backend("reference")`` with the plain networks and optimizer;
* ``rounded``: ``plain``, whose initial weights are changed by one rounding.

Rounding errors grow during GAN training until two runs differ visibly. The third run shows how far plain PyTorch
differs from itself, which is the measure for the difference between the first two. Every finished run is written to
``benchmarks/results/convergence.json`` at once, so an interrupted command loses one run at most.
"""

import argparse
import contextlib
import io
import json
import logging
import pathlib
import sys
import tempfile
import warnings

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from machine import described  # noqa: E402
from paired_differences import METRICS, report  # noqa: E402
from report_tables import Document  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "convergence.json"
IMPLEMENTATIONS = ("fused", "plain", "rounded")
SEEDS = 5
# The options of the loss in each case. Without the perceptual loss, imaginaire's hinge loss is that of spade. The
# perceptual loss has random weights; those of ImageNet are a download.
CASES = {
    "paper": {"lambda_vgg": 0.0},
    "nvidia": {"preset": "nvidia", "lambda_vgg": 0.0},
    "spade": {"preset": "spade", "lambda_vgg": 0.0},
    "imaginaire, LSGAN": {"preset": "imaginaire", "gan_mode": "lsgan", "lambda_vgg": 0.0},
    "mlops": {"preset": "mlops", "lambda_vgg": 0.0},
    "paper, VGG loss": {"vgg": "random"},
}
# Smaller than the demo, so that a run takes about ten seconds on one core.
SIZES = {"crops": 160, "batch": 4, "crop": 48, "ngf": 16, "ndf": 16, "blocks": 3, "epochs": 4}
VGG_SIZES = SIZES | {"crop": 32, "epochs": 2}


def sizes_of(case):
    return VGG_SIZES if "vgg" in CASES[case] else SIZES


def make_config(case, seed, implementation, data, folder):
    """The configuration of one run, from that of the demo."""
    from pix2pixhd.config.schema import ComputeOptions, LossOptions
    from pix2pixhd.demo.run import demo_config

    sizes, config = sizes_of(case), demo_config(folder, seed)
    config.data.dataroot = str(data)
    config.data.batchSize, config.data.fineSize = sizes["batch"], sizes["crop"]
    config.model.ngf, config.model.ndf, config.model.n_blocks_global = sizes["ngf"], sizes["ndf"], sizes["blocks"]
    config.loss = LossOptions(**CASES[case])
    config.optimizer.niter = sizes["epochs"] - sizes["epochs"] // 2
    config.optimizer.niter_decay = sizes["epochs"] // 2
    if implementation != "fused":
        config.compute = ComputeOptions(lean=False, optimizer_in_backward=False)
    config.run.display_freq = config.run.results_count = config.run.save_latest_freq = 0
    config.run.save_epoch_freq, config.run.loggers, config.run.metrics = sizes["epochs"], [], ["l1", "ssim"]
    config.trainer |= {
        "check_val_every_n_epoch": sizes["epochs"],
        "log_every_n_steps": 0,
        "enable_progress_bar": False,
    }
    return config


def change_by_one_rounding(networks, seed):
    """Changes every weight to the next larger or smaller number, at random."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for network in networks:
            for weight in network.parameters():
                up = torch.rand(weight.shape, generator=generator) < 0.5
                weight.copy_(torch.nextafter(weight, torch.where(up, torch.inf, -torch.inf)))


def rounding_callback(seed):
    import lightning.pytorch as pl

    class Rounding(pl.Callback):
        """Changes the initial weights."""

        def on_fit_start(self, trainer, pl_module):
            change_by_one_rounding([pl_module.netG, pl_module.netD], seed)

    return Rounding()


def run(case, seed, implementation, data):
    """Trains once; returns the metrics on the held-out crops."""
    import pix2pixhd
    from pix2pixhd.training.progress_counters import finished_steps
    from pix2pixhd.training.run import train

    warnings.filterwarnings("ignore", ".*random weights")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    callbacks = [rounding_callback(seed)] if implementation == "rounded" else []
    backend = "fused" if implementation == "fused" else "reference"
    quiet = contextlib.redirect_stdout(io.StringIO())  # the summary of the run
    with tempfile.TemporaryDirectory() as folder, pix2pixhd.backend(backend), quiet:
        config = make_config(case, seed, implementation, data, pathlib.Path(folder))
        module = train(config, callbacks=callbacks)
        metrics = module.trainer.callback_metrics
        found = {name: float(metrics[f"val_{name}"]) for name in METRICS}
        return {"steps": finished_steps(module.trainer), **found}


def read(path):
    """The results of earlier runs.

    Raises:
        SystemExit: If they are of other sizes.
    """
    if not path.exists():
        return {"sizes": {}, "machine": {}, "runs": []}
    document = json.loads(path.read_text())
    for case, sizes in document["sizes"].items():
        if sizes != sizes_of(case):
            raise SystemExit(f"{path} has results of {case!r} with other sizes: {sizes}; move the file away")
    return document


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)))
    parser.add_argument("--json", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the file and train nothing")
    options = parser.parse_args(arguments)
    if options.table and not options.json.exists():
        parser.error(f"--table: there is no {options.json}; train first, without --table")
    document = read(options.json)
    if not options.table:
        from pix2pixhd.demo.dataset import write_demo_data
        from pix2pixhd.files import write_text

        finished = {(run["case"], run["seed"], run["implementation"]) for run in document["runs"]}
        wanted = [(case, seed, name) for seed in options.seeds for case in options.cases for name in IMPLEMENTATIONS]
        missing = [key for key in wanted if key not in finished]
        with tempfile.TemporaryDirectory() as folder:
            data = pathlib.Path(folder)
            if missing:
                write_demo_data(data, SIZES["crops"])
            for number, (case, seed, name) in enumerate(missing, 1):
                found = run(case, seed, name, data)
                print(f"{number}/{len(missing)}  {case}, seed {seed}, {name}: {found}", flush=True)
                document["runs"].append({"case": case, "seed": seed, "implementation": name, **found})
                document["sizes"][case] = sizes_of(case)
                document["machine"] = {**described(), "command": "python benchmarks/convergence.py"}
                write_text(options.json, json.dumps(document, indent=1) + "\n", force=True)
    print(report(Document(options.json)))


if __name__ == "__main__":
    main()
