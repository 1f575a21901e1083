"""Videos: streams equal to whole sequences, bounded memory, gaps, boxes, files, the command."""

from __future__ import annotations

import contextlib
import gc
import json
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import zoo.detect
from tests.test_correction import ToyCorrecting
from tests.test_detect import Planted, standing
from tests.test_predict import SIZE, Brightest, picture
from zoo.base import InputSpec
from zoo.batch import PoseBatch, Prediction
from zoo.checkpoint import save_weights
from zoo.cli import main
from zoo.crop import crop_image
from zoo.draw import LEFT, RIGHT
from zoo.draw_video import draw_frame
from zoo.errors import DataError, UsageError
from zoo.keypoints import Keypoints
from zoo.lift2d import lift_people
from zoo.pose import Pose, load_poses
from zoo.predict_keypoints import predict_keypoints
from zoo.predict_video import FramePoses, predict_frames
from zoo.registry import get_method, method_names, resolve_class
from zoo.seen import read_people
from zoo.skeleton import H36M_17
from zoo.smooth import smooth_poses
from zoo.testing import random_poses
from zoo.video import VideoWriter, read_frames, video_info
from zoo.video_files import JsonWriter, NpzWriter, VideoHeader

Frame = npt.NDArray[np.uint8]


def clip(count: int, width: int = 64, height: int = 48) -> list[Frame]:
    """A white spot that wanders to the right and down."""
    return [picture(width, height, 12 + 30 * k / count, 10 + 20 * k / count) for k in range(count)]


class Echo(Brightest):
    """A causal method of clips with a state: an average that forgets, of where the spot was."""

    def __init__(self, keep: float = 0.5, clip_fps: float = 10.0) -> None:
        super().__init__(frames=4)
        self.keep, self.clip_fps = keep, clip_fps

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec("image", SIZE, 4, self.clip_fps)

    @property
    def predicted_frames(self) -> tuple[int, ...]:
        return tuple(range(4))

    def whole(self, batch: PoseBatch, state: Tensor | None = None) -> tuple[Prediction, Tensor]:
        self.frames = batch["image"].shape[1]
        still = Brightest.forward(_Frames(self.frames), batch)  # type: ignore[arg-type]
        poses = []
        for t in range(self.frames):
            now = still["pred_3d"][:, t]
            state = now if state is None else self.keep * state + (1 - self.keep) * now
            poses.append(state)
        assert state is not None
        return {**still, "pred_3d": torch.stack(poses, 1)}, state

    def forward(self, batch: PoseBatch) -> Prediction:
        return self.whole(batch)[0]

    def stream(self, batch: PoseBatch | None, state: Any = None) -> tuple[Prediction | None, Any]:
        return (None, None) if batch is None else self.whole(batch, state)


class _Frames:
    """What ``Brightest.forward`` asks of itself, for any number of frames."""

    def __init__(self, frames: int) -> None:
        self.predicted_frames = tuple(range(frames))
        self.batches: list[PoseBatch] = []
        self.sizes: list[int] = []
        self.modes: list[bool] = []
        self.training, self.norm = False, nn.Identity()


def joints(frames: list[FramePoses]) -> npt.NDArray[np.float32]:
    return np.stack([pose.joints_3d for frame in frames for pose in frame.poses])


def echoes(values: npt.NDArray[np.float32], stride: int, keep: float) -> npt.NDArray[np.float32]:
    """What ``Echo`` makes of single-frame poses, in plain words."""
    out = values.copy()
    for t in range(stride, len(values)):
        out[t] = keep * out[t - stride] + (1 - keep) * values[t]
    return out


def write(path: Path, frames: list[Frame], fps: float = 10.0) -> Path:
    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.write(frame)
    return path


# ---- image methods ------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("flip", [False, True])
def test_an_image_method_sees_each_frame_alone(tmp_path: Path, chunk: int, flip: bool) -> None:
    path = write(tmp_path / "v.mp4", clip(11), 25)
    images = [frame for _, frame in read_frames(path)]
    want = Brightest().predict(images, flip_test=flip)
    frames = list(predict_frames(Brightest(), path, flip_test=flip, batch_size=chunk))
    assert [f.frame for f in frames] == list(range(11))
    assert [f.time for f in frames] == pytest.approx([k / 25 for k in range(11)])
    assert all(len(f.poses) == 1 and f.image is None for f in frames)
    for frame, pose in zip(frames, want, strict=True):
        (got,) = frame.poses
        np.testing.assert_allclose(got.joints_3d, pose.joints_3d, atol=1e-3)
        np.testing.assert_allclose(got.joints_2d, pose.joints_2d, atol=1e-3)
        assert (got.frame_index, got.source, got.person) == (frame.frame, str(path), 0)


