"""Figures: skeletons on pictures, 3D poses from two views, learning curves, errors by joint.

Every function returns a matplotlib ``Figure`` of its own; pyplot and its global state are not used.
Red is the person's right, blue the left, grey the trunk and head. 3D poses come in the camera frame
(x right, y down, z forward) and are shown upright, over a grid on the floor.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from zoo.batch import PoseBatch, Prediction
from zoo.errors import DataError
from zoo.files import write_atomically
from zoo.pose import Pose
from zoo.skeleton import SKELETONS, Skeleton

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "LEFT",
    "RIGHT",
    "draw_joint_errors",
    "draw_learning_curve",
    "draw_overlay",
    "draw_sheet",
    "draw_strip",
    "figure_to_array",
    "overlay_path",
    "save_figure",
    "save_overlay",
]

FloatArray = npt.NDArray[np.floating[Any]]
ImageArray = npt.NDArray[np.uint8]

RIGHT = "#e4451d"
LEFT = "#1f77d0"
NEUTRAL = "#5b5b5b"
NEUTRAL_ON_IMAGE = "#f4f4f4"
_TRUTH = "#8a8a8a"
LOW_SCORE = 0.3
_PITCH = math.radians(12)  # the viewer looks down a little, so that the floor is seen
_TURN = math.radians(60)
GRID_MM = 250.0


def side_colour(joint: str, neutral: str) -> str:
    """The colour of a joint by its name: right, left, or ``neutral``."""
    return {"r_": RIGHT, "l_": LEFT}.get(joint[:2], neutral)


def pose_bones(pose: Pose) -> tuple[tuple[int, int], ...]:
    """The bones of a pose; none where its skeleton is not one of the zoo's."""
    skeleton = SKELETONS.get(pose.skeleton)
    return skeleton.bones if skeleton and skeleton.joints == pose.joint_names else ()


# ---- 2D -----------------------------------------------------------------------------------------


def _draw_2d(
    ax: Axes,
    joints: FloatArray,
    names: Sequence[str],
    bones: Sequence[tuple[int, int]],
    *,
    faint: npt.NDArray[np.bool_] | None = None,
    width: float = 2.4,
    colour: str | None = None,
) -> None:
    """Draws (J, 2) px; NaN joints are left out, ``faint`` (J,) ones are thin and pale."""
    known = [bool(np.isfinite(joint).all()) for joint in joints]
    weak = np.zeros(len(joints), bool) if faint is None else faint
    for child, parent in bones:
        if not (known[child] and known[parent]):
            continue
        thin = bool(weak[child] or weak[parent])
        line = width * (0.4 if thin else 1.0)
        ax.plot(
            *joints[[parent, child]].T,
            color=colour or side_colour(names[child], NEUTRAL_ON_IMAGE),
            linewidth=line,
            alpha=0.7 if thin else 1.0,
            solid_capstyle="round",
            # A dark rim keeps the lines apart from any background.
            path_effects=[patheffects.withStroke(linewidth=line + 1.2, foreground="#202020")],
        )
    if colour is not None:
        return
    dots = [j for j, there in enumerate(known) if there]
    ax.scatter(
        joints[dots, 0],
        joints[dots, 1],
        s=[(width * (0.9 if weak[j] else 1.7)) ** 2 for j in dots],
        color=[side_colour(names[j], NEUTRAL_ON_IMAGE) for j in dots],
        edgecolors="#202020",
        linewidths=0.6,
        zorder=3,
    )


def _show_image(ax: Axes, image: npt.NDArray[Any]) -> None:
    height, width = image.shape[:2]
    ax.imshow(image)
    # The picture stays whole, and limbs that leave it are cut off at its border.
    ax.set_xlim(-0.5, width - 0.5)
    ax.set_ylim(height - 0.5, -0.5)
    ax.set_axis_off()


# ---- 3D -----------------------------------------------------------------------------------------


