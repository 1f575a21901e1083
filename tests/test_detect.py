"""The 2D detector: torchvision's network without weights, and planted detections."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import zoo.detect
from zoo.cli import main
from zoo.detect import detect, keypoint_scores, load_detector
from zoo.errors import DataError, UsageError
from zoo.pose import load_poses
from zoo.predict import Picture
from zoo.skeleton import get_skeleton

COCO = get_skeleton("coco_17")
# A person who stands and faces the camera, px from the pelvis for a body of 100 px.
STANDING = {
    "nose": (0, -44), "eye": (2, -47), "ear": (5, -46), "shoulder": (11, -34), "elbow": (15, -17),
    "wrist": (16, -2), "hip": (7, 0), "knee": (7, 27), "ankle": (7, 53),
}  # fmt: skip


def standing(x: float, y: float, size: float = 1.0) -> Tensor:
    """(17, 2) px; the person's left is on the right of the picture."""
    points = []
    for joint in COCO.joints:
        side = {"l": 1, "r": -1}.get(joint.split("_")[0], 1)
        dx, dy = STANDING[joint.split("_")[-1]]
        points.append((x + size * side * dx, y + size * dy))
    return torch.tensor(points)


class Planted(nn.Module):
    """Returns the people it was given, whatever the picture shows."""

    def __init__(self, people: list[tuple[float, Tensor]]) -> None:
        super().__init__()
        self.people = people
        self.seen: list[Tensor] = []

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        self.seen += images
        count = len(self.people)
        joints = torch.stack([p for _, p in self.people]) if count else torch.zeros(0, 17, 2)
        flags = torch.ones(count, 17, 1)
        return [
            {
                "boxes": torch.cat((joints.amin(1), joints.amax(1)), 1)
                if count
                else torch.zeros(0, 4),
                "scores": torch.tensor([s for s, _ in self.people]),
                "keypoints": torch.cat((joints, flags), 2),
                "keypoints_scores": torch.full((count, 17), 6.0),
            }
        ]


def picture(height: int = 40, width: int = 60) -> Picture:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Picture(noise, "p.jpg")


def test_planted_people_come_out_surest_first_and_in_our_pixels() -> None:
    planted = Planted([(0.8, standing(30, 60)), (0.3, standing(10, 60)), (0.95, standing(90, 60))])
    found = detect(planted, [picture()])
    assert [p.score for p in found] == pytest.approx([0.95, 0.8])
    # Torchvision counts from a pixel's corner, the zoo from its centre.
    np.testing.assert_allclose(found[0].joints_2d, standing(90, 60).numpy() - 0.5)
    assert [p.person for p in found] == [0, 1]
    assert {(p.skeleton, p.image) for p in found} == {("coco_17", "p.jpg")}
    assert planted.seen[0].shape == (3, 40, 60)
    assert planted.seen[0].max() <= 1
    assert len(detect(planted, [picture()], min_score=0.2)) == 3


def test_scores_rise_with_the_heatmap_and_stay_in_range() -> None:
    scores = keypoint_scores(torch.tensor([-50.0, -1.0, 0.0, 3.0, 50.0]))
    assert bool((scores.diff() > 0).all())
    assert float(scores[2]) == 0.5
    assert 0 <= float(scores.min()) <= float(scores.max()) <= 1


def test_the_real_network_without_weights_runs() -> None:
    torch.manual_seed(0)
    detector = load_detector(
        pretrained=False, min_size=64, max_size=96, rpn_pre_nms_top_n_test=20,
        rpn_post_nms_top_n_test=10, box_score_thresh=0.0, box_detections_per_img=3,
    )  # fmt: skip
    assert not detector.training
    found = detect(detector, [picture()], min_score=0.0)
    assert len(found) > 0  # any box will do for a random network with threshold 0
    for one in found:
        assert one.joints_2d.shape == (17, 2)
        assert np.isfinite(one.joints_2d).all()
        assert 0 <= one.scores.min() <= one.scores.max() <= 1


def test_no_network_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*args: Any, **kwargs: Any) -> Any:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(DataError, match=r"weights of keypointrcnn cannot be had.*no network") as e:
        load_detector()
    assert "\n" not in str(e.value)
    assert str(tmp_path) in str(e.value)


def test_unknown_detectors_and_scores() -> None:
    with pytest.raises(UsageError, match="did you mean keypointrcnn"):
        load_detector("keypointrcn")
    with pytest.raises(UsageError, match="expected one in"):
        detect(Planted([]), [picture()], min_score=2)


def test_predict_lifts_and_draws_every_person(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = Planted([(0.9, standing(50, 80)), (0.8, standing(150, 80, 0.8))])
    monkeypatch.setattr(zoo.detect, "load_detector", lambda *a, **k: planted)
    Image.fromarray(np.full((160, 220, 3), 90, np.uint8)).save(in_tmp / "two.png")
    command = ["predict", "two.png", "--detector", "keypointrcnn", "--out", "out", "--gpus", "0"]
    assert main(command) == 0, capsys.readouterr().err
    poses = load_poses(in_tmp / "out" / "poses.json")
    assert [(p.person, p.source) for p in poses] == [(0, "two.png"), (1, "two.png")]
    for pose, x in zip(poses, (50, 150), strict=True):
        assert pose.joints_2d is not None
        assert abs(float(pose.joints_2d[0, 0]) - x) < 6
        # Upright, and facing the camera: the left shoulder on the right, the feet below.
        assert pose.joint("l_shoulder")[0] > 100 > -100 > pose.joint("r_shoulder")[0]
        assert pose.joint("l_ankle")[1] > 600
        assert pose.joint("head_top")[1] < -450
    drawn = np.asarray(Image.open(in_tmp / "out" / "two.overlay.png"))
    assert drawn.std() > 10


def test_nobody_found_gives_an_empty_file(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo.detect, "load_detector", lambda *a, **k: Planted([]))
    Image.fromarray(np.full((30, 30, 3), 90, np.uint8)).save(in_tmp / "none.png")
    command = ["predict", "none.png", "--detector", "keypointrcnn", "--gpus", "0", "--no-overlay"]
    assert main(command) == 0
    assert load_poses(in_tmp / "predictions" / "poses.json") == []