def test_predict_takes_a_video_and_lists_its_poses(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", clip(5))
    poses = Brightest().predict(path)
    assert [p.frame_index for p in poses] == [0, 1, 2, 3, 4]
    folder = tmp_path / "frames"
    folder.mkdir()
    for k, (_, frame) in enumerate(read_frames(path)):
        Image.fromarray(frame).save(folder / f"f{k + 7}.png")
    again = Brightest().predict(folder, fps=10, smooth="one-euro")
    assert [p.frame_index for p in again] == [0, 1, 2, 3, 4]
    for one, other in zip(again, smooth_poses(poses, 10), strict=True):
        np.testing.assert_allclose(one.joints_3d, other.joints_3d, atol=1e-3)
    with pytest.raises(UsageError, match="need fps"):
        Brightest().predict(folder, smooth="one-euro")


def test_modes_are_left_alone_between_frames() -> None:
    model = Brightest().train()
    frames = model.predict_frames(clip(20), fps=10, batch_size=2)
    next(frames)
    assert model.training
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert set(model.modes) == {False}


# ---- methods of clips ---------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    length=st.integers(1, 25), chunk=st.integers(1, 9), fps=st.sampled_from([5.0, 10.0, 24.0, 30.0])
)
def test_a_state_is_carried_as_over_the_whole_sequence(length: int, chunk: int, fps: float) -> None:
    images = clip(length)
    still = joints(list(predict_frames(Brightest(), images, fps=fps)))
    with pytest.warns() if fps == 5 else contextlib.nullcontext():
        frames = list(predict_frames(Echo(), images, fps=fps, batch_size=chunk))
    stride = max(1, round(fps / 10))
    np.testing.assert_allclose(joints(frames), echoes(still, stride, 0.5), atol=1e-2)
    assert [f.frame for f in frames] == list(range(length))


def test_a_stream_is_the_forward_pass_over_all_frames() -> None:
    images = clip(9)
    cut = [crop_image(i, (-0.5, -0.5, 63.5, 47.5), SIZE)[0] for i in images]
    whole, _ = Echo().whole({"image": torch.stack(cut)[None]})
    frames = list(predict_frames(Echo(), images, fps=10, batch_size=2))
    np.testing.assert_allclose(joints(frames), whole["pred_3d"][0].numpy(), atol=1e-3)


@pytest.mark.parametrize("name", ["latent-blstm-pose", "latent-lstm-pose", "latent-blstm-feature"])
@pytest.mark.parametrize("fps", [10.0, 25.0])
def test_latent_windows_are_those_of_the_whole_recording(name: str, fps: float) -> None:
    cls = cast(Any, resolve_class(get_method(name)))
    torch.manual_seed(0)
    changes = {**get_method(name).args, "backbone": None}
    model = cls(**{**cls.tiny().hparams, **changes}).eval()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(17)]
    stack = torch.stack([torch.from_numpy(i).permute(2, 0, 1).float() / 255 for i in images])
    video: PoseBatch = {"image": stack[None], "joints_2d": torch.zeros(1, 17, 17, 2)}
    stride = 1 if fps == 10 else 2
    whole = model.predict_recording(video, stride=stride)
    for chunk in (1, 5):
        frames = list(predict_frames(model, images, fps=fps, batch_size=chunk))
        assert [len(f.poses) for f in frames] == [1] * 17
        np.testing.assert_allclose(joints(frames), whole.numpy(), atol=5e-3)


@pytest.mark.parametrize("name", [n for n in ("rpsm", "ssc") if n in method_names()])
@pytest.mark.parametrize("state", ["clip", "sequence"])
def test_registered_recurrent_methods_carry_their_state(name: str, state: str) -> None:
    """Piece by piece, interleaved at twice the method's rate, as over the whole video at once."""
    cls = cast(Any, resolve_class(get_method(name)))
    torch.manual_seed(0)
    model = cls(**{**cls.tiny().hparams, **get_method(name).args, "state": state}).eval()
    model.fit_statistics(random_poses(model.input_spec, model.skeleton))
    size = model.input_spec.image_size
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (size, size, 3), dtype=np.uint8) for _ in range(13)]
    stack = torch.stack([torch.from_numpy(i).permute(2, 0, 1).float() / 255 for i in images])
    want = torch.zeros(13, 17, 3)
    for lane in (0, 1):
        count = len(stack[lane::2])
        whole: PoseBatch = {
            "image": stack[None, lane::2],
            "joints_2d": torch.zeros(1, count, 17, 2),
            "scores_2d": torch.zeros(1, count, 17),
            "valid_2d": torch.zeros(1, count, 17, dtype=torch.bool),
        }
        with torch.no_grad():
            want[lane::2] = model.stream(whole)[0]["pred_3d"][0]
    fps = 2 * model.input_spec.clip_fps
    got = joints(list(predict_frames(model, images, fps=fps, batch_size=3, correct="off")))
    np.testing.assert_allclose(got, want.numpy(), atol=0.02)
    if state == "sequence":  # the first frame is felt to the end
        images[0] = 255 - images[0]
        other = joints(list(predict_frames(model, images, fps=fps, correct="off")))
        moved = np.abs(other - got).max((1, 2))
        assert (moved[::2] > 0).all()
        assert (moved[1::2] < 0.02).all()


def test_self_correction_works_on_videos() -> None:
    model = ToyCorrecting().eval()
    images = clip(5)
    from zoo.predict_video import ModelEstimator, open_video, run_frames
    from zoo.seen import Everywhere

    want = model.predict(images)
    estimator = ModelEstimator(model, 10, chunk=3)
    frames = list(run_frames(open_video(images, 10), Everywhere(), estimator))
    np.testing.assert_allclose(joints(frames), np.stack([p.joints_3d for p in want]), atol=0.05)
    assert [(c.frame, c.person) for c in estimator.corrections] == [(k, 0) for k in range(5)]
    assert any(c.steps > 0 for c in estimator.corrections)
    raw = joints(list(predict_frames(model, images, fps=10, correct="off")))
    assert np.abs(raw - joints(frames)).max() > 0.5
    with pytest.raises(UsageError, match="projector"):
        predict_frames(Brightest(), images, fps=10, correct="on")


