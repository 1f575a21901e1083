"""The latent space of a pose autoencoder in the plane (Katircioglu et al. 2017, Fig. 6)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from zoo.analysis.models import Opened, batches, chosen, write_csv
from zoo.draw import LEFT, RIGHT, save_figure
from zoo.errors import DataError, UsageError
from zoo.skeleton import Skeleton

__all__ = ["analyse", "draw_embedding", "embed"]

Floats = npt.NDArray[np.floating[Any]]
_SHOWN = 40  # poses drawn over the points


def embed(codes: Floats, perplexity: float, seed: int) -> Floats:
    """t-SNE of (N, D) codes by scikit-learn, (N, 2); the same seed gives the same picture.

    Raises:
        UsageError: scikit-learn is missing, or the perplexity is not below N.
    """
    if not 0 < perplexity < len(codes):
        raise UsageError(
            f"--perplexity {perplexity:g}: it must lie between 0 and the number of poses, "
            f"{len(codes)}"
        )
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise UsageError("zoo analyse tsne needs scikit-learn: pip install scikit-learn") from error
    method = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    plane: Floats = method.fit_transform(np.asarray(codes, dtype=np.float32))
    return plane


def _spread(plane: Floats, count: int) -> list[int]:
    """Points far from each other, greedily: the next one is the farthest from those before."""
    picked = [int(np.linalg.norm(plane - plane.mean(0), axis=1).argmin())]
    away = np.full(len(plane), np.inf)
    while len(picked) < min(count, len(plane)):
        away = np.minimum(away, np.linalg.norm(plane - plane[picked[-1]], axis=1))
        picked.append(int(away.argmax()))
    return picked


def draw_embedding(
    plane: Floats, groups: Sequence[str], poses: Floats, skeleton: Skeleton, title: str = ""
) -> Figure:
    """Points coloured by group, with some of their poses drawn over them as the camera sees them.

    Args:
        plane: (N, 2).
        groups: N names, such as actions.
        poses: (N, J, 3) mm, camera frame.
        skeleton: of the poses.
        title: above.
    """
    figure = Figure(figsize=(8.6, 7.2), layout="constrained")
    ax = figure.subplots()
    names = sorted(set(groups))
    colours = np.array([names.index(g) for g in groups])
    for k, name in enumerate(names):
        of = colours == k
        ax.scatter(plane[of, 0], plane[of, 1], s=12, alpha=0.7, label=name, color=f"C{k % 10}",
                   marker="os^Dv"[k // 10 % 5], linewidths=0)  # fmt: skip
    extent = np.ptp(plane, axis=0).max()
    scale = 0.075 * extent / 1700.0  # a standing person over the picture's side
    for k in _spread(plane, _SHOWN):
        drawn = plane[k] + poses[k, :, :2] * [scale, -scale]
        for child, parent in skeleton.bones:
            side = skeleton.joints[child][:2]
            colour = {"r_": RIGHT, "l_": LEFT}.get(side, "#303030")
            ax.plot(*drawn[[parent, child]].T, color=colour, linewidth=1.1, zorder=3)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(title, fontsize=9)
    if len(names) > 1:
        figure.legend(fontsize=7, loc="outside right upper", frameon=False)
    return figure


def analyse(models: Sequence[Opened], args: argparse.Namespace) -> list[Path]:
    """Writes ``tsne.png`` and ``tsne.csv``: the plane's coordinates of each pose with its ids.

    Raises:
        UsageError: the model has no latent space of poses.
        DataError: fewer than three complete poses.
    """
    (one,) = models
    encode = getattr(one.model, "pose_codes", None)
    if encode is None or encode(torch.zeros(1, len(one.model.skeleton), 3)) is None:
        raise UsageError(
            f"{one.label} has no latent space of poses; `zoo analyse tsne` takes a model with an "
            "autoencoder, such as latent-ae"
        )
    keys = ("subject", "action", "camera", "sequence", "frame")
    codes, poses, ids = [], [], []
    with torch.inference_mode():
        for batch in batches(one, args.split, chosen(one, args), size=args.batch_size):
            cut = cast(dict[str, torch.Tensor], one.model.select_frames(batch))
            pose = cut["joints_3d"][:, 0]
            whole = cut["valid_3d"][:, 0].all(-1)
            codes.append(encode(pose[whole]).float().cpu().numpy())
            poses.append(pose[whole].cpu().numpy())
            ids.append(torch.stack([cut[key][whole] for key in keys], 1).cpu().numpy())
    code, shown, number = (np.concatenate(parts) for parts in (codes, poses, ids))
    if len(code) < 3:
        raise DataError(f"{len(code)} complete poses; t-SNE needs at least 3")
    plane = embed(code, min(args.perplexity, (len(code) - 1) / 3), args.seed)
    names = [one.data.action_names[a] for a in number[:, 1]]
    title = f"{one.label}: codes of {len(code)} {args.split} poses, {code.shape[1]} dimensions"
    figure = draw_embedding(plane, names, shown, one.model.skeleton, title)
    rows = [
        [float(x), float(y), name, *ids_of.tolist()]
        for (x, y), name, ids_of in zip(plane, names, number[:, [0, 2, 3, 4]], strict=True)
    ]
    head = ("x", "y", "action", "subject", "camera", "sequence", "frame")
    return [
        save_figure(figure, args.out / "tsne.png"),
        write_csv(args.out / "tsne.csv", head, rows),
    ]