def view_3d(points: FloatArray, turn: float) -> FloatArray:
    """Orthographic view of (..., 3) mm, camera frame, as (right, up, away) in mm.

    ``turn`` moves the viewer about the vertical, to the camera's right; 0 is the camera itself. The
    viewer looks down by ``_PITCH``.
    """
    x, up, z = points[..., 0], -points[..., 1], points[..., 2]
    right = x * math.cos(turn) + z * math.sin(turn)
    away = z * math.cos(turn) - x * math.sin(turn)
    return np.stack(
        [
            right,
            up * math.cos(_PITCH) + away * math.sin(_PITCH),
            away * math.cos(_PITCH) - up * math.sin(_PITCH),
        ],
        axis=-1,
    )


def _draw_floor(ax: Axes, points: FloatArray, turn: float) -> None:
    """A grid of ``GRID_MM`` under (N, 3) points, at the height of the lowest one."""
    low = np.floor((points.min(0) - 100) / GRID_MM) * GRID_MM
    high = np.ceil((points.max(0) + 100) / GRID_MM) * GRID_MM
    floor = points[:, 1].max()
    xs = np.arange(low[0], high[0] + 1, GRID_MM)
    zs = np.arange(low[2], high[2] + 1, GRID_MM)
    ends = [([x, floor, zs[0]], [x, floor, zs[-1]]) for x in xs]
    ends += [([xs[0], floor, z], [xs[-1], floor, z]) for z in zs]
    lines = view_3d(np.array(ends), turn)[..., :2]
    ax.add_collection(LineCollection(list(lines), colors="#d4d4d4", linewidths=0.7, zorder=0))


def _draw_3d(
    ax: Axes,
    joints: FloatArray,
    names: Sequence[str],
    bones: Sequence[tuple[int, int]],
    turn: float,
    *,
    width: float = 2.4,
    colour: str | None = None,
) -> None:
    """Draws (J, 3) mm; nearer bones cover farther ones; NaN joints are left out."""
    seen = view_3d(joints, turn)
    known = [bool(np.isfinite(joint).all()) for joint in joints]
    for child, parent in bones:
        if known[child] and known[parent]:
            ax.plot(
                *seen[[parent, child], :2].T,
                color=colour or side_colour(names[child], NEUTRAL),
                linewidth=width,
                solid_capstyle="round",
                zorder=_order(seen[[parent, child], 2].mean()),
            )
    dots = [j for j, there in enumerate(known) if there]
    ax.scatter(
        seen[dots, 0],
        seen[dots, 1],
        s=(width * (1.0 if colour else 1.6)) ** 2,
        color=[colour or side_colour(names[j], NEUTRAL) for j in dots],
        zorder=4,
    )


def _order(away: float) -> float:
    """Drawing order from the distance in mm: always above the floor, nearer ones later."""
    return 2 + math.atan(-float(away) / 1000)


def _finish_3d(ax: Axes, title: str) -> None:
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_title(title, fontsize=9)
    ax.set_xlabel("mm", fontsize=8, labelpad=1)
    ax.tick_params(labelsize=7, length=2)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_yticks([])
    for side in ("left", "right", "top"):
        ax.spines[side].set_visible(False)


VIEWS = (("camera's view", 0.0), (f"from {math.degrees(_TURN):.0f}° to its right", _TURN))


# ---- overlay ------------------------------------------------------------------------------------


