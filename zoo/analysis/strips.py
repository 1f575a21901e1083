"""Frames of a clip side by side: picture, each model, truth (Katircioglu et al. 2017, Fig. 10)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from zoo.analysis.models import Opened, batches, chosen, write_csv
from zoo.base import PoseModule
from zoo.batch import FRAME_KEYS, PoseBatch
from zoo.draw import draw_strip, save_figure
from zoo.errors import UsageError
from zoo.pose_errors import acceleration_error, mpjpe

__all__ = ["analyse", "clip_poses"]

Floats = npt.NDArray[np.floating[Any]]


def _frames(batch: PoseBatch, start: int, count: int) -> PoseBatch:
    entries = cast(dict[str, Tensor], batch)
    cut = {k: v[:, start : start + count] if k in FRAME_KEYS else v for k, v in entries.items()}
    return cast(PoseBatch, cut)


@torch.inference_mode()
def clip_poses(model: PoseModule, clip: PoseBatch, frames: int) -> Tensor:
    """(B, frames, J, 3) mm: the model's pose of each of the clip's middle frames.

    Every frame is predicted from the window that the model wants for it: centred, or ending at it.

    Args:
        model: in eval mode.
        clip: of ``frames + 2 (T - 1)`` frames, T those of the model's window.
        frames: in the middle of the clip.
    """
    size = model.input_spec.frames
    at = model.predicted_frames[len(model.predicted_frames) // 2]
    row = model.predicted_frames.index(at)
    poses = [
        model(_frames(clip, size - 1 + k - at, size))["pred_3d"][:, row] for k in range(frames)
    ]
    return torch.stack(poses, 1)


def analyse(models: Sequence[Opened], args: argparse.Namespace) -> list[Path]:
    """Writes ``strip_000.png`` ... and ``strips.csv``: MPJPE by frame, acceleration error by clip.

    Raises:
        UsageError: an even number of frames, or no rate.
    """
    if args.frames < 1 or args.frames % 2 == 0:
        raise UsageError(f"--frames must be odd and at least 1, not {args.frames}")
    windows = [one.model.input_spec for one in models if one.model.input_spec.frames > 1]
    fps = args.fps or (windows[0].clip_fps if windows else models[0].model.input_spec.clip_fps)
    if fps <= 0:
        raise UsageError(f"--fps must be positive, not {fps:g}")
    indices = chosen(models[0], args)
    results: dict[str, Tensor] = {}
    clip: PoseBatch = {}
    for one in models:
        spec = one.model.input_spec
        pad = spec.frames - 1
        longer = replace(spec, frames=args.frames + 2 * pad, clip_fps=fps)
        parts, middles = [], []
        for batch in batches(one, args.split, indices, longer, args.batch_size):
            parts.append(clip_poses(one.model, batch, args.frames).cpu())
            middles.append(_frames(batch, pad, args.frames))
        results[one.label] = torch.cat(parts)
        if not clip or ("image" not in clip and "image" in middles[0]):
            clip = cast(PoseBatch, {
                key: torch.cat([cast(dict[str, Tensor], m)[key] for m in middles]).cpu()
                for key in middles[0]
            })  # fmt: skip
    truth, valid = clip["joints_3d"], clip["valid_3d"]
    paths, rows = [], []
    actions = models[0].data.action_names
    for k in range(len(indices)):
        shown: dict[str, Floats] = {label: pose[k].numpy() for label, pose in results.items()}
        name = actions[int(clip["action"][k])]
        title = f"{name}, frame {int(clip['frame'][k])}, {fps:g} frames a second"
        figure = _figure(clip, k, shown, models[0].model, title)
        paths.append(save_figure(figure, args.out / f"strip_{k:03d}.png"))
        for label, pose in results.items():
            errors = mpjpe(pose[k], truth[k], valid[k], "none").tolist()
            shake = float(acceleration_error(pose[k], truth[k], valid[k]))
            rows += [[k, label, name, t - args.frames // 2, e, shake]
                     for t, e in enumerate(errors)]  # fmt: skip
    head = ("clip", "model", "action", "frame", "mpjpe_mm", "acceleration_mm_per_frame2")
    return [*paths, write_csv(args.out / "strips.csv", head, rows)]


def _figure(
    clip: PoseBatch, k: int, shown: Mapping[str, Floats], model: PoseModule, title: str
) -> Figure:
    entries = cast(dict[str, Tensor], clip)
    images = entries["image"][k].numpy().transpose(0, 2, 3, 1) if "image" in entries else None
    points = entries["joints_2d"][k].numpy().copy()
    points[~entries["valid_2d"][k].numpy()] = np.nan
    truth = entries["joints_3d"][k].numpy().copy()
    truth[~entries["valid_3d"][k].numpy()] = np.nan
    return draw_strip(images, points, shown, truth, model.skeleton, title=title)
