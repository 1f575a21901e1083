"""Mixtures: proportions, each sample once, on any number of processes; clips of one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import TensorDataset

from datamodules.mixed import MixedDataModule, MixedSampler, MixedSet, places
from datamodules.motion import JOINT_NAMES, PARENTS, MotionBank, write_npz
from datamodules.synthetic import SyntheticDataModule
from zoo.base import InputSpec
from zoo.batch import PoseBatch
from zoo.errors import UsageError
from zoo.registry import create

IMAGES = InputSpec(image_size=24)
CLIPS = InputSpec(image_size=24, frames=3)
SETS: list[dict[str, Any]] = [
    {"name": "synthetic", "train_samples": 20, "val_samples": 4, "test_samples": 4},
    {"name": "synthetic", "train_samples": 9, "domain": "outdoor", "labels_2d_only": True,
     "stills": True},
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def motion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A small motion file for all sets here, so that none has to be generated."""
    path = tmp_path_factory.mktemp("motion") / "small.npz"
    bank = MotionBank.generated(
        3, actions=["Walking"], recordings={"train": 2, "val": 1, "test": 1}, seconds=4.0
    )
    write_npz(path, {
        "names": np.array(bank.names), "actions": np.array(bank.actions),
        "starts": bank.starts, "lengths": bank.lengths, "positions": bank.positions,
        "fps": np.array(bank.fps), "joint_names": np.array(JOINT_NAMES), "parents": PARENTS,
    })  # fmt: skip
    for entry in SETS:
        entry["mocap"] = str(path)
    yield
    for entry in SETS:
        del entry["mocap"]


def mixture(**arguments: Any) -> MixedDataModule:
    defaults: dict[str, Any] = {
        "sets": SETS, "weights": [5, 3], "train_samples": 32, "batch_size": 8, "input_spec": IMAGES,
    }  # fmt: skip
    return MixedDataModule(**{**defaults, **arguments})


def batches(data: MixedDataModule, epoch: int = 0) -> list[PoseBatch]:
    loader = data.train_dataloader()
    cast(Any, loader.sampler).set_epoch(epoch)
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


# ---- the order -----------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 60))
def test_every_prefix_has_its_shares(weights: list[int], count: int) -> None:
    chosen = places(weights, count)
    assert len(chosen) == count
    for n in range(1, count + 1):
        for number, weight in enumerate(weights):
            have = int((chosen[:n] == number).sum())
            assert abs(have - n * weight / sum(weights)) < 1
    whole = sum(weights)
    for start in range(0, count - whole + 1, whole):
        assert Counter(chosen[start : start + whole].tolist()) == Counter(
            {i: w for i, w in enumerate(weights)}
        )


def test_fractions_are_shares_too() -> None:
    assert Counter(places([0.3, 0.1], 400).tolist()) == {0: 300, 1: 100}
    assert Counter(places([1 / 3, 2 / 3], 300).tolist()) == {0: 100, 1: 200}


def sampled(
    sizes: list[int], weights: list[float], size: int, world: int, epochs: int, seed: int = 0
) -> list[list[int]]:
    """Indices by process, over some epochs."""
    dataset = MixedSet([TensorDataset(torch.arange(n)) for n in sizes], size)
    found: list[list[int]] = []
    for rank in range(world):
        sampler = MixedSampler(dataset, weights, num_replicas=world, rank=rank, seed=seed)
        mine: list[int] = []
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            mine += list(sampler)
        found.append(mine)
    return found