def draw_overlay(image: ImageArray, poses: Sequence[Pose]) -> Figure:
    """A picture with the 2D skeletons of its people, and their 3D poses from two views beside it.

    Joints with a score below 0.3 are thin. Several people stand side by side in 3D, in the order in
    which they stand in the picture, because a pose is relative to its own pelvis.

    Args:
        image: (H, W, 3) uint8 RGB.
        poses: of this picture; none gives the picture and a note.
    """
    height, width = image.shape[:2]
    picture_inches = min(max(5.0 * width / height, 2.5), 10.0)
    stacked = len(poses) > 1
    columns = [picture_inches] + ([min(2.2 + 1.7 * len(poses), 16.0)] if stacked else [3.0, 3.0])
    fig = Figure(figsize=(sum(columns), 5.4), layout="constrained")
    grid = fig.add_gridspec(2 if stacked else 1, len(columns), width_ratios=columns)
    ax = fig.add_subplot(grid[:, 0])
    _show_image(ax, image)
    views = [fig.add_subplot(grid[i, 1] if stacked else grid[0, 1 + i]) for i in range(2)]
    if not poses:
        for view in views:
            view.set_axis_off()
        views[0].text(0.5, 0.5, "no person", ha="center", transform=views[0].transAxes)
        return fig

    for pose in poses:
        if pose.joints_2d is not None:
            faint = None if pose.scores_2d is None else pose.scores_2d < LOW_SCORE
            _draw_2d(ax, pose.joints_2d, pose.joint_names, pose_bones(pose), faint=faint)
        if stacked:
            _label_person(ax, pose)
    offsets = side_by_side(poses)
    everyone = np.concatenate(
        [p.joints_3d + o for p, o in zip(poses, offsets, strict=True)]
    )  # fmt: skip
    everyone = everyone[np.isfinite(everyone).all(-1)]
    for view, (title, turn) in zip(views, VIEWS, strict=True):
        if len(everyone) and not stacked:
            _draw_floor(view, everyone, turn)
        for pose, offset in zip(poses, offsets, strict=True):
            # The people are turned where they stand, not around the group's middle.
            side = np.array([offset[0] * math.cos(turn), 0, offset[0] * math.sin(turn)])
            if stacked:
                _draw_floor(view, known_points(pose.joints_3d) + side, turn)
            _draw_3d(view, pose.joints_3d + side, pose.joint_names, pose_bones(pose), turn)
            if stacked:
                top = view_3d(known_points(pose.joints_3d) + side, turn)[:, 1].max()
                view.text(offset[0], top + 80, str(pose.person), ha="center", fontsize=8)
        _finish_3d(view, title)
    handles = [
        Line2D([], [], color=c, linewidth=2.4, label=t)
        for c, t in ((RIGHT, "right"), (LEFT, "left"))
    ]
    views[0].legend(handles=handles, loc="upper left", fontsize=7, frameon=False)
    first = poses[0]
    note = f"3D in {first.units}, {first.origin} at the origin; grid {GRID_MM:.0f} {first.units}"
    if first.method:
        note = f"{first.method}: {note}"
    fig.supxlabel(note, fontsize=8, x=0.99, ha="right")
    return fig


def known_points(points: FloatArray) -> FloatArray:
    """The finite ones of (N, 3) points; the origin where there are none."""
    known = points[np.isfinite(points).all(-1)]
    return known if len(known) else np.zeros((1, 3), np.float32)


def _label_person(ax: Axes, pose: Pose) -> None:
    if pose.joints_2d is not None and np.isfinite(pose.joints_2d).all(-1).any():
        x, y = np.nanmean(pose.joints_2d[:, 0]), np.nanmin(pose.joints_2d[:, 1])
    elif pose.box is not None:
        x, y = pose.box[[0, 2]].mean(), pose.box[1]
    else:
        return
    rim = [patheffects.withStroke(linewidth=2, foreground="#202020")]
    ax.annotate(
        str(pose.person), (float(x), float(y)), (0, 5), textcoords="offset points", color="white",
        ha="center", fontsize=9, path_effects=rim, annotation_clip=True,
    )  # fmt: skip


