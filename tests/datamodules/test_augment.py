"""Augmentation of pictures: what is drawn, what is labelled and what is projected stay together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from datamodules.augment import SCHEMES, PictureAugmentation, make_augmentation
from datamodules.own import OwnDataModule
from datamodules.synth.own import write
from datamodules.synth.people import make_people
from datamodules.transforms import flip_batch
from zoo.base import InputSpec
from zoo.errors import DataError, UsageError
from zoo.skeleton import H36M_17

SIZE = 96
SIDES = {"r": (255, 0, 0), "l": (0, 0, 255)}


def made_sample(frames: int = 1, seed: int = 0, pictures: bool = True) -> dict[str, NDArray[Any]]:
    """A sample whose picture shows each joint: red discs on the right, blue ones on the left."""
    rng = np.random.default_rng(seed)
    joints = rng.normal(0, 300, (frames, 17, 3))
    joints -= joints[:, :1]
    root = np.array([[50.0, -20.0, 4500.0]]).repeat(frames, 0)
    matrix = np.array([[190.0, 0, 46.0], [0, 190.0, 49.0], [0, 0, 1]])
    points = (joints + root[:, None]) @ matrix.T
    points = points[..., :2] / points[..., 2:]
    image = np.zeros((frames, SIZE, SIZE, 3), np.uint8)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    for t in range(frames):
        for name, (u, v) in zip(H36M_17.joints, points[t], strict=True):
            if name[:2] in ("r_", "l_"):
                image[t][(x - u) ** 2 + (y - v) ** 2 < 9] = SIDES[name[0]]
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    sample: dict[str, NDArray[Any]] = {
        "joints_2d": points,
        "scores_2d": rng.random((frames, 17)) * 0.5 + 0.5,
        "valid_2d": np.ones((frames, 17), np.bool_),
        "valid_3d": np.ones((frames, 17), np.bool_),
        "occluded": rng.random((frames, 17)) < 0.3,
        "joints_3d": joints,
        "root_3d": root,
        "intrinsics": np.repeat(matrix[None], frames, 0),
        "crop_to_image": np.array([[[3.0, 0, 100], [0, 3.0, 50]]]).repeat(frames, 0),
        "world_to_camera": turn * np.linalg.det(turn),
        "subject": np.array(1),
    }
    if pictures:
        sample["image"] = image
    return sample


def projected(sample: dict[str, NDArray[Any]]) -> NDArray[Any]:
    points = (sample["joints_3d"] + sample["root_3d"][:, None]) @ sample["intrinsics"].swapaxes(
        -1, -2
    )
    return cast(NDArray[Any], points[..., :2] / points[..., 2:])


def source_px(sample: dict[str, NDArray[Any]]) -> NDArray[Any]:
    affine = sample["crop_to_image"]
    return cast(
        NDArray[Any],
        np.einsum("tij,tnj->tni", affine[..., :2], sample["joints_2d"]) + affine[:, None, :, 2],
    )


def bones(joints: NDArray[Any]) -> NDArray[Any]:
    return np.array([np.linalg.norm(joints[..., c, :] - joints[..., p, :], axis=-1)
                     for c, p in H36M_17.bones])  # fmt: skip


PIPELINES: dict[str, Any] = {
    **{name: None for name in SCHEMES},
    "mirror": [A.HorizontalFlip(p=1.0)],
    "upside down": [A.VerticalFlip(p=1.0)],
    "quarter": [A.Rotate((90, 90), p=1.0)],
    "transpose": [A.Transpose(p=1.0)],
    "pixels": [A.RandomBrightnessContrast(p=1.0), A.GaussNoise(p=1.0)],
}


def augmentation(name: str) -> PictureAugmentation:
    if PIPELINES[name] is None:
        made = make_augmentation(name, SIZE)
        assert made is not None
        return made
    return PictureAugmentation(PIPELINES[name], SIZE)


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_picture_labels_and_camera_stay_in_step(name: str) -> None:
    augment = augmentation(name)
    mirrors = 0
    for seed in range(12):
        before = made_sample(seed=seed)
        after = augment.sample(before, np.random.default_rng(seed))
        assert set(after) == set(before)
        mirrored = bool(
            np.linalg.det(after["crop_to_image"][0, :, :2]) < 0
        )  # the way back turns over
        mirrors += mirrored
        order = list(H36M_17.flip) if mirrored else list(range(17))
        # Camera and 3D: the new intrinsics project the new pose onto the new pixels.
        assert np.abs(projected(after) - after["joints_2d"]).max() < 1e-6
        assert np.allclose(bones(after["joints_3d"]), bones(before["joints_3d"][:, order]))
        # Back in the source picture every joint is where it was, under the other side's name.
        assert np.abs(source_px(after) - source_px(before)[:, order]).max() < 1e-3
        for key in ("scores_2d", "occluded"):
            assert (after[key] == before[key][:, order]).all()
        world = after["world_to_camera"]
        assert np.allclose(world @ world.T, np.eye(3), atol=1e-6)
        assert np.linalg.det(world) > 0
        if not mirrored:  # the world stands still when the camera rolls
            ours = after["joints_3d"] @ world
            assert np.allclose(ours, before["joints_3d"] @ before["world_to_camera"], atol=1e-3)
        # Colour: what is labelled right shows what was painted for the side it is now.
        if name == "pixels":
            continue
        for joint in ("r_wrist", "l_ankle", "r_knee"):
            at = H36M_17.index(joint)
            u, v = np.rint(after["joints_2d"][0, at]).astype(int)
            others = np.delete(after["joints_2d"][0], at, 0)
            lonely = np.linalg.norm(others - after["joints_2d"][0, at], axis=1).min() > 8
            if lonely and 3 <= u < SIZE - 3 and 3 <= v < SIZE - 3:
                side = joint[0] if not mirrored else {"r": "l", "l": "r"}[joint[0]]
                shown = after["image"][0, v, u].astype(int)
                assert shown[0 if side == "r" else 2] > 150, (joint, shown)
                assert shown[2 if side == "r" else 0] < 100, (joint, shown)
    expected = {"mirror": 12, "upside down": 12, "transpose": 12, "cpm": range(1, 12)}
    wanted = expected.get(name, 0)
    assert mirrors == wanted or (isinstance(wanted, range) and mirrors in wanted)


def test_the_mirror_is_that_of_tensors() -> None:
    before = made_sample()
    after = PictureAugmentation([A.HorizontalFlip(p=1.0)], SIZE).sample(
        before, np.random.default_rng(0)
    )

    def batch(sample: dict[str, NDArray[Any]]) -> Any:
        tensors = {k: torch.from_numpy(np.ascontiguousarray(v))[None] for k, v in sample.items()}
        tensors["image"] = tensors["image"].permute(0, 1, 4, 2, 3).float() / 255
        return tensors

    expected, ours = flip_batch(batch(before), H36M_17, SIZE), batch(after)
    for key, value in cast(dict[str, torch.Tensor], expected).items():
        assert torch.allclose(value.double(), ours[key].double(), atol=1e-6), key


def test_what_is_not_valid_moves_with_its_side() -> None:
    sample = made_sample()
    right, left = H36M_17.index("r_wrist"), H36M_17.index("l_wrist")
    for key in ("valid_2d", "valid_3d"):
        sample[key][0, right] = False
    sample["joints_2d"][0, right] = sample["joints_3d"][0, right] = 0.0
    after = PictureAugmentation([A.HorizontalFlip(p=1.0)], SIZE).sample(
        sample, np.random.default_rng(0)
    )
    for key in ("valid_2d", "valid_3d"):
        assert not after[key][0, left]
        assert after[key][0, right]
        assert after[key].sum() == 16
    assert (after["joints_2d"][0, left] == 0).all()
    assert (after["joints_3d"][0, left] == 0).all()


def scales(augment: PictureAugmentation, frames: int, draws: int) -> NDArray[Any]:
    """(draws, frames) scale of the picture, and the shift of its middle in (draws, frames, 2)."""
    found = []
    for seed in range(draws):
        after = augment.sample(made_sample(frames, pictures=False), np.random.default_rng(seed))
        found.append(3.0 / after["crop_to_image"][:, 0, 0])
    return np.array(found)


def test_schemes_do_what_the_papers_say() -> None:
    rpsm = augmentation("rpsm")
    drawn = scales(rpsm, 5, 40)
    assert drawn.min() >= 0.9 - 1e-6
    assert drawn.max() <= 1.1 + 1e-6
    assert drawn.min() < 0.92
    assert drawn.max() > 1.08
    assert (drawn.std(axis=1) > 1e-4).all()  # each frame of a clip has its own
    corners = np.array([[-0.5, -0.5], [SIZE - 0.5, SIZE - 0.5]])
    for name, share in (("katircioglu", 112 / 128), ("park", 225 / 250)):
        augment = augmentation(name)
        places = []
        for seed in range(60):
            before = made_sample(3, pictures=False)
            after = augment.sample(before, np.random.default_rng(seed))
            back = after["crop_to_image"] @ np.linalg.inv(np.eye(3))
            window = (corners @ back[0, :, :2].T + back[0, :, 2] - [100, 50]) / 3
            assert (window[1] - window[0]) / SIZE == pytest.approx([share, share], rel=1e-5)
            assert window.min() > -0.5 - 1e-3  # inside of the crop
            assert window.max() < SIZE - 0.5 + 1e-3
            assert np.ptp(back[:, 0, 2]) < 1e-9  # one draw a clip
            places.append((window[0] + 0.5) / (SIZE * (1 - share)))
        # At any place, in both directions on their own.
        assert np.quantile(places, 0.1) < 0.2
        assert np.quantile(places, 0.9) > 0.8
        assert abs(np.corrcoef(np.array(places).T)[0, 1]) < 0.5
        # 3D knows nothing of a shift or a scale.
        assert (after["joints_3d"] == before["joints_3d"]).all()


# ---- in a data module ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures") / "data"
    write(root, make_people(("S1", "S5", "S9"), ("Walking",), (1,), frames=6,
                            sizes=((120, 122), (120, 120)), detail=96))  # fmt: skip
    return root


def module(folder: Path, augment: str, **arguments: Any) -> OwnDataModule:
    defaults: dict[str, Any] = {
        "flip": 0.0, "color_jitter": 0.0, "num_workers": 0, "batch_size": 4, "train_fps": 50,
        "input_spec": InputSpec("image", SIZE, frames=3, clip_fps=50),
    }  # fmt: skip
    return OwnDataModule(str(folder), augment=augment, **{**defaults, **arguments})


def batch_of(data: OwnDataModule, epoch: int = 0) -> Any:
    count = len(data.train_set)
    return data.train_set.__getitems__([epoch * count + i for i in range(4)])


@pytest.mark.parametrize("name", ["rpsm", "cpm"])
def test_training_samples_are_augmented_and_nothing_else(folder: Path, name: str) -> None:
    plain, data = module(folder, ""), module(folder, name)
    first, again, later = batch_of(data), batch_of(module(folder, name)), batch_of(data, 1)
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], later["image"])
    assert not torch.equal(first["image"], batch_of(plain)["image"])
    alone = data.train_set.__getitems__([2])  # whatever stands beside it
    assert torch.equal(alone["image"][0], first["image"][2])
    matrix = first["intrinsics"].double()
    points = (first["joints_3d"] + first["root_3d"][..., None, :]).double() @ matrix.mT
    gap = points[..., :2] / points[..., 2:] - first["joints_2d"].double()
    assert gap.abs().max() < 2.0  # the lens's distortion, which a pinhole does not have
    for split in ("val_set", "test_set"):
        ours, theirs = (getattr(d, split).__getitems__(range(3)) for d in (data, plain))
        assert torch.equal(ours["image"], theirs["image"])
        assert torch.equal(ours["joints_2d"], theirs["joints_2d"])


def test_workers_draw_the_same(folder: Path) -> None:
    def pictures(workers: int) -> torch.Tensor:
        loader = module(folder, "cpm", num_workers=workers).train_dataloader()
        return torch.cat([batch["image"] for batch in loader])

    assert torch.equal(pictures(0), pictures(1))


def test_methods_that_take_keypoints(folder: Path) -> None:
    spec = InputSpec("keypoints", SIZE, frames=3, clip_fps=50)
    with_pictures, without = module(folder, "cpm"), module(folder, "cpm", input_spec=spec)
    one, two = batch_of(with_pictures), batch_of(without)
    assert "image" not in two
    assert torch.allclose(one["joints_2d"], two["joints_2d"], atol=1e-3)
    assert torch.allclose(one["joints_3d"], two["joints_3d"], atol=1e-2)


def test_a_pipeline_of_one_s_own(folder: Path, tmp_path: Path) -> None:
    pipeline = A.Compose([A.HorizontalFlip(p=1.0), A.Affine(scale=(0.8, 0.8), p=1.0)])
    for suffix in ("json", "yaml"):
        path = tmp_path / f"mine.{suffix}"
        A.save(pipeline, str(path), data_format=cast(Any, suffix))
        ours, plain = batch_of(module(folder, str(path))), batch_of(module(folder, ""))
        factor = ours["crop_to_image"][:, 0, 0, 0] / plain["crop_to_image"][:, 0, 0, 0]
        assert torch.allclose(factor, torch.tensor(-1 / 0.8), rtol=1e-4)


# ---- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (A.Affine(scale={"x": (1.2, 1.2), "y": (1.0, 1.0)}, p=1.0), "stretches people"),
        (A.Affine(shear=(20, 20), p=1.0), "stretches people"),
        (A.Perspective(scale=(0.1, 0.1), p=1.0), "stretches people"),
        (A.RandomCrop(64, 64, p=1.0), "must keep the size"),
    ],
)
def test_what_would_falsify_3d_is_refused(transform: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        PictureAugmentation([transform], SIZE).sample(made_sample(), np.random.default_rng(0))


def test_a_turn_for_each_frame_is_refused() -> None:
    augment = PictureAugmentation([A.Rotate((20, 30), p=1.0)], SIZE, per_frame=True)
    augment.sample(made_sample(1), np.random.default_rng(0))
    with pytest.raises(UsageError, match="may not turn or mirror"):
        augment.sample(made_sample(2), np.random.default_rng(0))


def test_names_and_files(tmp_path: Path) -> None:
    assert make_augmentation("") is None
    with pytest.raises(UsageError, match="did you mean rpsm"):
        make_augmentation("rpms")
    with pytest.raises(DataError, match=r"none\.json"):
        make_augmentation(str(tmp_path / "none.json"))
    (tmp_path / "x.yaml").write_text("a: [")
    (tmp_path / "y.json").write_text('{"transform": {"__class_fullname__": "os.system"}}')
    for name in ("x.yaml", "y.json"):
        with pytest.raises(DataError, match="no pipeline of albumentations") as error:
            make_augmentation(str(tmp_path / name))
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="no augmentation 'flip'"):
        OwnDataModule("nowhere", augment="flip")
