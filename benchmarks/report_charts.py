"""The charts of ``bench_report.py``."""

from report_tables import FLAT_FROM, FLAT_WITHIN, cost_per_pixel, over_size, times_sign

from pix2pixhd.bench.results import TITLES

COLORS = {"fused": "#2878b5"}
OTHER = "#b8bec6"


def memory_chart(path, vgg):
    """Draws the peak memory of the VGG loss."""
    from matplotlib.figure import Figure

    bars = [
        (name, dtype)
        for dtype in ("float32", "bfloat16")
        for name in ("plain", "compiled", *(["checkpoint"] if dtype == "float32" else []), "fused")
    ]
    peaks = [vgg.of("VGGLoss", dtype).memory[name]["peak"] / 1e6 for name, dtype in bars]
    figure = Figure(figsize=(5.2, 3.0), dpi=100, layout="tight")
    axes = figure.subplots()
    labels = [TITLES[name] + (", bf16" if dtype == "bfloat16" else "") for name, dtype in bars]
    drawn = axes.barh(labels, peaks, color=[COLORS.get(name, OTHER) for name, _ in bars])
    axes.bar_label(drawn, [f"{peak:.0f} MB" for peak in peaks], padding=3, fontsize=9)
    axes.set_title("Peak memory of the VGG loss, forward + backward, 1024x512", fontsize=8.5, loc="left", x=-0.6)
    axes.set(xlim=(0, max(peaks) * 1.18), xticks=[])
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.savefig(path)


def cost_chart(path, cost):
    """Draws the time per pixel over the image size, one panel per case, and the band that is the goal."""
    from matplotlib.figure import Figure

    groups = over_size(cost)
    figure = Figure(figsize=(2.9 * len(groups), 2.9), dpi=100, layout="constrained")
    for axes, (case_name, cases) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        unit, factor = ("µs", 1e6) if cost_per_pixel(cases[-1], "fused") >= 1e-6 else ("ns", 1e9)
        positions = range(len(cases))
        for name in ("plain", "fused"):
            costs = [factor * cost_per_pixel(case, name) for case in cases]
            axes.plot(positions, costs, "o-", color=COLORS.get(name, OTHER), label=TITLES[name])
        flat = [index for index, case in enumerate(cases) if case.setup.width * case.setup.height >= FLAT_FROM]
        least = min(factor * cost_per_pixel(cases[index], "fused") for index in flat)
        band = [least, (1 + FLAT_WITHIN) * least]
        axes.fill_between([flat[0], flat[-1]], *band, color=COLORS["fused"], alpha=0.2, label="goal: within 10 %")
        axes.set_title(f"{case_name}, {unit} per pixel", fontsize=8.5, loc="left")
        axes.set_xticks(positions, [times_sign(case.size) for case in cases], rotation=20, fontsize=7.5)
        axes.set_ylim(0, None)
        axes.tick_params(axis="y", labelsize=7.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path)