def test_a_slow_video_is_told() -> None:
    with pytest.warns(UserWarning, match="5 frames a second; Echo expects 10"):
        list(predict_frames(Echo(), clip(2), fps=5))


# ---- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["image", "state", "window"])
def test_memory_does_not_grow_and_frames_are_read_when_asked_for(method: str) -> None:
    model = {"image": Brightest, "state": Echo, "window": lambda: Brightest(frames=5)}[method]()
    model.batches = _Forgets()
    alive: set[int] = set()
    pulled = 0

    def film(count: int) -> Iterator[Frame]:
        nonlocal pulled
        for k in range(count):
            frame = picture(64, 48, 12 + k % 30, 20)
            pulled += 1
            alive.add(pulled)
            weakref.finalize(frame, alive.discard, pulled)
            yield frame

    frames = predict_frames(model, film(80), fps=30, keep_images=True, batch_size=4)
    assert pulled == 0
    numbers, counts = [], []
    for frame in frames:
        ahead = pulled - 1 - frame.frame
        assert ahead <= 4 + 2 * 3 + 1  # a batch, and two frames of a window at a third of the rate
        assert len(alive) <= ahead + 4
        if frame.frame in (20, 70):
            gc.collect()
            found = (o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter))
            numbers.append(sum(t.untyped_storage().nbytes() for t in found))
            counts.append(len(alive))
    assert pulled == 80
    assert max(numbers) - min(numbers) <= 60_000  # 50 crops would be 600 thousand bytes
    del frame
    gc.collect()
    assert not alive


class _Forgets(list[Any]):
    def append(self, item: Any) -> None:
        """Keeps nothing: the tiny method's diary would be the leak."""


def test_nobody_for_long_holds_nothing_back() -> None:
    """A frame that waits for its batch must not hold a thousand empty ones."""
    boxes = {0: [[0, 0, 40, 40]]}
    pulled = 0

    def film() -> Iterator[Frame]:
        nonlocal pulled
        for frame in clip(1) * 200:
            pulled += 1
            yield frame

    for model in (Echo(), Brightest()):
        pulled = 0
        next(iter(predict_frames(model, film(), fps=10, boxes=boxes, batch_size=50)))
        assert pulled <= 8


# ---- people -------------------------------------------------------------------------------------


def test_frames_without_a_person_are_empty_and_the_stream_goes_on() -> None:
    boxes = {k: [[0, 0, 63, 47]] for k in (0, 1, 2, 5, 6, 9)} | {7: []}
    frames = list(predict_frames(Brightest(), clip(12), fps=10, boxes=boxes))
    assert [len(f.poses) for f in frames] == [1, 1, 1, 0, 0, 1, 1, 0, 0, 1, 0, 0]
    assert [p.person for f in frames for p in f.poses] == [0] * 6
    assert list(predict_frames(Brightest(), clip(3), fps=10, boxes=[]))[2].poses == []
    assert list(predict_frames(Brightest(), [], fps=10)) == []


@pytest.mark.parametrize(("missing", "anew"), [(5, False), (6, True)])
def test_a_short_gap_is_passed_over_and_a_long_one_starts_anew(missing: int, anew: bool) -> None:
    images = clip(20)
    seen = [k for k in range(20) if not 8 <= k < 8 + missing]
    boxes = {k: [[0, 0, 63, 47]] for k in seen}
    still = joints(list(predict_frames(Brightest(), images, fps=10, boxes=boxes)))
    got = joints(list(predict_frames(Echo(), images, fps=10, boxes=boxes, batch_size=3)))
    if anew:
        want = np.concatenate((echoes(still[:8], 1, 0.5), echoes(still[8:], 1, 0.5)))
    else:
        want = echoes(still, 1, 0.5)
    np.testing.assert_allclose(got, want, atol=1e-2)


def test_people_have_states_of_their_own() -> None:
    images = clip(10)
    boxes = [[0, 0, 63, 47], [2, 1, 50, 40]]
    both = list(predict_frames(Echo(), images, fps=20, boxes=boxes, batch_size=3))
    for person, box in enumerate(boxes):
        alone = joints(list(predict_frames(Echo(), images, fps=20, boxes=box)))
        mine = np.stack([f.poses[person].joints_3d for f in both])
        np.testing.assert_allclose(mine, alone, atol=1e-3)
        assert {f.poses[person].person for f in both} == {person}


