"""The chart of the README: peak memory of the VGG loss, from benchmarks/results/vgg_loss_cpu.json.

python benchmarks/memory_chart.py
"""

import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIZE = "1024x512"
BARS = {
    "plain float32": "plain PyTorch",
    "compiled float32": "torch.compile",
    "checkpoint float32": "checkpointing",
    "ours float32": "pix2pixhd",
    "plain bfloat16": "plain PyTorch, bf16",
    "compiled bfloat16": "torch.compile, bf16",
    "ours bfloat16": "pix2pixhd, bf16",
}


def main() -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    measured = json.loads((ROOT / "benchmarks/results/vgg_loss_cpu.json").read_text())["results"][SIZE]
    names = list(reversed(BARS))
    peaks = [measured[name]["peak"] / 1e6 for name in names]
    figure, axes = pyplot.subplots(figsize=(5.2, 3.0), dpi=100)
    colors = ["#2878b5" if name.startswith("ours") else "#b8bec6" for name in names]
    bars = axes.barh([BARS[name] for name in names], peaks, color=colors)
    axes.bar_label(bars, [f"{peak:.0f} MB" for peak in peaks], padding=3, fontsize=9)
    axes.set_title(f"Peak memory of the VGG loss, forward + backward, {SIZE}", fontsize=9, loc="left", x=-0.3)
    axes.set_xlim(0, max(peaks) * 1.18)
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(ROOT / "docs/images/memory.png")


if __name__ == "__main__":
    main()
