from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile
from torch import nn

from zoo.base import InputSpec, PoseModule
from zoo.batch import PoseBatch, Prediction
from zoo.errors import DataError, OutputError, UsageError
from zoo.pose import Pose, load_poses, save_poses
from zoo.predict import load_image, predict, predict_batch, read_source
from zoo.skeleton import H36M_17

SIZE = 32


class Brightest(PoseModule):
    """Finds the crop's bright spot, or with two colours a left (green) and a right (red) one."""

    def __init__(self, frames: int = 1, kind: Any = "image", crop_scale: float = 1.25) -> None:
        super().__init__()
        self.frames, self.kind, self.crop_scale = frames, kind, crop_scale
        self.norm = nn.BatchNorm2d(3)
        self.sizes: list[int] = []
        self.batches: list[PoseBatch] = []
        self.modes: list[bool] = []

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec(self.kind, SIZE, self.frames, crop_scale=self.crop_scale)

    @property
    def predicted_frames(self) -> tuple[int, ...]:
        return (self.frames // 2,) if self.frames > 1 else (0,)

    def forward(self, batch: PoseBatch) -> Prediction:
        self.batches.append(batch)
        image = batch["image"][:, list(self.predicted_frames)]  # (B, 1, 3, S, S)
        self.sizes.append(len(image))
        self.modes.append(self.training or self.norm.training)
        place = torch.stack([_centroid(image[:, :, c]) for c in range(3)], 2)  # (B, 1, 3, 2)
        joints = place[:, :, 2:].repeat(1, 1, len(H36M_17), 1)
        for index, name in enumerate(H36M_17.joints):
            if name[:2] in ("l_", "r_"):
                joints[:, :, index] = place[:, :, 0 if name[0] == "r" else 1]
        middle = (SIZE - 1) / 2
        depth = torch.arange(len(H36M_17)).float().expand(joints.shape[:-1])
        pose = torch.cat([(joints - middle) * 10, depth[..., None]], -1)
        return {"pred_3d": pose, "pred_2d": joints, "std_3d": depth}


def _centroid(image: torch.Tensor) -> torch.Tensor:
    """(..., S, S) to (..., 2): the intensity's centre, px."""
    axis = torch.arange(image.shape[-1]).float()
    total = image.sum((-1, -2)).clamp(min=1e-6)
    x, y = (image.sum(-2) * axis).sum(-1) / total, (image.sum(-1) * axis).sum(-1) / total
    return torch.stack([x, y], -1)


def picture(width: int, height: int, x: float, y: float, colour: Any = (255, 255, 255)) -> Any:
    """Black, with a spot of 5 x 5 px centred at (x, y)."""
    image = np.zeros((height, width, 3), np.uint8)
    image[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3] = colour
    return image


# ---- coordinates --------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(64, 64), (100, 40), (37, 90)])
def test_whole_picture_in_px_of_the_source(width: int, height: int) -> None:
    (pose,) = Brightest().predict(picture(width, height, 20, 14))
    np.testing.assert_allclose(pose.joints_2d, np.tile([20, 14], (17, 1)), atol=0.6)
    assert pose.box is not None
    assert pose.box.tolist() == [-0.5, -0.5, width - 0.5, height - 0.5]
    assert (pose.units, pose.origin, pose.skeleton) == ("mm", "pelvis", "h36m_17")
    assert pose.frame.startswith("camera")
    assert pose.method == "Brightest"


@pytest.mark.parametrize("box", [(10, 5, 50, 35), (-30, -10, 40, 30), (15, 8, 40, 60)])
def test_boxes_inside_and_partly_outside(box: Any) -> None:
    (pose,) = Brightest().predict(picture(64, 48, 21, 16), boxes=box)
    np.testing.assert_allclose(pose.joints_2d, np.tile([21, 16], (17, 1)), atol=0.6)
    assert pose.box is not None
    assert pose.box.tolist() == list(box)


def test_the_crop_is_a_scaled_square_around_the_box() -> None:
    model = Brightest(crop_scale=1.5)
    model.predict(picture(64, 48, 30, 20), boxes=[10, 10, 30, 50])
    (batch,) = model.batches
    affine = batch["crop_to_image"][0, 0]
    assert float(affine[0, 0]) == pytest.approx(1.5 * 40 / SIZE)
    middle = affine @ torch.tensor([(SIZE - 1) / 2, (SIZE - 1) / 2, 1])
    assert middle.tolist() == pytest.approx([20, 30])
    # The assumed camera looks through the middle of the picture.
    camera = batch["intrinsics"][0, 0]
    centre = affine @ torch.tensor([camera[0, 2], camera[1, 2], 1])
    assert centre.tolist() == pytest.approx([31.5, 23.5], abs=1e-4)
    assert float(camera[0, 0] * affine[0, 0]) == pytest.approx(1.2 * 64)
    assert not batch["valid_2d"].any()


def test_a_clip_method_sees_the_picture_as_often_as_it_needs() -> None:
    model = Brightest(frames=5)
    poses = model.predict(picture(40, 40, 20, 14), boxes=[[0, 0, 30, 39], [5, 5, 30, 30]])
    assert len(poses) == 2
    image = model.batches[0]["image"]
    assert image.shape == (2, 5, 3, SIZE, SIZE)
    assert torch.equal(image[:, 0], image[:, 4])


# ---- flip test ----------------------------------------------------------------------------------


def test_flip_test_equals_for_a_mirror_symmetric_method() -> None:
    image = picture(60, 60, 18, 30, (255, 0, 255))
    image[40:45, 33:38] = (0, 255, 0)
    (plain,) = Brightest().predict(image)
    # Red is right and green is left, so that the mirrored person has them the other way round.
    model = SwapColours()
    (flipped,) = model.predict(image, flip_test=True)
    assert len(model.batches) == 2
    np.testing.assert_allclose(flipped.joints_2d, plain.joints_2d, atol=1e-3)
    np.testing.assert_allclose(flipped.joints_3d[:, :2], plain.joints_3d[:, :2], atol=1e-2)


class SwapColours(Brightest):
    """Equivariant: in the second, mirrored pass it sees the person's sides exchanged."""

    def forward(self, batch: PoseBatch) -> Prediction:
        if self.batches:
            batch = {**batch, "image": batch["image"][:, :, [1, 0, 2]]}
        return super().forward(batch)


def test_flip_test_averages_labels_and_directions() -> None:
    model = Brightest()
    batch: PoseBatch = {
        "image": torch.rand(2, 1, 3, SIZE, SIZE),
        "intrinsics": torch.eye(3).expand(2, 1, 3, 3).clone(),
    }
    one = model(batch)
    both = predict_batch(model, batch, flip_test=True)
    other = model({"image": batch["image"].flip(-1)})
    swap = [H36M_17.index({"r": "l", "l": "r"}[n[0]] + n[1:]) if n[:2] in ("r_", "l_") else i
            for i, n in enumerate(H36M_17.joints)]  # fmt: skip
    want_3d = other["pred_3d"][:, :, swap] * torch.tensor([-1.0, 1, 1])
    want_2d = other["pred_2d"][:, :, swap]
    want_2d = torch.stack([SIZE - 1 - want_2d[..., 0], want_2d[..., 1]], -1)
    torch.testing.assert_close(both["pred_3d"], (one["pred_3d"] + want_3d) / 2)
    torch.testing.assert_close(both["pred_2d"], (one["pred_2d"] + want_2d) / 2)
    torch.testing.assert_close(both["std_3d"], (one["std_3d"] + other["std_3d"][..., swap]) / 2)
    mirrored = model.batches[-2]
    assert mirrored["intrinsics"][0, 0, 0, 2] == SIZE - 1


# ---- the model stays as it was ------------------------------------------------------------------


def test_modes_statistics_and_gradients_are_restored() -> None:
    model = Brightest().train()
    model.norm.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.predict(picture(40, 40, 20, 20))
    assert model.modes == [False]
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.is_grad_enabled()
    model.train()
    with pytest.raises(DataError):
        model.predict([picture(40, 40, 20, 20), picture(40, 40, 20, 20)], boxes=[None, [1, 2, 3]])
    assert model.training


# ---- sources ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, x in (("p10.png", 40), ("p2.png", 20), ("P1.PNG", 10)):
        Image.fromarray(picture(60, 60, x, 30)).save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "sub.png").mkdir()
    return tmp_path