def test_a_box_follows_the_estimate() -> None:
    """The spot leaves the first box by far."""
    images = [picture(200, 60, 20 + 4 * k, 30) for k in range(40)]

    class Body(Brightest):
        """Two joints' worth of a body: 20 px around the spot."""

        def forward(self, batch: PoseBatch) -> Prediction:
            found = super().forward(batch)
            scale = 20 / batch["crop_to_image"][:, :1, None, 0, :1]
            steps = torch.linspace(-0.5, 0.5, 17)[:, None]
            found["pred_2d"] = found["pred_2d"] + scale * steps
            return found

    frames = list(predict_frames(Body(), images, fps=10, boxes=[5, 15, 35, 45], follow=True))
    for frame in frames:
        pose = frame.poses[0]
        assert pose.joints_2d is not None
        assert pose.box is not None
        np.testing.assert_allclose(pose.joints_2d[8], [20 + 4 * frame.frame, 30], atol=1.5)
        assert 15 < pose.box[2] - pose.box[0] < 45
    lost = [*images[:10], *([np.zeros((60, 200, 3), np.uint8)] * 3), *images[10:12]]
    assert len(list(predict_frames(Body(), lost, fps=10, follow=True))) == 15
    with pytest.raises(UsageError, match="looks ahead"):
        list(predict_frames(Brightest(frames=5), images, fps=10, follow=True))

    class No2D(Brightest):
        def forward(self, batch: PoseBatch) -> Prediction:
            return {"pred_3d": super().forward(batch)["pred_3d"]}

    with pytest.raises(UsageError, match=r"No2D estimates no 2D"):
        list(predict_frames(No2D(), images, fps=10, follow=True))


# ---- 2D joints ----------------------------------------------------------------------------------


def people(frames: int, step: float = 2.0) -> list[Keypoints]:
    return [
        Keypoints(
            standing(60 + step * k, 70).numpy(), np.ones(17, np.float32), "coco_17",
            image=f"f_{k:03d}.png", frame=k,
        )
        for k in range(frames)
    ]  # fmt: skip


def coco(path: Path, found: list[Keypoints]) -> Path:
    records = [
        {"image_id": one.image, "category_id": 1, "score": 0.9,
         "keypoints": np.c_[one.joints_2d, one.scores].ravel().tolist()}
        for one in found
    ]  # fmt: skip
    path.write_text(json.dumps(records))
    return path


def heatmap_method(**changes: Any) -> Any:
    cls = cast(Any, resolve_class(get_method("latent-ae-heatmap")))
    torch.manual_seed(0)
    args = {**cls.tiny().hparams, **get_method("latent-ae-heatmap").args, **changes}
    return cls(**args).eval()


def test_joints_run_through_a_method_of_keypoints(tmp_path: Path) -> None:
    found = people(9)
    listed = read_people(coco(tmp_path / "k.json", [one for one in found if one.frame != 4]))
    from zoo.predict_video import ModelEstimator, open_video, run_frames
    from zoo.seen import Listed

    model = heatmap_method()
    video = open_video([np.zeros((160, 200, 3), np.uint8)] * 9, 10)
    frames = list(run_frames(video, Listed(listed, 5), ModelEstimator(model, 10)))
    assert [len(f.poses) for f in frames] == [1, 1, 1, 1, 0, 1, 1, 1, 1]
    want = predict_keypoints(model, [one for one in found if one.frame != 4])
    for pose, other in zip([p for f in frames for p in f.poses], want, strict=True):
        np.testing.assert_allclose(pose.joints_3d, other.joints_3d, atol=1e-2)
        np.testing.assert_allclose(pose.joints_2d, other.joints_2d, atol=1e-3)
        assert pose.frame_index == other.frame_index

    temporal = heatmap_method(temporal="blstm")
    video = open_video([np.zeros((160, 200, 3), np.uint8)] * 9, 10)
    moving = list(run_frames(video, Listed(listed, 5), ModelEstimator(temporal, 10, chunk=2)))
    assert [len(f.poses) for f in moving] == [1, 1, 1, 1, 0, 1, 1, 1, 1]


