"""Percentage of correctly estimated parts (Katircioglu et al. 2017, Table 6)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from zoo.analysis.models import Opened, predict_split, write_csv
from zoo.draw import save_figure
from zoo.metrics import PCP, pcp_parts

__all__ = ["PAPER", "analyse", "draw_bars"]

PAPER = {
    "pelvis": 66.0, "torso": 100.0, "upper_arms": 66.5, "lower_arms": 16.5, "upper_legs": 83.0,
    "lower_legs": 66.5, "all": 63.1,
}  # fmt: skip
"""OURS-Autoencoder of Table 6, on KTH Multiview Football II, threshold 0.5."""


def draw_bars(scores: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Grouped bars: label -> part -> %."""
    parts = list(next(iter(scores.values())))
    figure = Figure(figsize=(1.1 * len(parts) + 1.5, 3.4), layout="constrained")
    ax = figure.subplots()
    width = 0.8 / len(scores)
    for k, (label, values) in enumerate(scores.items()):
        places = np.arange(len(parts)) + (k - (len(scores) - 1) / 2) * width
        bars = ax.bar(places, [values[p] for p in parts], width, label=label)
        ax.bar_label(bars, fmt="%.0f", fontsize=7)
    ax.set_xticks(range(len(parts)), [p.replace("_", " ") for p in parts])
    ax.set_ylim(0, 108)
    ax.set_ylabel("correct parts, %")
    ax.set_title(title, fontsize=9)
    figure.legend(fontsize=8, loc="outside right upper", frameon=False)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return figure


def analyse(models: Sequence[Opened], args: argparse.Namespace) -> list[Path]:
    """Writes ``pcp.png`` and ``pcp.csv``, the paper's row on its own data at the end."""
    scores: dict[str, dict[str, float]] = {}
    counts = []
    for one in models:
        metric = PCP(pcp_parts(one.model.skeleton), args.threshold, args.rule)
        found = predict_split(one, args)
        metric.update(found.pred, found.truth, found.valid)
        scores[one.label] = {name: float(value) for name, value in metric.compute().items()}
        counts.append(len(found.pred))
    names = list(PAPER)
    rule = f"{args.rule} rule, threshold {args.threshold:g}"
    data = models[0].data.protocol(args.split).name
    rows: list[list[object]] = [
        [label, data, rule, count, *(values[n] for n in names)]
        for (label, values), count in zip(scores.items(), counts, strict=True)
    ]
    rows.append([
        "paper: OURS-Autoencoder", "KTH Multiview Football II", "mean rule, threshold 0.5", "",
        *PAPER.values(),
    ])  # fmt: skip
    figure = draw_bars(scores, f"{data}, {rule}")
    return [
        save_figure(figure, args.out / "pcp.png"),
        write_csv(args.out / "pcp.csv", ("model", "data", "rule", "poses", *names), rows),
    ]