def side_by_side(poses: Sequence[Pose]) -> list[FloatArray]:
    """A shift of each pose in mm along x, in the order of the people's places in the picture."""
    if len(poses) == 1:
        return [np.zeros(3, np.float32)]

    def place(pose: Pose) -> float:
        if pose.joints_2d is not None and np.isfinite(pose.joints_2d[:, 0]).any():
            return float(np.nanmean(pose.joints_2d[:, 0]))
        return float(pose.box[[0, 2]].mean()) if pose.box is not None else float(pose.person)

    # Wide enough for whatever direction the poses reach in.
    reach = max(float(np.abs(known_points(p.joints_3d)[:, [0, 2]]).max()) for p in poses)
    step = max(900.0, 2 * reach + 500)
    offsets = [np.zeros(3, np.float32) for _ in poses]
    for rank, index in enumerate(sorted(range(len(poses)), key=lambda i: place(poses[i]))):
        offsets[index][0] = step * rank
    return offsets


def save_overlay(picture: ImageArray | str | Path, poses: Sequence[Pose], path: str | Path) -> Path:
    """Writes ``draw_overlay`` as a PNG; see ``save_figure``.

    Args:
        picture: (H, W, 3) uint8 RGB, or the file, which is read as for a prediction.
        poses: of this picture.
        path: the PNG.

    Returns:
        ``path``.
    """
    if isinstance(picture, str | Path):
        from zoo.predict import load_image

        picture = load_image(picture)
    return save_figure(draw_overlay(picture, poses), path)


def overlay_path(
    folder: str | Path,
    source: str | Path | ImageArray,
    among: Sequence[str | Path | ImageArray] = (),
) -> Path:
    """``FOLDER/STEM.overlay.png`` for a picture; ``STEM-2`` where ``among`` has STEM twice.

    Args:
        folder: of the overlays.
        source: the picture; an array is called ``picture``.
        among: all pictures that get an overlay there, in order.
    """

    def stem(picture: str | Path | ImageArray) -> str:
        return Path(picture).stem if isinstance(picture, str | Path) else "picture"

    name = stem(source)
    same = [other for other in among if stem(other).lower() == name.lower()]
    number = next((k for k, other in enumerate(same, 1) if other is source), 1)
    return Path(folder) / f"{name}{f'-{number}' if number > 1 else ''}.overlay.png"


# ---- sheet for the logger -----------------------------------------------------------------------


def _array(value: Tensor) -> FloatArray:
    array: FloatArray = value.detach().float().cpu().numpy()
    return array


def draw_sheet(
    batch: PoseBatch, prediction: Prediction, skeleton: Skeleton, *, title: str = ""
) -> Figure:
    """Samples of a batch: the crop with true (thin, green) and predicted 2D, and 3D from two views.

    In 3D the truth is grey. A column is a sample; of a clip its middle frame is shown.

    Args:
        batch: cut to the predicted frames (``PoseModule.select_frames``); ``image`` may be absent.
        prediction: of that batch.
        skeleton: of both.
        title: above the figure.
    """
    pred_3d = _array(prediction["pred_3d"])
    count, frames = pred_3d.shape[:2]
    at = frames // 2
    fig = Figure(figsize=(2.3 * count + 0.3, 7.2), layout="constrained")
    grid = fig.subplots(3, count, squeeze=False)
    images = _array(batch["image"])[:, at] if "image" in batch else None
    true_2d = _masked(batch, "joints_2d", "valid_2d", at)
    true_3d = _masked(batch, "joints_3d", "valid_3d", at)
    pred_2d = _array(prediction["pred_2d"])[:, at] if "pred_2d" in prediction else None
    names, bones = skeleton.joints, skeleton.bones
    for k in range(count):
        ax = grid[0, k]
        if images is not None:
            _show_image(ax, images[k].transpose(1, 2, 0).clip(0, 1))
        else:
            ax.set_facecolor("#9a9a9a")
            ax.set_aspect("equal", adjustable="datalim")
            ax.invert_yaxis()
            ax.set_xticks([])
            ax.set_yticks([])
        if pred_2d is not None:
            _draw_2d(ax, pred_2d[k], names, bones, width=2.0)
        if true_2d is not None:
            _draw_2d(ax, true_2d[k], names, bones, width=0.9, colour="#7CFC00")
        for row, (view, turn) in enumerate(VIEWS, start=1):
            below = grid[row, k]
            points = pred_3d[k, at]
            both = points if true_3d is None else np.concatenate([points, true_3d[k]])
            _draw_floor(below, known_points(both), turn)
            if true_3d is not None:
                _draw_3d(below, true_3d[k], names, bones, turn, width=1.2, colour=_TRUTH)
            _draw_3d(below, points, names, bones, turn, width=2.0)
            _finish_3d(below, view if k == 0 else "")
        if true_3d is not None:
            error = np.linalg.norm(pred_3d[k, at] - true_3d[k], axis=-1)
            if np.isfinite(error).any():
                ax.set_title(f"{np.nanmean(error):.0f} mm", fontsize=9)
    if title:
        fig.suptitle(title, fontsize=10)
    return fig


