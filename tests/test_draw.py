from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from PIL import Image

from zoo.base import InputSpec
from zoo.draw import (
    LEFT,
    RIGHT,
    draw_joint_errors,
    draw_learning_curve,
    draw_overlay,
    draw_sheet,
    figure_to_array,
    overlay_path,
    save_figure,
    save_overlay,
)
from zoo.errors import DataError, OutputError
from zoo.pose import Pose
from zoo.skeleton import H36M_17
from zoo.testing.people import random_batch

# A person who stands upright and faces the camera: their right is at the camera's left.
FACING = {
    "pelvis": (0, 0, 0), "r_hip": (-130, 0, 0), "r_knee": (-140, 440, 0), "r_ankle": (-145, 870, 0),
    "l_hip": (130, 0, 0), "l_knee": (140, 440, 0), "l_ankle": (145, 870, 0), "spine": (0, -240, 0),
    "thorax": (0, -490, 0), "nose": (0, -600, -90), "head_top": (0, -710, 0),
    "l_shoulder": (150, -470, 0), "l_elbow": (190, -190, 0), "l_wrist": (200, 60, -60),
    "r_shoulder": (-150, -470, 0), "r_elbow": (-300, -300, -200), "r_wrist": (-300, -500, -300),
}  # fmt: skip
JOINTS = np.array([FACING[j] for j in H36M_17.joints], np.float32)
CANVAS = np.full((240, 320, 3), 120, np.uint8)


def person(x: float = 160, number: int = 0, **options: Any) -> Pose:
    joints_2d = JOINTS[:, :2] * 0.12 + [x, 110]
    return Pose(JOINTS, joints_2d=joints_2d, person=number, **options)


def segments(ax: Axes, colour: str) -> list[Any]:
    """(2, 2) ends of the bones of a colour."""
    return [
        np.array(line.get_xydata())
        for line in ax.lines
        if to_hex(line.get_color()) == colour and len(line.get_xydata()) == 2
    ]


def test_right_is_red_and_heads_are_up() -> None:
    figure = draw_overlay(CANVAS, [person()])
    picture, front, turned = figure.axes[:3]
    for ax, middle in ((picture, 160), (front, 0)):
        red, blue = segments(ax, RIGHT), segments(ax, LEFT)
        assert len(red) == len(blue) == 6  # three bones of a leg, three of an arm
        assert np.mean(red, (0, 1))[0] < middle - 5
        assert np.mean(blue, (0, 1))[0] > middle + 5
    top = max(p[:, 1].max() for p in segments(front, "#5b5b5b"))
    feet = min(p[:, 1].min() for p in segments(front, RIGHT))
    assert top > 600
    assert feet < -800
    assert picture.yaxis_inverted()
    assert not front.yaxis_inverted()
    assert front.get_aspect() == turned.get_aspect() == 1
    # From the camera's right the raised right hand, in front of the person, is at the left.
    hand = min(p[:, 0].min() for p in segments(turned, RIGHT))
    assert hand == pytest.approx(-300 * np.cos(np.pi / 3) - 300 * np.sin(np.pi / 3), abs=1)


def test_everybody_is_drawn_in_the_pictures_order() -> None:
    figure = draw_overlay(CANVAS, [person(240, 0), person(80, 1)])
    picture, front, turned = figure.axes[:3]
    for ax in (picture, front, turned):
        assert len(segments(ax, RIGHT)) == 12
        at = {t.get_text(): t for t in ax.texts}
        assert set(at) == {"0", "1"}
    place = {t.get_text(): t.get_position()[0] for t in front.texts}
    assert place["1"] < place["0"]


def test_low_scores_are_thin_and_missing_joints_absent() -> None:
    scores = np.ones(17)
    scores[H36M_17.index("r_wrist")] = 0.1
    joints_2d = JOINTS[:, :2] * 0.12 + [160, 110]
    joints_2d[H36M_17.index("l_ankle")] = np.nan
    joints_3d = JOINTS.copy()
    joints_3d[H36M_17.index("l_ankle")] = np.nan
    pose = Pose(joints_3d, joints_2d=joints_2d, scores_2d=scores)
    figure = draw_overlay(CANVAS, [pose])
    for ax in figure.axes[:3]:
        assert len(segments(ax, LEFT)) == 5
    red = [line for line in figure.axes[0].lines if to_hex(line.get_color()) == RIGHT]
    widths = sorted(line.get_linewidth() for line in red if len(line.get_xydata()) == 2)
    assert widths[0] < 0.5 * widths[1]
    assert np.isfinite(figure_to_array(figure)).all()