def test_box_files_and_frame_numbers(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(
        json.dumps(
            [
                {"image_id": 3, "category_id": 1, "bbox": [1, 2, 10, 20], "score": 0.5},
                {"image_id": 3, "category_id": 18, "bbox": [1, 2, 10, 20]},
                {"image_id": 12, "bbox": [0, 0, 5, 5]},
            ]
        )
    )
    assert read_people(path) == {3: [(1, 2, 11, 22)], 12: [(0, 0, 5, 5)]}
    frames = list(predict_frames(Brightest(), clip(5), fps=10, boxes={3: [[1, 2, 11, 22]]}))
    assert [len(f.poses) for f in frames] == [0, 0, 0, 1, 0]
    path.write_text(json.dumps([{"image_id": 3, "bbox": [1, 2, 0, 20]}]))
    with pytest.raises(DataError, match=r"record 0: its bbox .* has no area"):
        read_people(path)
    path.write_text(json.dumps([{"image_id": 3, "bbox": [1, 2, "x", 20]}]))
    with pytest.raises(DataError, match=r"b\.json, record 0: its bbox"):
        read_people(path)
    far = [{"image_id": 40083, "bbox": [0, 0, 5, 5]}, {"image_id": 785, "bbox": [0, 0, 5, 5]}]
    path.write_text(json.dumps(far))
    assert sorted(read_people(path)) == [0, 1]  # ids of pictures, not of frames


# ---- files --------------------------------------------------------------------------------------


def some_frames() -> list[FramePoses]:
    rng = np.random.default_rng(0)

    def pose(frame: int, person: int) -> Pose:
        values = rng.normal(size=(17, 3)).astype(np.float32)
        values[3] = np.nan
        return Pose(
            values, joints_2d=values[:, :2] * 9, box=np.array([1, 2, 3, 4]), person=person,
            frame_index=frame, source="v.mp4", method="m",
        )  # fmt: skip

    counts = [1, 0, 2, 1] + [0] * 600 + [1]
    return [
        FramePoses(k, k / 25, [pose(k, person + (k == 3)) for person in range(count)])
        for k, count in enumerate(counts)
    ]


def test_json_and_npz_hold_a_record_a_frame(tmp_path: Path) -> None:
    frames = some_frames()
    header = VideoHeader("v.mp4", 25.0, smoothing="one-euro")
    with JsonWriter(tmp_path / "p.json", header) as a, NpzWriter(tmp_path / "p.npz", header) as b:
        for frame in frames:
            a.write(frame)
            b.write(frame)
    document = json.loads((tmp_path / "p.json").read_text())
    assert len(document["frames"]) == len(frames)
    assert (document["fps"], document["units"], document["origin"]) == (25.0, "mm", "pelvis")
    assert document["frame"] == "camera (x right, y down, z forward)"
    assert (document["skeleton"], document["smoothing"]) == ("h36m_17", "one-euro")
    assert [f["frame"] for f in document["frames"]] == [f.frame for f in frames]
    assert document["frames"][3]["time_s"] == 0.12
    given = [pose for frame in frames for pose in frame.poses]
    for one, other in zip(load_poses(tmp_path / "p.json"), given, strict=True):
        assert one.to_dict() == other.to_dict()
    with np.load(tmp_path / "p.npz", allow_pickle=False) as data:
        assert data["joints_3d"].shape == (len(frames), 2, 17, 3)
        assert data["joints_3d"].dtype == np.float32
        assert data["person"][:4].tolist() == [[0, -1], [-1, -1], [0, 1], [1, -1]]
        assert "std_3d" not in data
        for frame in frames:
            for slot, pose in enumerate(frame.poses):
                for key in ("joints_3d", "joints_2d", "box"):
                    np.testing.assert_array_equal(data[key][frame.frame, slot], getattr(pose, key))
            assert np.isnan(data["joints_3d"][frame.frame, len(frame.poses) :]).all()
        assert data["time_s"][3] == 0.12
        assert float(data["fps"]) == 25
        assert list(data["joint_names"]) == list(H36M_17.joints)
        assert str(data["frame"]) == document["frame"]


@pytest.mark.parametrize("kind", [JsonWriter, NpzWriter])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_file_leaves_what_was_there(
    tmp_path: Path, kind: Any, error: type[BaseException]
) -> None:
    path = tmp_path / "p"
    path.write_text("before")
    with pytest.raises(error):  # noqa: PT012
        with kind(path, VideoHeader("v", 25)) as writer:
            writer.write(some_frames()[0])
            raise error
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_a_video_of_nobody_has_files_too(tmp_path: Path) -> None:
    header = VideoHeader("v.mp4", 25, method="m")
    with JsonWriter(tmp_path / "p.json", header) as a, NpzWriter(tmp_path / "p.npz", header) as b:
        for k in range(2):
            a.write(FramePoses(k, k / 25))
            b.write(FramePoses(k, k / 25))
    assert load_poses(tmp_path / "p.json") == []
    document = json.loads((tmp_path / "p.json").read_text())
    assert (document["method"], len(document["frames"])) == ("m", 2)
    with np.load(tmp_path / "p.npz") as data:
        assert data["joints_3d"].shape == (2, 0, 17, 3)


# ---- drawing ------------------------------------------------------------------------------------


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5))


def standing_pose() -> Pose:
    """Faces the camera: the person's left is on the right of the picture."""
    flat = {
        "pelvis": (0, 0), "hip": (13, 0), "knee": (14, 45), "ankle": (15, 90), "spine": (0, -25),
        "thorax": (0, -50), "nose": (0, -62), "head_top": (0, -75), "shoulder": (18, -48),
        "elbow": (30, -25), "wrist": (38, -2),
    }  # fmt: skip
    points = []
    for name in H36M_17.joints:
        side = {"l_": 1, "r_": -1}.get(name[:2], 1)
        x, y = flat[name[2:] if name[:2] in ("l_", "r_") else name]
        points.append((side * x, y))
    joints_2d = np.array(points, np.float32)
    joints_3d = np.c_[10 * joints_2d, np.zeros(17)]
    return Pose(joints_3d, joints_2d=joints_2d + np.array([150, 120]))