def _masked(batch: PoseBatch, key: str, valid: str, at: int) -> FloatArray | None:
    """(B, J, D) of one frame with NaN where it is not valid; None where the batch lacks it."""
    entries: Mapping[str, Any] = batch
    if key not in entries:
        return None
    values = _array(entries[key])[:, at].copy()
    if valid in entries:
        values[~entries[valid][:, at].cpu().numpy()] = np.nan
    return values


def draw_strip(
    images: npt.NDArray[Any] | None, points: FloatArray, poses: Mapping[str, FloatArray],
    truth: FloatArray, skeleton: Skeleton, *, title: str = "",
) -> Figure:  # fmt: skip
    """Frames of a clip, a column each: picture (or 2D joints), a row for each model, truth.

    Args:
        images: (T, H, W, 3) in [0, 1]; ``None`` draws ``points`` alone.
        points: (T, J, 2) px; NaN = not known.
        poses: label -> (T, J, 3) mm, camera frame.
        truth: (T, J, 3) mm; NaN = not known.
        skeleton: of all joints.
        title: above the figure.
    """
    count = len(points)
    figure = Figure(figsize=(2.1 * count + 0.3, 2.2 * (len(poses) + 2)), layout="constrained")
    grid = figure.subplots(len(poses) + 2, count, squeeze=False)
    names, bones = skeleton.joints, skeleton.bones
    everything = np.concatenate([*poses.values(), truth])
    known = known_points(everything.reshape(-1, 3))
    seen = view_3d(known, 0.0)[:, :2]
    low, high = seen.min(0) - 80, seen.max(0) + 80
    for t in range(count):
        ax = grid[0, t]
        ax.set_title(f"{t - count // 2:+d}" if t != count // 2 else "t", fontsize=9)
        if images is not None:
            _show_image(ax, images[t].clip(0, 1))
        else:
            _draw_2d(ax, points[t], names, bones)
            ax.set_facecolor("#9a9a9a")
            ax.set_aspect("equal", adjustable="datalim")
            ax.invert_yaxis()
            ax.set_xticks([])
            ax.set_yticks([])
        for row, (label, frames) in enumerate([*poses.items(), ("truth", truth)], start=1):
            below = grid[row, t]
            _draw_floor(below, known, 0.0)
            _draw_3d(below, frames[t], names, bones, 0.0, width=2.0)
            below.set_aspect("equal")
            below.set_xlim(low[0], high[0])
            below.set_ylim(low[1], high[1])
            below.set_xticks([])
            below.set_yticks([])
            for spine in below.spines.values():
                spine.set_visible(False)
            if t == 0:
                below.set_ylabel(label, fontsize=9)
            error = np.linalg.norm(frames[t] - truth[t], axis=-1)
            if label != "truth" and np.isfinite(error).any():
                below.set_title(f"{np.nanmean(error):.0f} mm", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


# ---- curves -------------------------------------------------------------------------------------


def read_metrics(path: str | Path) -> dict[str, list[tuple[float, float]]]:
    """The (step, value) pairs of every column of a CSV logger's ``metrics.csv``.

    Raises:
        zoo.errors.DataError: the file is missing or is no such file.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if not rows or "step" not in rows[0]:
        raise DataError(f"{path} has no metrics; expected the CSV logger's file with a step column")
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key and value and row["step"] and key != "step":
                curves.setdefault(key, []).append((float(row["step"]), float(value)))
    return curves


def draw_learning_curve(path: str | Path) -> Figure:
    """Training losses and the validation error over the steps, from ``metrics.csv``.

    Raises:
        zoo.errors.DataError: see ``read_metrics``, or nothing that could be drawn is in it.
    """
    curves = read_metrics(path)
    losses = {k: v for k, v in curves.items() if k.startswith("train/")}
    errors = {k: v for k, v in curves.items() if k.startswith("val/") and k.endswith("_mm")}
    panels = [(c, t) for c, t in ((losses, "training"), (errors, "validation")) if c]
    if not panels:
        raise DataError(f"{path} has neither train/ nor val/..._mm columns")
    fig = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained")
    for ax, (group, title) in zip(
        fig.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for name, points in sorted(group.items()):
            steps, values = np.array(sorted(points)).T
            ax.plot(
                steps, values, label=name.split("/", 1)[1], linewidth=1.4,
                marker="." if len(steps) < 60 else None,
            )  # fmt: skip
            if title == "validation" and name == "val/mpjpe_mm":
                best = int(np.nanargmin(values)) if np.isfinite(values).any() else 0
                ax.annotate(
                    f"{values[best]:.1f} mm", (steps[best], values[best]), (0, -12),
                    textcoords="offset points", ha="center", fontsize=8,
                )  # fmt: skip
        everything = np.array([v for points in group.values() for _, v in points])
        if title == "training" and (everything > 0).all():
            ax.set_yscale("log")
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("step")
        ax.set_ylabel("loss" if title == "training" else "mm")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8, frameon=False)
    return fig


def draw_joint_errors(errors: FloatArray, joint_names: Sequence[str], title: str = "") -> Figure:
    """Bars of the mean error of each joint.

    Args:
        errors: (J,) mm; NaN where a joint was never measured.
        joint_names: J names.
        title: above the figure.
    """
    fig = Figure(figsize=(6.0, 0.24 * len(joint_names) + 1.0), layout="constrained")
    ax = fig.subplots()
    place = np.arange(len(joint_names))
    colours = [side_colour(name, NEUTRAL) for name in joint_names]
    values = np.asarray(errors, dtype=float)
    ax.barh(place, np.nan_to_num(values), color=colours)
    for y, value in enumerate(values):
        text = f" {value:.0f}" if math.isfinite(value) else " not measured"
        ax.text(value if math.isfinite(value) else 0, y, text, va="center", fontsize=7)
    ax.set_yticks(place, list(joint_names), fontsize=8)
    ax.invert_yaxis()
    ax.margins(x=0.1)
    ax.set_xlabel("mean error, mm")
    ax.set_title(title, fontsize=10)
    for side in ("right", "top"):
        ax.spines[side].set_visible(False)
    return fig


# ---- files --------------------------------------------------------------------------------------


def figure_to_array(figure: Figure, dpi: int = 100) -> ImageArray:
    """The figure as (H, W, 3) uint8 RGB, for loggers that take images."""
    with Image.open(io.BytesIO(_png(figure, dpi))) as image:
        return np.array(image.convert("RGB"), dtype=np.uint8)


def save_figure(figure: Figure, path: str | Path, dpi: int = 130) -> Path:
    """Writes a PNG under a temporary name and renames it; makes the folder, returns ``path``.

    Raises:
        zoo.errors.OutputError: the file cannot be written.
    """
    return write_atomically(Path(path), _png(figure, dpi))


def _png(figure: Figure, dpi: int) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
