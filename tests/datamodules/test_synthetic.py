"""The synthetic data: determinism, splits, geometry, and what a trainer sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules.base import EpochSampler
from datamodules.motion import JOINT_NAMES, PARENTS, MotionBank, write_npz
from datamodules.splits import base_name
from datamodules.synthetic import SyntheticDataModule, make_test_images, render_batch
from datamodules.transforms import flip_batch
from zoo.base import InputSpec
from zoo.batch import SAMPLE_ID_KEYS, PoseBatch
from zoo.errors import DataError, OutputError, UsageError
from zoo.geometry import affine_apply, project
from zoo.skeleton import H36M_17

SMALL = InputSpec(image_size=32)
KEYPOINTS = InputSpec("keypoints", image_size=64)


@pytest.fixture(scope="module")
def motion(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small motion file with recordings of every split."""
    path = tmp_path_factory.mktemp("motion") / "small.npz"
    bank = MotionBank.generated(
        3, actions=["Directions", "Walking"], recordings={"train": 2, "val": 1, "test": 2},
        seconds=2.0,
    )  # fmt: skip
    write_npz(path, {
        "names": np.array(bank.names), "actions": np.array(bank.actions),
        "starts": bank.starts, "lengths": bank.lengths, "positions": bank.positions,
        "fps": np.array(bank.fps), "joint_names": np.array(JOINT_NAMES), "parents": PARENTS,
    })  # fmt: skip
    return str(path)


def module(motion: str, **arguments: Any) -> SyntheticDataModule:
    defaults: dict[str, Any] = {
        "train_samples": 24, "val_samples": 12, "test_samples": 40, "batch_size": 8,
        "input_spec": SMALL,
    }  # fmt: skip
    return SyntheticDataModule(motion, **{**defaults, **arguments})


def batches(data: SyntheticDataModule, split: str, epoch: int = 0) -> list[PoseBatch]:
    loader = getattr(data, f"{split}_dataloader")()
    if isinstance(loader.sampler, EpochSampler):
        loader.sampler.set_epoch(epoch)
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def same(a: PoseBatch, b: PoseBatch) -> bool:
    assert set(a) == set(b)
    return all(torch.equal(cast(Tensor, a[k]), cast(Tensor, b[k])) for k in a)  # type: ignore[literal-required]


# ---- the batch ----------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 3])
def test_every_key_shape_and_type(motion: str, frames: int) -> None:
    data = module(motion, input_spec=InputSpec(image_size=32, frames=frames))
    batch = batches(data, "train")[0]
    joints = len(H36M_17)
    shapes = {
        "image": (8, frames, 3, 32, 32), "joints_2d": (8, frames, joints, 2),
        "scores_2d": (8, frames, joints), "valid_2d": (8, frames, joints),
        "valid_3d": (8, frames, joints), "occluded": (8, frames, joints),
        "joints_3d": (8, frames, joints, 3), "root_3d": (8, frames, 3),
        "intrinsics": (8, frames, 3, 3), "crop_to_image": (8, frames, 2, 3),
        "world_to_camera": (8, 3, 3), **{key: (8,) for key in SAMPLE_ID_KEYS},
    }  # fmt: skip
    assert set(batch) == set(PoseBatch.__annotations__) == set(shapes)
    for key, shape in shapes.items():
        value = cast(Tensor, batch[key])  # type: ignore[literal-required]
        assert tuple(value.shape) == shape, key
        if key in ("valid_2d", "valid_3d", "occluded"):
            assert value.dtype == torch.bool
        elif key in SAMPLE_ID_KEYS:
            assert value.dtype == torch.int64
        else:
            assert value.dtype == torch.float32
            assert torch.isfinite(value).all(), key
    assert batch["image"].min() >= 0
    assert batch["image"].max() <= 1
    assert (batch["joints_3d"][:, :, 0] == 0).all()
    assert batch["valid_2d"].all()
    assert batch["valid_3d"].all()