@settings(max_examples=40)
@given(
    st.integers(3, 40), st.integers(2, 30), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3)
)
def test_no_sample_comes_twice_and_processes_share_the_order(
    first: int, second: int, a: int, b: int, world: int
) -> None:
    size = world * (a + b) * 2
    one = sampled([first, second], [a, b], size, 1, 3)[0]
    many = sampled([first, second], [a, b], size, world, 3)
    together = [index for mine in many for index in mine]
    assert sorted(together) == sorted(one)
    assert len(set(together)) == len(together)  # an index holds the round of its set
    # Before a sample comes again, all of its set have come.
    for number, n in enumerate((first, second)):
        own = [i // 2 for i in one if i % 2 == number]
        rounds = Counter(i // n for i in own)
        assert all(rounds[r] == n for r in range(max(rounds, default=0)))
    for mine in many:  # each process has the shares by itself
        assert sum(i % 2 == 0 for i in mine) * b == sum(i % 2 == 1 for i in mine) * a


def test_orders_depend_on_seed_and_round_alone() -> None:
    first = sampled([50, 50], [1, 1], 100, 1, 2)[0]
    assert first == sampled([50, 50], [1, 1], 100, 1, 2)[0]
    assert first != sampled([50, 50], [1, 1], 100, 1, 2, seed=1)[0]
    rounds = [[i // 2 % 50 for i in first if i % 2 == 0 and i // 2 // 50 == r] for r in (0, 1)]
    assert sorted(rounds[0]) == sorted(rounds[1]) == list(range(50))
    assert rounds[0] != rounds[1]
    # A resumed run starts at its epoch without the ones before.
    dataset = MixedSet([TensorDataset(torch.arange(50))] * 2, 100)
    sampler = MixedSampler(dataset, [1, 1])
    sampler.set_epoch(1)
    assert list(sampler) == first[100:]


# ---- batches -------------------------------------------------------------------------------------


def test_a_batch_has_its_shares_and_is_full() -> None:
    data = mixture()
    for epoch in (0, 1):
        for batch in batches(data, epoch):
            only_2d = ~batch["valid_3d"].flatten(1).any(1)
            assert int(only_2d.sum()) == 3
            assert batch["image"].shape == (8, 1, 3, 24, 24)
            assert batch["valid_2d"].all()
            assert (batch["joints_3d"][only_2d] == 0).all()
            assert (batch["joints_3d"][~only_2d].abs().amax((1, 2, 3)) > 100).all()
            assert all(len(cast(Tensor, value)) == 8 for value in batch.values())
            assert all(cast(Tensor, value).isfinite().all() for value in batch.values())


def test_samples_are_those_of_their_sets_whatever_the_workers() -> None:
    data = mixture()
    (first, *_) = batches(data)
    index = [int(i) for i in list(data.train_dataloader().sampler)[:8]]
    for place, code in enumerate(index):
        own, number = divmod(code, 2)
        module = data.modules_by_set[number]
        alone = module.on_after_batch_transfer(module.train_set.__getitems__([own]), 0)
        for key in ("joints_2d", "joints_3d", "intrinsics"):
            one, two = cast(Any, alone)[key][0], cast(Any, first)[key][place]
            assert torch.equal(one, two), key
        assert (alone["image"][0] - first["image"][place]).abs().max() < 2e-2
    parallel = batches(mixture(num_workers=1))[0]
    assert torch.equal(parallel["joints_2d"], first["joints_2d"])


def test_ids_of_two_sets_never_meet() -> None:
    data = mixture()
    for batch in batches(data):
        only_2d = ~batch["valid_3d"].flatten(1).any(1)
        ids = torch.stack([batch["sequence"], batch["frame"], batch["camera"]], -1).tolist()
        lists = [[tuple(i) for i, o in zip(ids, only_2d, strict=True) if o == w] for w in (0, 1)]
        assert not set(lists[0]) & set(lists[1])
        assert (batch["action"] < len(data.action_names)).all()


@pytest.mark.parametrize("stills", ["clip", "repeat"])
def test_a_picture_among_clips(stills: str) -> None:
    (batch, *_) = batches(mixture(input_spec=CLIPS, stills=stills))
    picture = ~batch["valid_3d"].flatten(1).any(1)
    assert batch["image"].shape == (8, 3, 3, 24, 24)
    assert int(picture.sum()) == 3
    own = {key: cast(Tensor, value)[picture] for key, value in batch.items()}
    assert (own["image"] == own["image"][:, :1]).all()
    assert (own["joints_2d"] == own["joints_2d"][:, :1]).all()
    assert own["valid_2d"][:, 0].all()
    assert own["valid_2d"][:, 1:].all() == (stills == "repeat")
    assert own["valid_2d"][:, 1:].any() == (stills == "repeat")
    moving = batch["joints_3d"][~picture]
    assert batch["valid_3d"][~picture].all()
    assert not (moving == moving[:, :1]).all()


def test_statistics_come_from_the_set_with_3d() -> None:
    data = mixture(input_spec=CLIPS)
    poses = data.training_poses(40)
    assert poses["joints_3d"].shape == (25, 1, 17, 3)
    assert poses["valid_3d"].all()
    alone = data.modules_by_set[0].training_poses(25)
    assert torch.equal(poses["joints_3d"], alone["joints_3d"])
    with pytest.raises(UsageError, match="has 3D poses"):
        mixture(sets=[SETS[1]], weights=[1]).training_poses(4)


def test_validation_and_test_are_the_first_set_s() -> None:
    data = mixture()
    alone = SyntheticDataModule(SETS[0]["mocap"], val_samples=4, test_samples=4, input_spec=IMAGES)
    (batch,) = [data.on_after_batch_transfer(b, 0) for b in data.val_dataloader()]
    (expected,) = [alone.on_after_batch_transfer(b, 0) for b in alone.val_dataloader()]
    assert torch.equal(batch["joints_3d"], expected["joints_3d"])
    assert data.protocol("test").name == "synthetic-test"
    assert data.action_names == alone.action_names


def test_a_sample_without_3d_changes_no_3d_loss() -> None:
    torch.manual_seed(0)
    model = create("park").tiny()
    data = mixture(input_spec=model.input_spec, weights=[1, 1], batch_size=8)
    (batch, *_) = batches(data)
    model.fit_statistics(data.training_poses(30))
    model.eval()
    losses = model.compute_loss(batch)
    changed = PoseBatch(**batch)
    only_2d = ~batch["valid_3d"].flatten(1).any(1)
    changed["joints_3d"] = batch["joints_3d"].clone()
    changed["joints_3d"][only_2d] = 1e4
    assert model.compute_loss(changed)["loss"] == losses["loss"]
    assert losses["loss"].isfinite()


def test_the_outdoor_domain_is_another_one() -> None:
    studio, outdoor = (
        SyntheticDataModule(
            SETS[0]["mocap"], domain=d, train_samples=200, input_spec=InputSpec("keypoints")
        )
        for d in ("studio", "outdoor")
    )
    one, two = (d.training_poses(200) for d in (studio, outdoor))
    near = [float(p["root_3d"][..., 2].std()) for p in (one, two)]
    assert near[1] > 2 * near[0]
    roll = [p["world_to_camera"][:, 0, 2].abs().mean() for p in (one, two)]
    assert roll[0] < 1e-5 < 0.02 < roll[1]
    assert not torch.equal(one["joints_3d"], two["joints_3d"])
    pictures = [
        d.on_after_batch_transfer(d.train_set.__getitems__(range(24)), 0)["image"]
        for d in (
            SyntheticDataModule(
                SETS[0]["mocap"], domain=d, train_samples=24, noise=0.0, input_spec=IMAGES
            )
            for d in ("studio", "outdoor")
        )
    ]
    chroma = [float((p.amax(2) - p.amin(2)).mean()) for p in pictures]
    assert chroma[1] > 1.3 * chroma[0]
    with pytest.raises(UsageError, match="did you mean outdoor"):
        _ = SyntheticDataModule(domain="outdoors").train_set


# ---- two processes -------------------------------------------------------------------------------


class Recorder(pl.LightningModule):
    """Writes down which samples it is shown."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[Any]] = []

    def training_step(self, batch: PoseBatch, batch_idx: int) -> Tensor:
        keys = [batch["joints_2d"].flatten(1).double().sum(1), batch["frame"].double()]
        only_2d = (~batch["valid_3d"].flatten(1).any(1)).tolist()
        for row, flag in zip(torch.stack(keys, -1).tolist(), only_2d, strict=True):
            self.seen.append([self.current_epoch, flag, *row])
        return self.weight * 0.0

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)

    def on_train_end(self) -> None:
        path = Path(self.folder) / f"rank{self.global_rank}.json"
        path.write_text(json.dumps([self.global_rank, self.trainer.world_size, self.seen]))


def fit(folder: Path, batch_size: int, **arguments: Any) -> list[list[Any]]:
    folder.mkdir()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        limit_val_batches=0, **arguments,
    )  # fmt: skip
    sets = [{**SETS[0], "train_samples": 80}, {**SETS[1], "train_samples": 60}]
    data = mixture(sets=sets, batch_size=batch_size, input_spec=InputSpec("keypoints"))
    trainer.fit(Recorder(str(folder)), datamodule=data)
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


def test_two_gloo_processes_share_one_mixture(tmp_path: Path) -> None:
    ((_, _, one),) = fit(tmp_path / "one", 16, devices=1)
    two = fit(tmp_path / "two", 8, devices=2, strategy="ddp_fork")
    assert [(rank, world) for rank, world, _ in two] == [(0, 2), (1, 2)]
    for _, _, seen in two:
        assert len(seen) == 32  # 32 of the mixture, half of them here, two epochs
        for start in range(0, 32, 8):  # the shares of 5 and 3 in every batch of every process
            assert sum(flag for _, flag, *_ in seen[start : start + 8]) == 3
    together = [tuple(row) for _, _, seen in two for row in seen]
    assert len({row[1:] for row in together}) == 64  # none comes twice
    for epoch in (0, 1):
        ours = sorted(row for row in together if row[0] == epoch)
        assert np.allclose(ours, sorted(tuple(r) for r in one if r[0] == epoch), atol=1e-3)


# ---- wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sets": None}, "needs --data.sets"),
        ({"weights": [1]}, "need as many"),
        ({"weights": [1, 0]}, "all positive"),
        ({"train_samples": -1}, "must not be negative"),
        ({"stills": "loop"}, "no stills 'loop'"),
        ({"sets": [{"name": "synthetik"}, SETS[1]]}, "did you mean synthetic"),
        ({"sets": [{"train_samples": 3}, SETS[1]]}, "set 1 of --data.sets has no name"),
        ({"sets": [SETS[0], {"name": "mixed"}]}, "cannot hold another"),
        ({"sets": [SETS[0], {"name": "synthetic", "domein": "x"}]}, "did you mean domain"),
        ({"sets": [SETS[0], {"name": "synthetic", "batch_size": 2}]}, "--data.batch_size"),
        ({"sets": [SETS[0], {"name": "synthetic", "stills": "yes"}]}, "true or false"),
        ({"protocol": "p1-10fps"}, "defined on Human3.6M"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        mixture(**arguments)
    assert "\n" not in str(error.value)


def test_shared_arguments_reach_the_sets_that_do_not_say_their_own() -> None:
    data = mixture(sets=[SETS[0], {**SETS[1], "flip": 0.25}], flip=0.0, pca_color=0.1)
    first, second = cast(list[SyntheticDataModule], data.modules_by_set)
    assert (first.flip, second.flip) == (0.0, 0.25)
    assert first.pca_color == second.pca_color == 0.1
    assert first.color_jitter == SyntheticDataModule().color_jitter


@pytest.mark.slow
def test_from_the_command_line(in_tmp: Path) -> None:
    from zoo.cli import main

    status = main([
        "fit", "--method", "park", "--recipe", "small", "--gpus", "0", "--data", "mixed",
        "--data.sets", json.dumps(SETS), "--data.weights", "[5, 3]", "--data.batch_size", "8",
        "--data.train_samples", "16", "--trainer.max_epochs", "1", "--run", "run",
        "--trainer.limit_val_batches", "1", "--trainer.enable_progress_bar", "false",
    ])  # fmt: skip
    assert status == 0
    assert (in_tmp / "run" / "checkpoints" / "last.ckpt").is_file()