def test_folder_in_natural_order(folder: Path) -> None:
    poses = Brightest().predict(folder)
    assert [Path(p.source).name for p in poses] == ["P1.PNG", "p2.png", "p10.png"]
    assert [round(float(p.joint("pelvis")[0])) for p in poses] == sorted(
        round(float(p.joint("pelvis")[0])) for p in poses
    )


def test_lists_mix_files_folders_and_arrays(folder: Path) -> None:
    array = picture(60, 60, 30, 30)
    poses = Brightest().predict([array, folder / "p2.png", str(folder)], batch_size=2)
    assert [Path(p.source).name for p in poses] == ["", "p2.png", "P1.PNG", "p2.png", "p10.png"]


def test_batches_are_bounded_and_pictures_read_as_needed(folder: Path) -> None:
    model = Brightest()
    poses = model.predict(folder, boxes=[[[0, 0, 9, 9]] * 3, [], None], batch_size=2)
    assert model.sizes == [2, 2]
    assert [p.person for p in poses] == [0, 1, 2, 0]
    pictures = read_source([folder / "p2.png", picture(8, 8, 4, 4)])
    assert next(pictures).name.endswith("p2.png")


def test_same_result_in_any_batch_size(folder: Path) -> None:
    one = Brightest().predict(folder, batch_size=1)
    many = Brightest().predict(folder, batch_size=32)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a.joints_3d, b.joints_3d, atol=1e-4)