def test_projection_is_consistent(motion: str) -> None:
    data = module(motion, flip=0.5, rotation=20.0, box_jitter=0.3)
    for batch in batches(data, "train") + batches(data, "val"):
        absolute = batch["joints_3d"] + batch["root_3d"][:, :, None]
        error = project(absolute, batch["intrinsics"]) - batch["joints_2d"]
        assert error.abs().max() < 1e-3
        # The source camera is a Human3.6M-like one: undo the crop and look at it.
        whole = affine_apply(batch["crop_to_image"], batch["joints_2d"])
        focal = batch["intrinsics"][..., 0, 0] * batch["crop_to_image"][..., 0, 0]
        assert ((focal - 1146).abs() < 4).all()
        assert ((whole > -300) & (whole < 1300)).all()
        assert ((batch["root_3d"][..., 2] > 2500) & (batch["root_3d"][..., 2] < 6800)).all()


def test_upright_world(motion: str) -> None:
    for batch in batches(module(motion, flip=0.5), "train") + batches(module(motion), "test"):
        rotation = batch["world_to_camera"]
        assert torch.allclose(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-5)
        assert torch.allclose(torch.linalg.det(rotation), torch.ones(len(rotation)), atol=1e-5)
        # World up points upwards in the picture; in the world the head is above the pelvis.
        assert (rotation[:, 1, 2] < -0.9).all()
        world = torch.einsum("bji,btkj->btki", rotation, batch["joints_3d"])
        assert (world[:, :, H36M_17.index("head_top"), 2] > 300).all()


def test_box_scale_without_jitter(motion: str) -> None:
    """The person's surface box fills 1 / crop_scale of the crop."""
    spec = InputSpec(image_size=96, crop_scale=1.25)
    batch = batches(module(motion, input_spec=spec, noise=0.0), "val")[0]
    span = (batch["joints_2d"].amax((1, 2)) - batch["joints_2d"].amin((1, 2))).amax(-1)
    # Joints lie inside the surface: crown, hands and feet stick out.
    assert ((span < 96 / 1.25) & (span > 0.75 * 96 / 1.25)).all()


def test_keypoints_are_not_rendered(motion: str) -> None:
    data = module(motion, input_spec=KEYPOINTS)
    image = module(motion, input_spec=InputSpec(image_size=64))
    for keys, full in zip(batches(data, "val"), batches(image, "val"), strict=True):
        assert "image" not in keys
        for key in ("joints_2d", "joints_3d", "occluded", "intrinsics", "frame"):
            assert torch.equal(cast(Tensor, keys[key]), cast(Tensor, full[key]))  # type: ignore[literal-required]
    assert 0.02 < torch.cat([b["occluded"] for b in batches(data, "val")]).float().mean() < 0.5


def test_clips_share_camera_body_and_crop(motion: str) -> None:
    spec = InputSpec(image_size=32, frames=5, clip_fps=10.0)
    batch = batches(module(motion, input_spec=spec), "train")[0]
    for key in ("intrinsics", "crop_to_image"):
        value = cast(Tensor, batch[key])  # type: ignore[literal-required]
        assert (value == value[:, :1]).all()
    parents = torch.tensor(H36M_17.parents)
    limbs = (batch["joints_3d"] - batch["joints_3d"][:, :, parents])[:, :, 1:].norm(dim=-1)
    assert torch.allclose(limbs, limbs[:, :1].expand_as(limbs), atol=0.05)
    assert (batch["joints_3d"][:, 0] - batch["joints_3d"][:, 4]).abs().max() > 20  # they move
    # The centre frame is the one that a single-frame sample shows.
    single = batches(module(motion), "train")[0]
    assert torch.allclose(single["joints_3d"][:, 0], batch["joints_3d"][:, 2], atol=1e-3)
    assert torch.equal(single["frame"], batch["frame"])


# ---- determinism --------------------------------------------------------------------------------


def test_same_seed_same_batches(motion: str) -> None:
    one, two = (batches(module(motion, pca_color=0.1), "train") for _ in range(2))
    assert len(one) == 3
    assert all(same(a, b) for a, b in zip(one, two, strict=True))


def test_seed_changes_training_but_not_the_test(motion: str) -> None:
    a, b = module(motion, seed=0), module(motion, seed=1)
    assert not torch.equal(batches(a, "train")[0]["joints_3d"], batches(b, "train")[0]["joints_3d"])
    for split in ("val", "test"):
        assert all(same(x, y) for x, y in zip(batches(a, split), batches(b, split), strict=True))
    c = module(motion, world_seed=1)
    assert not torch.equal(batches(a, "test")[0]["joints_3d"], batches(c, "test")[0]["joints_3d"])


