"""Keypoint files of detectors: every format, and what is wrong with a broken one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.errors import DataError, UsageError
from zoo.keypoints import is_keypoint_source, read_keypoints
from zoo.pose import Pose, save_poses
from zoo.skeleton import get_skeleton


def flat(joints: int, first: float = 0.0, score: float = 0.9) -> list[float]:
    """Joint k at (first + k, 2 k)."""
    return [v for k in range(joints) for v in (first + k, 2.0 * k, score)]


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def result(image: Any, joints: int = 17, **extra: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "keypoints": flat(joints), "score": 0.8, **extra}


def test_coco_results_keep_pictures_people_and_scores(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", [result(7), result(9, score=2.5), result(7)])
    people = read_keypoints(path)
    assert [(p.image, p.frame, p.person) for p in people] == [("7", 0, 0), ("7", 0, 1), ("9", 1, 0)]
    assert people[0].skeleton == "coco_17"
    np.testing.assert_array_equal(people[0].joints_2d[5], [5, 10])
    np.testing.assert_allclose(people[0].scores, 0.9)
    assert people[2].score == 2.5


def test_annotations_have_flags_names_and_boxes(tmp_path: Path) -> None:
    keypoints = flat(17, score=2)
    keypoints[2], keypoints[5] = 0, 1  # the nose is not annotated, the left eye is hidden
    document = {
        "images": [{"id": 3, "file_name": "a.jpg"}],
        "annotations": [
            {"image_id": 3, "category_id": 1, "keypoints": keypoints, "bbox": [1, 2, 10, 20]},
            {"image_id": 3, "category_id": 3, "bbox": [0, 0, 1, 1]},  # a car
            {"image_id": 3, "category_id": 1, "iscrowd": 1, "keypoints": flat(17)},
        ],
    }
    (one,) = read_keypoints(write(tmp_path / "a.json", document))
    assert one.image == "a.jpg"
    assert one.box is not None
    np.testing.assert_array_equal(one.box, [1, 2, 11, 22])
    assert one.scores[0] == 0
    assert np.isnan(one.joints_2d[0]).all()
    np.testing.assert_array_equal(one.scores[1:], 1)


@pytest.mark.parametrize(
    ("count", "skeleton", "kept"),
    [(17, "coco_17", 17), (26, "halpe_26", 26), (136, "halpe_26", 26), (133, "coco_17", 17)],
)
def test_alphapose_layouts(tmp_path: Path, count: int, skeleton: str, kept: int) -> None:
    record = result("img_2.jpg", count, box=[1, 2, 3, 4], idx=[1])
    (one,) = read_keypoints(write(tmp_path / "alphapose-results.json", [record]))
    assert (one.skeleton, one.image) == (skeleton, "img_2.jpg")
    assert one.joints_2d.shape == (kept, 2)
    np.testing.assert_array_equal(one.joints_2d[kept - 1], [kept - 1, 2 * (kept - 1)])


def test_openpose_frames_of_a_folder_in_natural_order(tmp_path: Path) -> None:
    people = [{"pose_keypoints_2d": flat(25)}, {"pose_keypoints_2d": flat(25, 100)}]
    write(tmp_path / "v_2_keypoints.json", {"version": 1.3, "people": []})
    write(tmp_path / "v_10_keypoints.json", {"version": 1.3, "people": people})
    write(tmp_path / "v_1_keypoints.json", {"version": 1.3, "people": people[:1]})
    assert is_keypoint_source(tmp_path)
    found = read_keypoints(tmp_path)
    # Frame 1 has nobody and keeps its number.
    assert [(p.image, p.frame, p.person) for p in found] == [
        ("v_1", 0, 0), ("v_10", 2, 0), ("v_10", 2, 1),
    ]  # fmt: skip
    assert found[2].skeleton == "openpose_25"
    assert found[2].joints_2d[0, 0] == 100


def test_openpose_18_goes_to_its_names(tmp_path: Path) -> None:
    path = write(tmp_path / "f.json", {"people": [{"pose_keypoints_2d": flat(18)}]})
    (one,) = read_keypoints(path)
    skeleton = get_skeleton("openpose_25")
    assert one.skeleton == "openpose_25"
    assert one.joints_2d[skeleton.index("l_ear"), 0] == 17
    assert one.joints_2d[skeleton.index("r_hip"), 0] == 8
    assert one.scores[skeleton.index("pelvis")] == 0


def test_the_zoos_own_poses(tmp_path: Path) -> None:
    xy = np.arange(34, dtype=np.float32).reshape(17, 2)
    pose = Pose(np.zeros((17, 3)), joints_2d=xy, scores_2d=np.full(17, 0.5), source="p.jpg")
    save_poses([pose], tmp_path / "poses.json")
    (one,) = read_keypoints(tmp_path / "poses.json")
    assert (one.skeleton, one.image) == ("h36m_17", "p.jpg")
    np.testing.assert_array_equal(one.joints_2d, xy)
    np.testing.assert_array_equal(one.scores, 0.5)


def test_a_joint_without_score_or_place_is_missing(tmp_path: Path) -> None:
    keypoints: list[Any] = flat(17)
    keypoints[2] = 0.0
    keypoints[3] = float("nan")
    keypoints[8] = 1.02  # a little over one
    (one,) = read_keypoints(write(tmp_path / "r.json", [result(1) | {"keypoints": keypoints}]))
    assert np.isnan(one.joints_2d[:2]).all()
    np.testing.assert_array_equal(one.scores[:3], [0, 0, 1])


def test_the_skeleton_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", [result(1)])
    assert read_keypoints(path, "mpi_inf_3dhp_17")[0].skeleton == "mpi_inf_3dhp_17"
    with pytest.raises(DataError, match=r"r\.json, record 0: it has 17 joints, but mpii_16 has 16"):
        read_keypoints(path, "mpii_16")
    with pytest.raises(UsageError, match="did you mean coco_17"):
        read_keypoints(path, "coco17")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"a": 1}, "is no keypoint file"),
        (3, "is no keypoint file"),
        ([4], "record 0: expected an object"),
        ([{"image_id": 1}], 'record 0: it lacks "keypoints"'),
        ([result(1) | {"keypoints": flat(17)[:-1]}], "record 0: its keypoints are 50 numbers"),
        ([result(1) | {"keypoints": ["x"] * 51}], "record 0: its keypoints hold 'x'"),
        ([result(1) | {"keypoints": None}], "record 0: its keypoints are not a list"),
        ([result(1), result(1, 19)], "record 1: no skeleton of 19 joints"),
        ([result([1])], r"record 0: image_id is \[1\]"),
        ([result(1, bbox=[1, 2])], r"record 0: its box is \[1, 2\]"),
        ([result(1, score="high")], "record 0: its score is 'high'"),
        ({"people": 3}, '"people" is not a list'),
        ({"people": [{"face": []}]}, 'person 0: it lacks "pose_keypoints_2d"'),
        ({"annotations": {}}, '"annotations" is not a list'),
    ],
)
def test_wrong_files_give_one_line_with_the_place(
    tmp_path: Path, document: Any, message: str
) -> None:
    path = write(tmp_path / "wrong.json", document)
    with pytest.raises(DataError, match=message) as error:
        read_keypoints(path)
    assert "wrong.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no keypoint file .*none\.json"):
        read_keypoints(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('[{"image_id": 1,')
    with pytest.raises(DataError, match=r"half\.json is not valid JSON: .* line 1"):
        read_keypoints(tmp_path / "half.json")
    (tmp_path / "picture.json").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DataError, match="is not a JSON text file"):
        read_keypoints(tmp_path / "picture.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no keypoint files"):
        read_keypoints(tmp_path / "empty")


def test_nobody_is_an_empty_list(tmp_path: Path) -> None:
    assert read_keypoints(write(tmp_path / "r.json", [])) == []
    assert read_keypoints(write(tmp_path / "f.json", {"people": []})) == []