@pytest.mark.parametrize("factor", [1.0, 0.5, 2.0])
def test_the_skeleton_lies_on_the_person_and_left_is_left(factor: float) -> None:
    pose = standing_pose()
    assert pose.joints_2d is not None
    image = np.full((round(400 * factor), round(300 * factor), 3), 90, np.uint8)
    placed = Pose(pose.joints_3d, joints_2d=pose.joints_2d * factor)
    drawn = draw_frame(image, [placed])
    tall = min(max(image.shape[0], 360), 1080)
    assert drawn.shape[0] == tall
    scale = tall / image.shape[0]
    width = round(image.shape[1] * scale / 2) * 2
    left_side, right_side = drawn[:, :width].astype(int), drawn[:, width:].astype(int)
    for name, colour in (
        ("l_wrist", LEFT),
        ("r_wrist", RIGHT),
        ("l_knee", LEFT),
        ("r_ankle", RIGHT),
    ):
        assert placed.joints_2d is not None
        x, y = (placed.joints_2d[H36M_17.index(name)] + 0.5) * scale - 0.5
        there = left_side[round(float(y)), round(float(x))]
        assert np.abs(there - rgb(colour)).max() < 30, name
    # In the camera's view, too, the person's left is on the right.
    upper = right_side[: tall // 2]
    columns = {
        colour: np.flatnonzero((np.abs(upper[60:] - rgb(colour)).max(-1) < 20).any(0)).mean()
        for colour in (LEFT, RIGHT)
    }
    assert columns[LEFT] > columns[RIGHT] + 5


def test_frames_have_one_size_whoever_is_in_them() -> None:
    image = np.zeros((101, 77, 3), np.uint8)
    bare = Pose(np.zeros((17, 3)), box=np.array([5, 5, 50, 90]))
    shapes = {
        draw_frame(image, some, "note").shape
        for some in ([], [standing_pose()], [bare], [standing_pose(), bare, standing_pose()])
    }
    assert len(shapes) == 1
    assert all(side % 2 == 0 for side in shapes.pop()[:2])
    assert draw_frame(image, [bare]).tobytes() != draw_frame(image, []).tobytes()
    gone = Pose(np.full((17, 3), np.nan), joints_2d=np.full((17, 2), np.nan))
    far = Pose(np.full((17, 3), 1e9), joints_2d=np.full((17, 2), -1e9))
    draw_frame(image, [gone, far])


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, str]:
    """Tiny weights of a method of pictures, one of clips and one of joints."""
    found = {}
    torch.manual_seed(0)
    for name in ("park", "latent-blstm-pose", "latent-ae-heatmap"):
        cls = cast(Any, resolve_class(get_method(name)))
        changes = {k: v for k, v in get_method(name).args.items() if k != "backbone"}
        model = cls(**{**cls.tiny().hparams, **changes})
        model.zoo_name = name
        found[name] = str(tmp_path / f"{name}.safetensors")
        save_weights(model, found[name])
    return found


def zoo_predict(*words: str) -> int:
    return main(["predict", *words, "--gpus", "0"])


@pytest.fixture
def video(in_tmp: Path) -> str:
    write(in_tmp / "v.mp4", clip(12, 120, 90), 10)
    return "v.mp4"


@pytest.mark.parametrize("name", ["park", "latent-blstm-pose"])
def test_a_video_becomes_three_files(
    in_tmp: Path, video: str, weights: dict[str, str], name: str, capsys: Any
) -> None:
    command = [video, "--method", name, "--weights", weights[name], "--out", "out"]
    assert zoo_predict(*command, "--box", "10,5,100,85", "--smooth", "one-euro") == 0
    out = capsys.readouterr().out.split()
    assert out == ["out/v.poses.json", "out/v.poses.npz", "out/v.overlay.mp4"]
    assert sorted(str(p) for p in (in_tmp / "out").rglob("*")) == sorted(
        str(in_tmp / o) for o in out
    )
    info = video_info("out/v.overlay.mp4")
    assert (info.frames, info.fps, info.height) == (12, 10, 360)
    poses = load_poses("out/v.poses.json")
    assert [p.frame_index for p in poses] == list(range(12))
    assert {p.method for p in poses} == {name}
    with np.load("out/v.poses.npz") as data:
        np.testing.assert_array_equal(
            data["joints_3d"][:, 0], np.stack([p.joints_3d for p in poses])
        )
        assert str(data["smoothing"]) == "one-euro"
    import zoo as package

    model = package.load(weights[name])
    want = smooth_poses(model.predict(video, boxes=[10, 5, 100, 85]), 10)
    for one, other in zip(poses, want, strict=True):
        np.testing.assert_allclose(one.joints_3d, other.joints_3d, atol=1e-2)


def test_a_folder_is_a_video_when_it_has_a_rate(
    in_tmp: Path, weights: dict[str, str], capsys: Any
) -> None:
    (in_tmp / "frames").mkdir()
    for k, frame in enumerate(clip(4)):
        Image.fromarray(frame).save(in_tmp / "frames" / f"{k}.png")
    command = ["frames", "--method", "park", "--weights", weights["park"], "--fps", "5"]
    assert zoo_predict(*command, "--no-overlay", "--seconds", "0.5") == 0
    poses = load_poses("predictions/frames.poses.json")
    assert [p.frame_index for p in poses] == [0, 1, 2]  # 0.0, 0.2 and 0.4 s
    assert not Path("predictions/frames.overlay.mp4").exists()


def test_joints_of_a_file_are_drawn_on_their_video_and_lifted(in_tmp: Path, capsys: Any) -> None:
    write(in_tmp / "v.mp4", [np.full((160, 200, 3), 60, np.uint8)] * 6, 10)
    found = [one for one in people(6) if one.frame != 2]
    coco(in_tmp / "k.json", found)
    assert zoo_predict("v.mp4", "--people", "k.json", "--out", "out") == 0
    shown = capsys.readouterr()
    assert "1 frames have no person" in shown.err
    poses = load_poses("out/v.poses.json")
    assert [p.frame_index for p in poses] == [0, 1, 3, 4, 5]
    for one, other in zip(poses, lift_people(found), strict=True):
        np.testing.assert_allclose(one.joints_3d, other.joints_3d, atol=1e-3)
    # The file of a video is a keypoint file again, its frames where they were.
    assert sorted(read_people("out/v.poses.json")) == [0, 1, 3, 4, 5]