def test_epochs_differ_in_training_only(motion: str) -> None:
    data = module(motion)
    first, again, next_ = (batches(data, "train", epoch=e) for e in (0, 0, 1))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not same(first[0], next_[0])
    assert same(batches(data, "val")[0], batches(data, "val")[0])


def test_workers_change_nothing(motion: str) -> None:
    alone, helped = module(motion), module(motion, num_workers=2)
    a, b = batches(alone, "train", epoch=3), batches(helped, "train", epoch=3)
    assert all(same(x, y) for x, y in zip(a, b, strict=True))


def test_a_sample_does_not_depend_on_its_batch(motion: str) -> None:
    dataset = module(motion).train_set
    whole = dataset.__getitems__([5, 29, 7])
    for i, index in enumerate((5, 29, 7)):
        one = dataset[index]
        assert all(torch.equal(one[key], whole[key][i]) for key in whole)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_an_epoch(motion: str, world: int) -> None:
    dataset = module(motion).train_set
    seen: list[int] = []
    for rank in range(world):
        sampler = EpochSampler(dataset, num_replicas=world, rank=rank, seed=4)
        sampler.set_epoch(2)
        seen += list(sampler)
    assert sorted(seen) == [2 * 24 + i for i in range(24)]
    alone = EpochSampler(dataset, seed=4)
    alone.set_epoch(2)
    if world == 1:
        assert seen == list(alone)


def test_uniforms_are_uniform(motion: str) -> None:
    samples = module(motion, train_samples=2000).train_set.__getitems__(range(2000))
    for key in ("scene", "outfit", "augment"):
        u = samples[key]
        assert u.min() >= 0
        assert u.max() < 1
        assert abs(u.mean() - 0.5) < 0.02, key
    scene = samples["scene"][:, :60]
    assert abs(scene.std() - 1 / 12**0.5) < 0.003
    correlation = torch.corrcoef(scene.T) - torch.eye(60)
    assert correlation.abs().max() < 0.12


# ---- splits and ids -----------------------------------------------------------------------------


def test_splits_share_no_body_and_no_recording(motion: str) -> None:
    data = module(motion)
    sets = [data.train_set, data.val_set, data.test_set]
    lengths = [{tuple(row) for row in s.lengths.tolist()} for s in sets]
    clothes = [set(s.clothing.tolist()) for s in sets]
    names = [{base_name(n) for n in s.bank.names} for s in sets]
    for groups in (lengths, clothes, names):
        assert all(groups)
        for i in range(3):
            for j in range(i):
                assert not groups[i] & groups[j]
    assert set(sets[0].subjects) == {1, 5, 6, 7, 8}
    assert set(sets[2].subjects) == {9, 11}
    assert not set(sets[1].subjects) & {1, 5, 6, 7, 8, 9, 11}


@pytest.mark.parametrize("split", ["val", "test"])
def test_ids_are_unique_and_cover_the_cameras(motion: str, split: str) -> None:
    data = module(motion, val_samples=399, test_samples=399)
    ids = []
    for batch in batches(data, split):
        ids += list(zip(*(cast(Tensor, batch[k]).tolist() for k in SAMPLE_ID_KEYS), strict=True))  # type: ignore[literal-required]
    assert len(ids) == len(set(ids)) == 399
    assert {i[2] for i in ids} == {0, 1, 2, 3}
    dataset = data.val_set if split == "val" else data.test_set
    assert len({i[3] for i in ids}) == len(dataset.bank)


def test_no_more_samples_than_there_are(motion: str) -> None:
    data = module(motion, test_samples=10**9)
    assert len(data.test_set) == 4 * data.test_set.bank.num_frames


def test_training_and_test_sequences_have_different_ids(motion: str) -> None:
    data = module(motion)
    ids = [{int(s) for b in batches(data, n) for s in b["sequence"]} for n in ("train", "test")]
    assert not ids[0] & ids[1]


def test_test_cameras_are_fixed_and_training_cameras_free(motion: str) -> None:
    data = module(motion, train_samples=200, batch_size=50, input_spec=KEYPOINTS)
    test = batches(data, "test")
    rotations = {
        (int(c), *np.round(r.flatten().tolist(), 4).tolist())
        for b in test for c, r in zip(b["camera"], b["world_to_camera"], strict=True)
    }  # fmt: skip
    assert len(rotations) == 4
    forward = torch.cat([b["world_to_camera"][:, 2] for b in batches(data, "train")])
    azimuth = torch.atan2(forward[:, 1], forward[:, 0])
    counts = torch.histc(azimuth, 8, -torch.pi, torch.pi)
    assert counts.min() > 8


