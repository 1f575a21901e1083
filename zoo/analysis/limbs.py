"""Errors of the ratios of limb lengths (Katircioglu et al. 2017, Fig. 5)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from zoo.analysis.models import Opened, limb_names, predict_split, write_csv
from zoo.draw import save_figure
from zoo.metrics import LimbRatioError

__all__ = ["analyse", "draw_matrices"]

Matrix = npt.NDArray[np.float64]
READINGS = ("absolute", "signed")
PARTS = ("lower", "upper", "full")


def draw_matrices(matrices: Mapping[str, Matrix], limbs: Sequence[str]) -> Figure:
    """One matrix a model, all in one colour scale; blue is 0, as in the paper.

    Args:
        matrices: label -> (L, L) errors of log(l_i / l_j).
        limbs: L names.
    """
    columns = min(len(matrices), 4)
    rows = -(-len(matrices) // columns)
    figure = Figure(figsize=(3.4 * columns + 1.0, 3.6 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    high = max(float(np.nanmax(m)) for m in matrices.values()) or 1.0
    for ax in axes[len(matrices) :]:
        ax.set_axis_off()
    for ax, (label, matrix) in zip(axes, matrices.items(), strict=False):
        shown = ax.imshow(matrix, cmap="jet", vmin=0.0, vmax=high)
        ax.set_title(f"{label}\nsum {np.nansum(matrix):.2f}", fontsize=9)
        ax.set_xticks(range(len(limbs)), limbs, rotation=90, fontsize=6)
        ax.set_yticks(range(len(limbs)), limbs, fontsize=6)
    bar = figure.colorbar(shown, ax=list(axes), shrink=0.8)
    bar.set_label("mean error of the log ratio of two limbs", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def analyse(models: Sequence[Opened], args: argparse.Namespace) -> list[Path]:
    """Writes ``limb_ratios.png``, ``limb_ratios.csv`` (cells) and ``limb_ratio_sums.csv``."""
    cells, sums = [], []
    pictures: dict[str, Matrix] = {}
    limbs = limb_names(models[0].model.skeleton)
    for one in models:
        metric = LimbRatioError(one.model.skeleton)
        found = predict_split(one, args)
        metric.update(found.pred, found.truth, found.valid)
        result = metric.compute()
        for reading in READINGS:
            matrix = result[reading].double().numpy()
            if reading == "absolute":
                pictures[one.label] = matrix
            for i, a in enumerate(limbs):
                cells += [[one.label, reading, a, b, float(matrix[i, j])]
                          for j, b in enumerate(limbs)]  # fmt: skip
            totals = [float(result[f"{reading}_{part}"]) for part in PARTS]
            sums.append([one.label, reading, *totals, len(found.pred)])
    return [
        save_figure(draw_matrices(pictures, limbs), args.out / "limb_ratios.png"),
        write_csv(
            args.out / "limb_ratios.csv", ("model", "reading", "limb", "over", "error"), cells
        ),
        write_csv(args.out / "limb_ratio_sums.csv", ("model", "reading", *PARTS, "poses"), sums),
    ]