def test_a_keypoint_file_with_a_rate_is_smoothed(in_tmp: Path) -> None:
    rng = np.random.default_rng(0)
    found = [
        replace(one, joints_2d=one.joints_2d + rng.normal(0, 2, (17, 2)).astype(np.float32))
        for one in people(8)
    ]
    coco(in_tmp / "k.json", found)
    for words, out in ((["--smooth", "one-euro", "--smooth-beta", "0.02"], "a"), ([], "b")):
        assert zoo_predict("k.json", "--fps", "20", "--out", out, *words) == 0
    raw, smooth = load_poses("b/k.poses.json"), load_poses("a/k.poses.json")
    assert video_info("a/k.overlay.mp4").frames == 8
    for one, other in zip(smooth, smooth_poses(raw, 20, beta=0.02), strict=True):
        np.testing.assert_allclose(one.joints_3d, other.joints_3d, atol=1e-3)
    assert any(
        not np.array_equal(a.joints_3d, b.joints_3d) for a, b in zip(raw, smooth, strict=True)
    )


@pytest.mark.parametrize("source", ["k.json", "v.mp4", "p.png"])
def test_heatmaps_come_from_a_file_or_a_detector(
    in_tmp: Path, weights: dict[str, str], monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """``latent-ae-heatmap``, trained without pictures, on joints of files, photos and videos."""
    monkeypatch.setattr(
        zoo.detect, "load_detector", lambda *a, **k: Planted([(0.9, standing(60, 70))])
    )
    coco(in_tmp / "k.json", people(1))
    write(in_tmp / "v.mp4", [np.full((160, 200, 3), 60, np.uint8)] * 3, 10)
    Image.fromarray(np.full((160, 200, 3), 60, np.uint8)).save("p.png")
    name = "latent-ae-heatmap"
    command = [source, "--method", name, "--weights", weights[name], "--out", "out"]
    command += [] if source == "k.json" else ["--detector", "keypointrcnn"]
    assert zoo_predict(*command) == 0
    result = "out/v.poses.json" if source == "v.mp4" else "out/poses.json"
    poses = load_poses(result)
    assert len(poses) == (3 if source == "v.mp4" else 1)
    import zoo as package

    # A detector's pixels are half a pixel from a file's.
    shift = 0.0 if source == "k.json" else 0.5
    given = Keypoints(
        standing(60, 70).numpy() - shift, np.ones(17, np.float32), "coco_17"
    )  # fmt: skip
    (want,) = predict_keypoints(package.load(weights[name]), [given])
    for pose in poses:
        np.testing.assert_allclose(pose.joints_3d, want.joints_3d, atol=0.5)
        assert (pose.method, pose.skeleton) == (name, "h36m_17")


def test_a_detector_that_looks_now_and_then_holds_its_boxes(
    in_tmp: Path, video: str, weights: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = Planted([(0.9, standing(60, 45, 0.6)), (0.2, standing(20, 45, 0.3))])
    monkeypatch.setattr(zoo.detect, "load_detector", lambda *a, **k: planted)
    command = [video, "--method", "park", "--weights", weights["park"], "--no-overlay"]
    assert zoo_predict(*command, "--detector", "keypointrcnn", "--detect-every", "5") == 0
    assert len(planted.seen) == 3
    poses = load_poses("predictions/v.poses.json")
    assert [(p.frame_index, p.person) for p in poses] == [(k, 0) for k in range(12)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["none.mp4", "--method", "park"], "no video none.mp4"),
        (["bad.mp4", "--method", "park"], "bad.mp4 is not a video"),
        (["empty.mp4", "--method", "park"], "0 bytes"),
        (["v.mp4"], "videos need --method NAME"),
        (["v.mp4", "--method", "park", "--fps", "0"], "--fps is 0 frames a second"),
        (["v.mp4", "--method", "parc"], "did you mean park"),
        (["v.mp4", "--method", "park", "--smooth", "two-euro"], "did you mean one-euro"),
        (["v.mp4", "--method", "park", "--smooth-beta", "1"], "belong to --smooth"),
        (["v.mp4", "--method", "park", "--smooth", "one-euro", "--smooth-cutoff", "0"], "above 0"),
        (["v.mp4", "p.png", "--method", "park"], "p.png is a picture among videos"),
        (["v.mp4", "gone.png", "--method", "park"], "no such file or folder: gone.png"),
        (["v.mp4", "--method", "park", "--detect-every", "2"], "belongs to --detector"),
        (["v.mp4", "--method", "park", "--box", "1,2,3"], "--box takes x0,y0,x1,y1"),
        (["v.mp4", "--method", "park", "--box", "900,900,950,950"], "outside the video"),
        (["v.mp4", "--method", "park", "--people", "none.json"], "none.json"),
        (["v.mp4", "--method", "park", "--height", "1700"], "are for the lift"),
        (["v.mp4", "--method", "park", "--images", "."], "a video has its own frames"),
        (["v.mp4", "--method", "latent-ae-heatmap"], "takes 2D joints: give --detector"),
        (["v.mp4", "--method", "latent-blstm-pose", "--follow"], "looks ahead"),
        (["p.png", "--method", "park", "--smooth", "one-euro"], "--smooth is for videos"),
        (["p.png", "--method", "park", "--follow"], "--follow is for videos"),
        (["frames", "--method", "park", "--smooth", "one-euro"], "with --fps F the folder is one"),
        (["k.json", "--smooth", "one-euro"], "give --fps F"),
        (["k.json", "--fps", "20", "--box", "1,2,3,4"], "says who is where"),
        (["b.json", "--fps", "20"], "b.json holds no keypoints"),
        (["--webcam", "91", "--method", "park"], "no webcam 91"),
        (["v.mp4", "--webcam", "0", "--method", "park"], "cannot be predicted with it"),
        ([], "needs pictures, videos"),
        (["v.mp4", "--method", "park", "--seconds", "0"], "expected more than 0"),
    ],
)
def test_wrong_commands_are_one_line_and_write_nothing(
    in_tmp: Path, video: str, weights: dict[str, str], capfd: Any, words: list[str], says: str
) -> None:
    (in_tmp / "bad.mp4").write_bytes(b"x" * 500)
    (in_tmp / "empty.mp4").touch()
    (in_tmp / "frames").mkdir()
    for name in ("p.png", "frames/0.png"):
        Image.fromarray(clip(1)[0]).save(in_tmp / name)
    coco(in_tmp / "k.json", people(3))
    (in_tmp / "b.json").write_text(json.dumps([{"image_id": 0, "bbox": [0, 0, 9, 9]}]))
    name = words[words.index("--method") + 1] if "--method" in words else ""
    more = ["--weights", weights[name]] if name in weights else []
    assert zoo_predict(*words, *more) == 2
    shown = capfd.readouterr()
    lines = [line for line in shown.err.splitlines() if line.strip()]
    assert len(lines) == 1, shown.err
    assert lines[0].startswith("zoo: error: ")
    assert says in lines[0]
    assert not (in_tmp / "predictions").exists() or not any((in_tmp / "predictions").iterdir())