def test_training_poses(motion: str) -> None:
    data = module(motion)
    poses = data.training_poses(50)
    assert poses["joints_3d"].shape == (50, 1, 17, 3)
    assert {"valid_3d", "joints_2d", "valid_2d", "root_3d", "intrinsics", "world_to_camera",
            *SAMPLE_ID_KEYS} <= set(poses)  # fmt: skip
    assert "image" not in poses
    assert same(poses, module(motion).training_poses(50))
    # The samples of the first epochs, in order.
    first = data.on_after_batch_transfer(data.train_set.__getitems__(range(24)), 0)
    assert torch.equal(poses["joints_3d"][:24], first["joints_3d"])


# ---- augmentation -------------------------------------------------------------------------------


def test_flip_mirrors_everything_together(motion: str) -> None:
    still = {"box_jitter": 0.0, "color_jitter": 0.0, "noise": 0.0, "occluders": 0.0}
    never, always = module(motion, flip=0.0, **still), module(motion, flip=1.0, **still)
    plain, flipped = batches(never, "train")[0], batches(always, "train")[0]
    mirrored = flip_batch(plain, H36M_17, 32)
    for key in ("joints_2d", "joints_3d", "root_3d", "intrinsics", "world_to_camera"):
        a, b = cast(Tensor, flipped[key]), cast(Tensor, mirrored[key])  # type: ignore[literal-required]
        assert torch.allclose(a, b, atol=2e-3, rtol=1e-5), key
    assert torch.equal(flipped["occluded"], mirrored["occluded"])
    assert torch.equal(flipped["frame"], plain["frame"])


def test_flip_rate(motion: str) -> None:
    half, never = (
        module(motion, flip=f, train_samples=400, batch_size=400, input_spec=KEYPOINTS)
        for f in (0.5, 0.0)
    )
    a, b = batches(half, "train")[0], batches(never, "train")[0]
    changed = (a["root_3d"] != b["root_3d"]).any(-1).float().mean()
    assert 0.4 < changed < 0.6


def test_validation_is_not_augmented(motion: str) -> None:
    wild = module(motion, flip=1.0, color_jitter=0.9, pca_color=1.0, box_jitter=0.5, occluders=1.0)
    calm = module(motion, flip=0.0, color_jitter=0.0, box_jitter=0.0, occluders=0.0)
    for a, b in zip(batches(wild, "val"), batches(calm, "val"), strict=True):
        assert same(a, b)


def test_colour_augmentation_leaves_geometry_alone(motion: str) -> None:
    a = batches(module(motion, color_jitter=0.0), "train")[0]
    b = batches(module(motion, color_jitter=0.5, pca_color=0.3), "train")[0]
    assert not torch.equal(a["image"], b["image"])
    for key in ("joints_2d", "joints_3d", "occluded"):
        assert torch.equal(cast(Tensor, a[key]), cast(Tensor, b[key]))  # type: ignore[literal-required]


def test_occluders_hide_more_joints(motion: str) -> None:
    rate = [
        torch.cat([b["occluded"] for b in batches(module(motion, occluders=p), "train")])
        .float().mean() for p in (0.0, 1.0)
    ]  # fmt: skip
    assert rate[1] > rate[0] + 0.05


def test_pca_system_is_that_of_the_pictures(motion: str) -> None:
    values, vectors = module(motion).pca_system()
    assert torch.allclose(vectors.mT @ vectors, torch.eye(3).double(), atol=1e-9)
    assert values[0] > values[1] > values[2] > 0
    assert vectors[:, 0].abs().min() > 0.4  # brightness varies most
    again, _ = module(motion).pca_system()
    assert torch.equal(values, again)


# ---- the trainer --------------------------------------------------------------------------------


