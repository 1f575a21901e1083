"""Recordings to batches: cameras, clips, crops, splits, and what a trainer sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules.base import EpochSampler
from datamodules.filedata import FileDataModule, RecordingDataset, Sample, number_recordings
from datamodules.recordings import Camera, ImageFiles, Recording
from datamodules.synth.people import People, make_people
from zoo.base import InputSpec
from zoo.batch import PoseBatch
from zoo.errors import DataError, UsageError
from zoo.geometry import affine_apply, project
from zoo.protocols import Exclusion, Protocol
from zoo.skeleton import H36M_17

KEYPOINTS = InputSpec("keypoints", image_size=64)
SMALL = ((250, 252), (250, 250))


@pytest.fixture(scope="module")
def people() -> People:
    return make_people(("S1", "S5", "S8", "S9"), trials=(1,), frames=20, sizes=SMALL)


def recordings(
    people: People, folder: Path | None = None, count: int = 1000, **changes: Any
) -> list[Recording]:
    """The first recordings, in memory; with a folder, their pictures as files in it."""
    found: list[Recording] = []
    for take in people.takes:
        for camera in people.cameras[take.subject]:
            if len(found) == count:
                return found
            pictures = None
            if folder is not None:
                names = []
                for i, pixels in enumerate(people.pictures(take, camera)):
                    names.append(f"{take.subject}_{take.action}_{camera.name}_{i}.png")
                    Image.fromarray(pixels).save(folder / names[-1])
                pictures = ImageFiles(str(folder), tuple(names))
            recording = Recording(
                take.subject, take.action, take.trial, camera,
                joints_2d=people.pixels(take, camera), joints_3d=take.world, space="world",
                fps=people.fps, pictures=pictures,
            )  # fmt: skip
            found.append(replace(recording, **changes))
    return found


class Own(FileDataModule):
    """Recordings from memory."""

    given: list[Recording]

    def read(self) -> list[Recording]:
        return self.given

    def base_protocol(self) -> Protocol:
        return Protocol("own", "own", ("S1", "S5", "S8"), ("S9",), frame_step=5)


def module(given: list[Recording], spec: InputSpec = KEYPOINTS, **arguments: Any) -> Own:
    data = Own(root="memory", num_workers=0, input_spec=spec, **arguments)
    data.given = given
    return data


def dataset(given: list[Recording], spec: InputSpec = KEYPOINTS, **arguments: Any) -> Any:
    ids = number_recordings(given, sorted({r.action for r in given}))
    return RecordingDataset(given, ids, spec, **arguments)


# ---- cameras ------------------------------------------------------------------------------------


def test_opencv_lens_against_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    matrix = np.array([[1145.0, 0, 512], [0, 1143, 515], [0, 0, 1]])
    radial, tangential = np.array([-0.2, 0.24, -0.002]), np.array([-0.0009, -0.0016])
    camera = Camera("c", (1000, 1000), matrix, radial, tangential, lens="opencv")
    points = rng.uniform(-900, 900, (50, 3)) + np.array([0, 0, 4500])
    coefficients = np.array([*radial[:2], *tangential, radial[2]])
    expected, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix, coefficients)
    np.testing.assert_allclose(camera.project(points), expected[:, 0], atol=1e-6)
    own = replace(camera, lens="h36m").project(points)
    assert 1e-3 < np.abs(own - expected[:, 0]).max() < 2


def test_world_and_camera_frame_are_inverse_and_points_behind_have_no_pixel(people: People) -> None:
    camera = people.cameras["S1"][0]
    points = people.takes[0].world
    np.testing.assert_allclose(camera.to_world(camera.to_camera(points)), points, atol=1e-9)
    behind = np.array([[0.0, 0, -10], [0, 0, 10]])
    assert np.isnan(camera.project(behind)[0]).all()
    assert np.isfinite(camera.project(behind)[1]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotation": np.diag([1.0, 1, -1])}, "no rotation"),
        ({"rotation": np.eye(3) * 2}, "no rotation"),
        ({"matrix": np.diag([-1.0, 1, 1])}, "focal"),
        ({"radial": np.zeros(2)}, "radial must be"),
        ({"position": np.array([0, np.nan, 0])}, "position must be"),
    ],
)
def test_a_camera_that_is_none_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Camera("c", **change)


def test_a_recording_must_be_consistent(people: People) -> None:
    one = recordings(people)[0]
    with pytest.raises(DataError, match="joints_2d is"):
        replace(one, joints_2d=np.zeros((20, 16, 2)))
    with pytest.raises(DataError, match="do not increase"):
        replace(one, frames=np.zeros(20, np.int64))
    with pytest.raises(DataError, match="needs a camera"):
        replace(one, camera=None)
    with pytest.raises(DataError, match="neither 2D nor 3D"):
        replace(one, joints_2d=None, joints_3d=None)


# ---- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 3])
def test_every_key_shape_type_and_the_geometry(people: People, frames: int, tmp_path: Path) -> None:
    given = recordings(people, tmp_path, 2)
    spec = InputSpec(image_size=48, frames=frames, clip_fps=25.0)
    data = module(given, spec)
    batch = data.on_after_batch_transfer(dataset(given, spec).__getitems__([3, 25]), 0)
    joints = len(H36M_17)
    shapes = {
        "image": (2, frames, 3, 48, 48), "joints_2d": (2, frames, joints, 2),
        "scores_2d": (2, frames, joints), "valid_2d": (2, frames, joints),
        "valid_3d": (2, frames, joints), "occluded": (2, frames, joints),
        "joints_3d": (2, frames, joints, 3), "root_3d": (2, frames, 3),
        "intrinsics": (2, frames, 3, 3), "crop_to_image": (2, frames, 2, 3),
        "world_to_camera": (2, 3, 3), "subject": (2,), "action": (2,), "camera": (2,),
        "sequence": (2,), "frame": (2,),
    }  # fmt: skip
    assert {k: tuple(v.shape) for k, v in batch.items()} == shapes
    kinds = {k: v.dtype for k, v in batch.items()}
    assert {k for k, d in kinds.items() if d == torch.int64} == {
        "subject", "action", "camera", "sequence", "frame"}  # fmt: skip
    assert {k for k, d in kinds.items() if d == torch.bool} == {"valid_2d", "valid_3d", "occluded"}
    assert batch["frame"].tolist() == [3, 5]
    assert batch["camera"].tolist() == [0, 1]
    # Crop px lead back to the source, and the pinhole is off by no more than the lens bends.
    for place, (recording, row) in enumerate([(given[0], 3), (given[1], 5)]):
        middle = frames // 2
        source = affine_apply(batch["crop_to_image"], batch["joints_2d"])[place, middle]
        np.testing.assert_allclose(source, recording.pixels(row), atol=1e-3)
    pixels = project(batch["joints_3d"] + batch["root_3d"].unsqueeze(-2), batch["intrinsics"])
    assert (pixels - batch["joints_2d"]).abs().max() < 0.5
    assert batch["joints_2d"].min() > 0
    assert batch["joints_2d"].max() < 47


def test_crops_show_what_the_joints_say(people: People, tmp_path: Path) -> None:
    """A picture that encodes its own coordinates: the crop's colours are the source's places."""
    one = recordings(people)[0]
    y, x = np.mgrid[0:252, 0:250]
    Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8)).save(tmp_path / "map.png")
    one = replace(one, pictures=ImageFiles(str(tmp_path), ("map.png",) * 20))
    spec = InputSpec(image_size=80)
    batch = dataset([one], spec).__getitems__([4])
    image, affine = batch["image"][0, 0].double(), batch["crop_to_image"][0, 0].double()
    for u, v in [(20, 30), (40, 40), (60, 50)]:
        place = affine_apply(affine, torch.tensor([[u, v]]).double())[0]
        assert abs(image[0, v, u] - place[0]) <= 1
        assert abs(image[1, v, u] - place[1]) <= 1


def test_keypoint_methods_decode_nothing(people: People) -> None:
    missing = recordings(people, pictures=ImageFiles("/nowhere", ("gone.jpg",) * 20))
    assert "image" not in dataset(missing).__getitems__([0])
    with pytest.raises(DataError, match=r"/nowhere/gone\.jpg: no such picture"):
        dataset(missing, InputSpec(image_size=32)).__getitems__([0])
    with pytest.raises(DataError, match="takes images"):
        module(missing, InputSpec(image_size=32)).setup("test")
    module(missing).setup("test")


def test_joints_that_are_nan_are_not_valid_and_harm_nobody(people: People) -> None:
    one = recordings(people)[0]
    flat, deep = np.array(one.joints_2d), np.array(one.joints_3d)
    flat[0, 3], deep[0, 5], deep[1, 0] = np.nan, np.nan, np.nan
    batch = dataset([replace(one, joints_2d=flat, joints_3d=deep)]).__getitems__([0, 1])
    assert not batch["valid_2d"][0, 0, 3]
    assert batch["valid_2d"].sum() == 2 * 17 - 1
    assert not batch["valid_3d"][0, 0, 5]
    assert not batch["valid_3d"][1].any()  # no pelvis, no root: nothing is relative to it
    assert all(torch.isfinite(v).all() for v in cast(dict[str, Tensor], batch).values())


def test_2d_only_3d_only_and_no_person_at_all(people: People) -> None:
    one = recordings(people)[0]
    flat = dataset([replace(one, joints_3d=None, camera=None)]).__getitems__([0])
    full = dataset([one]).__getitems__([0])
    assert set(flat) == set(full)
    assert not flat["valid_3d"].any()
    torch.testing.assert_close(flat["joints_2d"], full["joints_2d"])
    projected = dataset([replace(one, joints_2d=None)]).__getitems__([0])
    torch.testing.assert_close(projected["joints_2d"], full["joints_2d"])
    nobody = replace(one, joints_3d=None, joints_2d=np.full_like(one.joints_2d, np.nan))
    batch = dataset([nobody]).__getitems__([0])
    assert not batch["valid_2d"].any()
    assert all(torch.isfinite(v).all() for v in cast(dict[str, Tensor], batch).values())


def test_an_affine_camera_projects_its_roots_exactly_and_poses_nearly(people: People) -> None:
    take, pinhole = people.takes[0], people.cameras["S1"][0]
    assert pinhole.rotation is not None
    affine = np.concatenate([0.05 * pinhole.rotation[:2], [[130.0], [120.0]]], 1)
    camera = Camera("a", (250, 250), affine=affine)
    one = Recording("S1", "Walking", 1, camera, joints_3d=take.world, space="world", fps=50.0)
    batch = dataset([one]).__getitems__([0, 7])
    np.testing.assert_allclose(batch["world_to_camera"][0], pinhole.rotation, atol=1e-5)
    pixels = project(batch["joints_3d"] + batch["root_3d"].unsqueeze(-2), batch["intrinsics"])
    gap = (pixels - batch["joints_2d"]).norm(dim=-1)
    assert gap[..., 0].max() < 1e-2
    assert gap.max() < 1.5


# ---- clips --------------------------------------------------------------------------------------


def test_clips_follow_the_rate_repeat_the_edges_and_know_gaps(people: People) -> None:
    one = recordings(people)[0]
    spec = InputSpec("keypoints", 64, frames=5, clip_fps=25.0)
    data = dataset([one], spec)
    assert data.clip_rows(10)[0].tolist() == [6, 8, 10, 12, 14]
    assert data.clip_rows(0)[0].tolist() == [0, 0, 0, 2, 4]
    assert data.clip_rows(19)[0].tolist() == [15, 17, 19, 19, 19]
    sparse = replace(one, joints_2d=one.joints_2d[::10], joints_3d=one.joints_3d[::10],
                     frames=np.array([0, 10]))  # type: ignore[index]  # fmt: skip
    rows, near = dataset([sparse], spec).clip_rows(1)
    assert rows.tolist() == [1, 1, 1, 1, 1]
    assert near.tolist() == [False, False, True, True, True]
    still = dataset([replace(one, fps=None)], spec)
    assert still.clip_rows(4)[0].tolist() == [4] * 5


def test_frame_steps_count_frames_of_the_source(people: People) -> None:
    one = recordings(people)[0]
    odd = replace(one, joints_2d=one.joints_2d[:4], joints_3d=one.joints_3d[:4],
                  frames=np.array([3, 5, 10, 11]))  # type: ignore[index]  # fmt: skip
    assert dataset([odd], step=5).__getitems__([0, 1])["frame"].tolist() == [5, 10]
    assert len(dataset([odd], step=5)) == 2


# ---- splits and the module ----------------------------------------------------------------------


def subjects(data: Own, split: str) -> set[int]:
    batches = list(getattr(data, f"{split}_dataloader")())
    return {int(s) for batch in batches for s in batch["subject"]}


def test_splits_by_subject_with_one_held_out(people: People) -> None:
    data = module(recordings(people), val_subjects=["S8"], batch_size=16)
    assert (subjects(data, "train"), subjects(data, "val"), subjects(data, "test")) == (
        {1, 5}, {8}, {9})  # fmt: skip
    assert data.protocol("val").test_subjects == ("S8",)
    assert data.protocol("test").train_subjects == ("S1", "S5")
    everyone = module(recordings(people), val_subjects=[], batch_size=16)
    assert subjects(everyone, "train") == {1, 5, 8}
    assert len(everyone.train_set) == 3 * 2 * 2 * 4  # 10 of 50 fps: every fifth of 20 frames
    assert 0 < len(everyone.val_set) <= len(everyone.train_set) / 10 + 1


def test_a_recordings_own_split_exclusions_cameras_and_trials(people: People) -> None:
    given = [replace(r, split="test" if r.subject == "S1" else "train") for r in recordings(people)]
    data = module(given, val_subjects=["S8"], batch_size=16)
    assert (subjects(data, "train"), subjects(data, "val"), subjects(data, "test")) == (
        {5, 9}, {8}, {1})  # fmt: skip
    left = Exclusion("S9", "Walking", 1, "54138969", "no video")

    class Strict(Own):
        exclusions = (left,)

        def base_protocol(self) -> Protocol:
            return replace(super().base_protocol(), cameras=("54138969",))

    strict = Strict(root="memory", num_workers=0, input_spec=KEYPOINTS)
    strict.given = recordings(people)
    assert [r.label for r in strict.test_set.recordings] == [
        "S9 Directions trial 1 camera 54138969"
    ]
    assert left in strict.protocol("test").exclusions
    assert {r.camera.name for r in strict.train_set.recordings} == {"54138969", "55011271"}  # type: ignore[union-attr]


def test_a_split_without_subjects_says_what_is_there(people: People) -> None:
    data = module([r for r in recordings(people) if r.subject != "S9"])
    with pytest.raises(DataError, match="nothing for test with protocol own: it wants S9, the "
                                        "folder has S1 S5 S8"):  # fmt: skip
        data.setup("test")
    with pytest.raises(UsageError, match=r"--data\.root"):
        FileDataModule().setup("fit")


def test_training_is_the_same_for_any_number_of_workers(people: People, tmp_path: Path) -> None:
    given = recordings(people, tmp_path, 4)

    class Shift:
        def box(self, centre: Any, side: float, rng: np.random.Generator) -> tuple[Any, float]:
            return centre + rng.uniform(-5, 5, 2), side * rng.uniform(0.9, 1.1)

        def sample(self, sample: Sample, rng: np.random.Generator) -> Sample:
            image = sample["image"] // 2 + rng.integers(0, 100, dtype=np.uint8)
            return {**sample, "image": image}

    def epoch(workers: int, number: int) -> list[PoseBatch]:
        data = module(given, InputSpec(image_size=32), val_subjects=[], batch_size=8)
        data.augmentation = Shift  # type: ignore[method-assign,assignment]
        data.num_workers = workers
        loader = data.train_dataloader()
        cast(EpochSampler, loader.sampler).set_epoch(number)
        return [data.on_after_batch_transfer(batch, 0) for batch in loader]

    first, again, other = epoch(0, 1), epoch(2, 1), epoch(0, 2)
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)  # type: ignore[literal-required]
    assert not torch.equal(first[0]["image"], other[0]["image"])
    assert "augment" not in first[0]
    assert first[0]["image"].max() <= 1


def test_mirrored_samples_stay_a_camera_view(people: People) -> None:
    given = recordings(people)
    plain = module(given, val_subjects=["S8"], flip=0.0, batch_size=4)
    mirrored = module(given, val_subjects=["S8"], flip=1.0, batch_size=4)
    a, b = (m.on_after_batch_transfer(next(iter(m.train_dataloader())), 0)
            for m in (plain, mirrored))  # fmt: skip
    knee = H36M_17.index("l_knee"), H36M_17.index("r_knee")
    torch.testing.assert_close(a["joints_3d"][..., knee[0], 1], b["joints_3d"][..., knee[1], 1])
    pixels = project(b["joints_3d"] + b["root_3d"].unsqueeze(-2), b["intrinsics"])
    assert (pixels - b["joints_2d"]).abs().max() < 0.5


def test_training_poses_are_spread_and_unmirrored(people: People) -> None:
    data = module(recordings(people), val_subjects=["S8"])
    poses = data.training_poses(10)
    assert poses["joints_3d"].shape == (10, 1, 17, 3)
    assert set(poses["subject"].tolist()) == {1, 5}
    again = data.training_poses(10)
    torch.testing.assert_close(poses["joints_3d"], again["joints_3d"], rtol=0, atol=0)