def test_a_truncated_video_leaves_no_files(
    in_tmp: Path, video: str, weights: dict[str, str], capsys: Any
) -> None:
    data = bytearray((in_tmp / video).read_bytes())
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[(start + end) // 2 : end] = b"\0" * (end - (start + end) // 2)
    (in_tmp / video).write_bytes(bytes(data))
    assert zoo_predict(video, "--method", "park", "--weights", weights["park"]) == 2
    assert "v.mp4 is truncated or corrupt: frame" in capsys.readouterr().err
    assert list((in_tmp / "predictions").iterdir()) == []


def test_a_clip_method_takes_a_single_photo_as_standing_still(
    in_tmp: Path, weights: dict[str, str], capsys: Any
) -> None:
    Image.fromarray(clip(1)[0]).save("p.png")
    name = "latent-blstm-pose"
    assert zoo_predict("p.png", "--method", name, "--weights", weights[name]) == 0
    assert "5 times the same picture" in capsys.readouterr().err
    assert len(load_poses("predictions/poses.json")) == 1


class _Camera:
    """A webcam of ``cv2.VideoCapture``'s shape, 30 fps; it is interrupted at frame 3."""

    taken = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def isOpened(self) -> bool:
        return True

    def set(self, what: int, value: float) -> bool:
        return True

    def get(self, what: int) -> float:
        return 30.0

    def read(self) -> tuple[bool, Frame]:
        _Camera.taken += 1
        if _Camera.taken == 4:
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.05)
        return True, np.full((90, 120, 3), 50, np.uint8)

    def release(self) -> None: ...


def test_a_webcam_films_until_it_is_interrupted(
    in_tmp: Path, weights: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2

    _Camera.taken = 0
    monkeypatch.setattr(cv2, "VideoCapture", _Camera)
    before = signal.getsignal(signal.SIGINT)
    command = ["--webcam", "0", "--method", "park", "--weights", weights["park"], "--no-overlay"]
    assert zoo_predict(*command) == 0
    assert signal.getsignal(signal.SIGINT) is before
    document = json.loads(Path("predictions/webcam0.poses.json").read_text())
    numbers = [f["frame"] for f in document["frames"]]
    assert len(numbers) == 4
    # 50 ms a picture at 30 fps: the numbers tell the time.
    assert numbers[-1] >= 4
    assert numbers == sorted(set(numbers))


@pytest.mark.slow
def test_an_interrupted_command_leaves_nothing(in_tmp: Path, weights: dict[str, str]) -> None:
    write(in_tmp / "long.mp4", clip(30, 320, 240) * 100, 25)
    command = [
        sys.executable,
        "-m",
        "zoo",
        "predict",
        "long.mp4",
        "--method",
        "park",
        "--gpus",
        "0",
    ]
    running = subprocess.Popen(
        [*command, "--weights", weights["park"]], stderr=subprocess.PIPE, text=True,
        # A shell that put the tests into the background has it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    out = in_tmp / "predictions"
    while running.poll() is None and not (out.exists() and len(list(out.iterdir())) == 3):
        time.sleep(0.1)
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "interrupted; nothing is written of long.mp4" in err
    assert "Traceback" not in err
    assert list(out.iterdir()) == []


def test_progress_shows_the_time_left(in_tmp: Path, video: str, weights: dict[str, str]) -> None:
    from io import StringIO

    from rich.console import Console

    from zoo.predict_video import VideoSource
    from zoo.video_cli import with_progress

    text = StringIO()
    console = Console(file=text, force_terminal=True, width=100)
    source = VideoSource(iter(()), 10, 40, "v.mp4")
    frames = (FramePoses(k, k / 10) for k in range(40) if not time.sleep(0.01))
    assert len(list(with_progress(frames, source, console))) == 40
    assert "v.mp4" in text.getvalue()
    assert "40/40" in text.getvalue()
    assert "0:00:00" in text.getvalue()