class Counter(pl.LightningModule):
    """Writes down which samples it has seen."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.folder = Path(folder)

    def _note(self, kind: str, batch: PoseBatch) -> Tensor:
        ids = [cast(Tensor, batch[k]).tolist() for k in SAMPLE_ID_KEYS]  # type: ignore[literal-required]
        sums = batch["image"].double().sum((1, 2, 3, 4)).tolist()
        with (self.folder / f"{kind}-{self.global_rank}.jsonl").open("a") as file:
            for row in zip(*ids, sums, strict=True):
                file.write(json.dumps(row) + "\n")
        return (self.weight * batch["joints_3d"].mean()).sum()

    def training_step(self, batch: PoseBatch, batch_idx: int) -> Tensor:
        return self._note(f"train{self.current_epoch}", batch)

    def validation_step(self, batch: PoseBatch, batch_idx: int) -> None:
        self._note(f"val{self.current_epoch}", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def seen(folder: Path, kind: str) -> set[tuple[Any, ...]]:
    rows = []
    for path in folder.glob(f"{kind}-*.jsonl"):
        rows += [tuple(json.loads(line)) for line in path.read_text().splitlines()]
    return {(*r[:5], round(r[5], 2)) for r in rows}


def run(motion: str, folder: Path, **arguments: Any) -> None:
    folder.mkdir()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **arguments,
    )  # fmt: skip
    data = module(motion, batch_size=8 // max(1, arguments.get("devices", 1)))
    trainer.fit(Counter(str(folder)), datamodule=data)


def test_a_trainer_gets_new_samples_each_epoch(motion: str, tmp_path: Path) -> None:
    run(motion, tmp_path / "one")
    first, second = seen(tmp_path / "one", "train0"), seen(tmp_path / "one", "train1")
    assert len(first) == len(second) == 24
    assert not first & second
    assert seen(tmp_path / "one", "val0") == seen(tmp_path / "one", "val1")
    assert len(seen(tmp_path / "one", "val0")) == 12


@pytest.mark.slow
def test_two_processes_see_what_one_sees(motion: str, tmp_path: Path) -> None:
    run(motion, tmp_path / "one")
    run(motion, tmp_path / "two", devices=2, strategy="ddp_spawn")
    for kind in ("train0", "train1", "val0"):
        assert seen(tmp_path / "two", kind) == seen(tmp_path / "one", kind), kind


# ---- wrong input, pictures ----------------------------------------------------------------------


def test_generated_motion_needs_no_file() -> None:
    data = SyntheticDataModule(val_samples=4, batch_size=4, input_spec=SMALL)
    data.prepare_data()
    data.setup("validate")
    batch = batches(data, "val")[0]
    assert batch["image"].shape[0] == 4
    assert data.protocol("val").name == "synthetic-val"
    assert data.protocol("test").name == "synthetic-test"
    assert int(batch["action"].max()) < len(data.action_names)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"flip": 1.5}, "flip"), ({"train_samples": 0}, "train_samples"),
        ({"batch_size": 0}, "batch_size"), ({"num_workers": -1}, "num_workers"),
        ({"noise": -0.1}, "noise"), ({"pca_color": -1.0}, "pca_color"),
        ({"occluders": 2.0}, "occluders"),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        SyntheticDataModule(**arguments)
    assert "\n" not in str(caught.value)


def test_a_missing_motion_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.npz"):
        SyntheticDataModule(str(tmp_path / "missing.npz")).prepare_data()


def test_pictures_with_their_truth(motion: str, tmp_path: Path) -> None:
    paths = make_test_images(3, tmp_path / "out", mocap=motion, size=96)
    assert [p.name for p in paths] == ["person_000.jpg", "person_001.jpg", "person_002.jpg"]
    truth = json.loads((tmp_path / "out" / "truth.json").read_text())
    assert len(truth["pictures"]) == 3
    for path, entry in zip(paths, truth["pictures"], strict=True):
        picture = np.asarray(Image.open(path))
        assert picture.shape == (96, 96, 3)
        assert picture.std() > 5
        joints = torch.tensor(entry["joints_3d"]) + torch.tensor(entry["root_3d"])
        error = project(joints[None], torch.tensor(entry["intrinsics"])[None])[0]
        assert (error - torch.tensor(entry["joints_2d"])).abs().max() < 0.05
    assert not list((tmp_path / "out").glob(".*"))


def test_pictures_into_a_file_fail(tmp_path: Path, motion: str) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="taken"):
        make_test_images(1, tmp_path / "taken", mocap=motion, size=32)


def test_render_batch_is_public(motion: str) -> None:
    data = module(motion)
    samples = data.test_set.__getitems__(range(4))
    batch = render_batch(samples, InputSpec(image_size=48), supersample=2)
    assert batch["image"].shape == (4, 1, 3, 48, 48)