@pytest.mark.parametrize(
    ("boxes", "count"),
    [(None, 1), ([], 0), ([1, 2, 30, 40], 1), ([[1, 2, 30, 40]], 1), ([[[1, 2, 30, 40]] * 2], 2),
     (np.array([[1, 2, 30, 40], [3, 4, 9, 9]]), 2), (np.zeros((0, 4)), 0),
     (torch.tensor([1.0, 2, 30, 40]), 1), ([None], 1)],
)  # fmt: skip
def test_forms_of_boxes_for_one_picture(boxes: Any, count: int) -> None:
    assert len(Brightest().predict(picture(50, 50, 20, 20), boxes=boxes)) == count


def test_boxes_by_file_name(folder: Path) -> None:
    poses = Brightest().predict(folder, boxes={"p2.png": [], "p10.png": [[0, 0, 50, 50]] * 2})
    assert [Path(p.source).name for p in poses] == ["P1.PNG", "p10.png", "p10.png"]
    with pytest.raises(DataError, match=r"p3\.png.*none of the pictures"):
        Brightest().predict(folder, boxes={"p3.png": []})


@pytest.mark.parametrize(
    ("boxes", "message"),
    [([5, 5, 5, 20], "no area"), ([5, 9, 8, 2], "no area"), ([0, 0, float("nan"), 9], "finite"),
     ([1, 2, 3], "3 numbers"), ([[1, 2, 3, "x"]], r"not \(x0"),
     ([[[0, 0, 9, 9]]] * 2, "2 pictures"),
     ([200, 200, 300, 300], "outside"), ("0,0,9,9", "expected lists"), (7, "expected lists")],
)  # fmt: skip
def test_wrong_boxes(boxes: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Brightest().predict(picture(50, 50, 20, 20), boxes=boxes)
    assert "\n" not in str(caught.value)


def test_wrong_sources(tmp_path: Path) -> None:
    model = Brightest()
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("hello")
    for source, message in [
        (np.zeros((4, 4, 3), np.float32), r"float32 is not a picture.*uint8"),
        (np.zeros((3, 4, 4), np.uint8), r"\(height, width, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), "not a picture"),
        (tmp_path / "no.jpg", "no such file"),
        (tmp_path / "empty", "has no pictures"),
        (tmp_path / "text.jpg", "text.jpg is not a picture"),
        (3, "cannot read a int"),
        ([None], "cannot read a NoneType"),
    ]:
        with pytest.raises(DataError, match=message) as caught:
            model.predict(source)
        assert "\n" not in str(caught.value)
    assert model.predict([]) == []
    with pytest.raises(UsageError, match="keypoints"):
        Brightest(kind="keypoints").predict(picture(9, 9, 4, 4))
    with pytest.raises(UsageError, match="batch_size"):
        model.predict(picture(9, 9, 4, 4), batch_size=0)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_and_corrupt_files_are_named(
    tmp_path: Path, suffix: str, monkeypatch: Any
) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-3000])
    # Another library may have told Pillow to be tolerant.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match=rf"cut\.{suffix} is truncated or corrupt"):
        load_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_kinds_of_pictures(tmp_path: Path) -> None:
    def read(image: Image.Image, name: str, **options: Any) -> Any:
        image.save(tmp_path / name, **options)
        result = load_image(tmp_path / name)
        assert result.dtype == np.uint8
        assert result.ndim == 3
        assert result.shape[2] == 3
        return result

    grey = Image.fromarray(np.array([[0, 128, 255]], np.uint8))
    assert read(grey, "grey.png")[0, :, 1].tolist() == [0, 128, 255]
    deep = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert read(deep, "deep.png")[0, :, 2].tolist() == [0, 128, 255]
    clear = Image.fromarray(np.array([[[9, 9, 9, 0], [9, 8, 7, 255]]], np.uint8))
    assert read(clear, "clear.png")[0].tolist() == [[255, 255, 255], [9, 8, 7]]
    palette = Image.fromarray(np.array([[[200, 0, 0], [0, 0, 200]]], np.uint8)).convert("P")
    assert read(palette, "palette.png")[0, 0].argmax() == 0
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert read(cmyk, "cmyk.jpg")[4, 4].argmax() == 0
    black_and_white = Image.new("1", (4, 4), 1)
    assert (read(black_and_white, "bw.png") == 255).all()

    # A camera held upright stores a picture that lies on its side.
    upright = Image.fromarray(picture(20, 40, 5, 10, (255, 255, 255)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    turned = read(upright.rotate(90, expand=True), "turned.png", exif=exif)
    assert turned.shape == (40, 20, 3)
    assert np.array_equal(turned, np.array(upright))

    floating = Image.fromarray(np.zeros((2, 2), np.float32))
    floating.save(tmp_path / "float.tiff")
    with pytest.raises(DataError, match="floating-point"):
        load_image(tmp_path / "float.tiff")


# ---- records and files --------------------------------------------------------------------------

numbers = st.floats(width=32, allow_infinity=False)


@given(
    values=st.lists(numbers, min_size=51, max_size=51), person=st.integers(0, 9), std=st.booleans()
)
def test_poses_survive_a_file(tmp_path_factory: Any, values: Any, person: int, std: bool) -> None:
    path = tmp_path_factory.mktemp("poses") / "p.json"
    joints = np.array(values, np.float32).reshape(17, 3)
    pose = Pose(
        joints, joints_2d=joints[:, :2], std_3d=np.abs(joints[:, 0]) if std else None,
        box=np.array([0.1, 2, 3, 4]), person=person, frame_index=7, source="ä/b.jpg", method="m",
    )  # fmt: skip
    save_poses([pose, pose], path)
    for read in load_poses(path):
        for name in ("joints_3d", "joints_2d", "scores_2d", "std_3d", "box", "root_3d"):
            a, b = getattr(pose, name), getattr(read, name)
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a, b)
                assert b.dtype == np.float32
        assert read.to_dict() == pose.to_dict()
        assert (read.person, read.frame_index, read.source) == (person, 7, "ä/b.jpg")


def test_the_header_says_what_the_numbers_are(tmp_path: Path) -> None:
    a = Pose(np.zeros((17, 3)), method="one")
    b = Pose(np.ones((2, 3)), skeleton="mine", joint_names=("x", "y"), method="two", origin="x")
    save_poses([a, b], tmp_path / "new" / "p.json")
    document = json.loads((tmp_path / "new" / "p.json").read_text())
    assert document["format"] == "zoo-poses"
    assert document["units"] == "mm"
    assert document["frame"] == "camera (x right, y down, z forward)"
    assert document["origin"] == "pelvis"
    assert document["joint_names"] == list(H36M_17.joints)
    assert "joint_names" not in document["poses"][0]
    first, second = load_poses(tmp_path / "new" / "p.json")
    assert (first.skeleton, second.skeleton) == ("h36m_17", "mine")
    assert (second.joint_names, second.origin, second.method) == (("x", "y"), "x", "two")
    save_poses([], tmp_path / "none.json", method="m")
    assert load_poses(tmp_path / "none.json") == []
    assert json.loads((tmp_path / "none.json").read_text())["method"] == "m"


def damaged(text: str) -> list[tuple[str, str]]:
    document = json.loads(text)
    record = document["poses"][0]
    return [
        (text[:-20], "not valid JSON"),
        ("[]", "not a file of poses"),
        ("[" * 100_000, "nested too deeply"),
        (json.dumps({**document, "version": 9}), "version 9"),
        (json.dumps({**document, "poses": 3}), 'lacks the list "poses"'),
        (json.dumps({**document, "poses": [3]}), "pose 0: expected an object"),
        (json.dumps({**document, "poses": [{}]}), "lacks joints_3d"),
        (json.dumps({**document, "poses": [{**record, "joints_3d": [[1, 2]]}]}), r"shape \(1, 2\)"),
        (json.dumps({**document, "poses": [{**record, "joints_3d": "x"}]}), "not an array"),
        (json.dumps({**document, "poses": [{**record, "person": "x"}]}), "whole number"),
        (json.dumps({**document, "poses": [{**record, "wrong": 1}]}), "unknown key 'wrong'"),
        (json.dumps({**document, "skeleton": 4}), "expected text"),
        (json.dumps({**document, "joint_names": 4}), "not a list of names"),
    ]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    save_poses([Pose(np.zeros((17, 3)))], path)
    for text, message in damaged(path.read_text()):
        path.write_text(text)
        with pytest.raises(DataError, match=message) as caught:
            load_poses(path)
        assert "\n" not in str(caught.value)
        assert "p.json" in str(caught.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a JSON text"):
        load_poses(path)
    with pytest.raises(DataError, match="cannot read"):
        load_poses(tmp_path / "none.json")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "p.json").mkdir()  # a folder of that name
    with pytest.raises(OutputError, match=r"cannot write .*p\.json"):
        save_poses([Pose(np.zeros((17, 3)))], tmp_path / "p.json")
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


def test_poses_cannot_be_changed_by_accident() -> None:
    values = np.zeros((17, 3), np.float32)
    pose = Pose(values)
    values += 1
    assert (pose.joints_3d == 0).all()
    with pytest.raises(ValueError, match="read-only"):
        pose.joints_3d[0] = 1


def test_progress_is_shown_on_stderr_alone(folder: Path, capsys: Any) -> None:
    poses = Brightest().predict(folder)
    shown = predict(Brightest(), folder, progress=True)
    assert [p.source for p in shown] == [p.source for p in poses]
    assert capsys.readouterr().out == ""