@pytest.mark.parametrize(
    "poses",
    [[], [Pose(JOINTS)], [Pose(JOINTS, box=np.array([0, 0, 9, 9])), Pose(JOINTS)],
     [Pose(np.full((17, 3), np.nan))],
     [Pose(np.zeros((2, 3)), skeleton="mine", joint_names=("a", "b"))],
     [Pose(JOINTS, person=k) for k in range(12)]],
)  # fmt: skip
def test_unusual_poses_are_drawn(poses: list[Pose]) -> None:
    array = figure_to_array(draw_overlay(CANVAS, poses), dpi=40)
    assert array.ndim == 3
    assert array.std() > 0


def test_grey_value_of_the_picture_survives(tmp_path: Path) -> None:
    save_overlay(CANVAS, [person()], tmp_path / "new" / "o.png")
    with Image.open(tmp_path / "new" / "o.png") as image:
        array = np.array(image.convert("RGB"))
    assert (array == 120).all(-1).mean() > 0.2
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["o.png"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new" / "o.png").stat().st_mode) == 0o666 & ~mask


def test_a_figure_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save_overlay(CANVAS, [], tmp_path / "file" / "o.png")


@pytest.mark.parametrize("kind", ["image", "keypoints"])
@pytest.mark.parametrize("with_2d", [True, False])
def test_sheet(kind: Any, with_2d: bool) -> None:
    batch = random_batch(InputSpec(kind, 32, frames=3), H36M_17, 3)
    prediction: Any = {"pred_3d": batch["joints_3d"] + torch.tensor([30.0, 0, 40])}
    if with_2d:
        prediction["pred_2d"] = batch["joints_2d"]
    figure = draw_sheet(batch, prediction, H36M_17, title="some title")
    crops = figure.axes[:3]
    assert len(figure.axes) == 9
    assert [ax.get_title() for ax in crops] == ["50 mm", "50 mm", ""]  # the last has no 3D truth
    for k, ax in enumerate(crops):
        assert len(ax.images) == (kind == "image")
        true = sum(to_hex(line.get_color()) == "#7cfc00" for line in ax.lines)
        valid = batch["valid_2d"][k, 1]
        assert true == sum(bool(valid[c] and valid[p]) for c, p in H36M_17.bones)
        assert bool(segments(ax, RIGHT)) == with_2d
    assert figure_to_array(figure, dpi=40).std() > 0


def test_learning_curve(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(
        "epoch,step,train/loss,val/mpjpe_mm\n0,0,4.0,\n0,5,2.0,\n0,5,,80.5\n1,11,1.0,\n1,11,,70.5\n"
    )
    figure = draw_learning_curve(path)
    training, validation = figure.axes
    np.testing.assert_array_equal(training.lines[0].get_xydata(), [[0, 4], [5, 2], [11, 1]])
    np.testing.assert_array_equal(validation.lines[0].get_xydata(), [[5, 80.5], [11, 70.5]])
    assert [t.get_text() for t in validation.texts] == ["70.5 mm"]
    save_figure(figure, tmp_path / "curve.png")

    for text in ("", "a,b\n1,2\n", "step,lr\n1,2\n"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"metrics\.csv"):
            draw_learning_curve(path)
    with pytest.raises(DataError, match="cannot read"):
        draw_learning_curve(tmp_path / "none.csv")


def test_joint_errors() -> None:
    errors = np.arange(17.0) * 10
    errors[3] = np.nan
    (ax,) = draw_joint_errors(errors, H36M_17.joints, "title").axes
    assert [bar.get_width() for bar in ax.patches] == [0 if k == 3 else 10.0 * k for k in range(17)]
    texts = [t.get_text().strip() for t in ax.texts]
    assert texts[3] == "not measured"
    assert texts[16] == "160"
    assert to_hex(ax.patches[H36M_17.index("l_knee")].get_facecolor()) == LEFT


def test_overlays_of_files_have_names_of_their_own(tmp_path: Path) -> None:
    Image.fromarray(CANVAS).save(tmp_path / "a.png")
    sources = [tmp_path / "a.png", tmp_path / "b" / "a.jpg", tmp_path / "b.png"]
    names = [overlay_path(tmp_path, s, sources).name for s in sources]
    assert names == ["a.overlay.png", "a-2.overlay.png", "b.overlay.png"]
    written = save_overlay(sources[0], [person()], overlay_path(tmp_path, sources[0]))
    assert written == tmp_path / "a.overlay.png"
    assert written.is_file()
