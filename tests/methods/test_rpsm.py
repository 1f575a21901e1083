"""Lin et al. 2017: the network of Table 1, Eq. 1 and 2, clips and states, staged training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks.phases import TrainingPhases
from zoo.base import InputSpec, PoseModule
from zoo.batch import PoseBatch
from zoo.checkpoint import read_stored, save_weights
from zoo.errors import CheckpointError, DataError, UsageError
from zoo.info import count_cost
from zoo.methods.rpsm import RPSM, sequence_loss
from zoo.metrics import StagePoseMetrics, mpjpe
from zoo.pose_machine import scale_limbs
from zoo.protocols import Protocol
from zoo.registry import create, get_method, resolve_class, resource
from zoo.reproduce.jobs import Options, plan
from zoo.reproduce.table import read_table
from zoo.testing import random_batch, random_poses
from zoo.testing.helpers import in_phase


def tiny(seed: int = 0, **changes: Any) -> RPSM:
    torch.manual_seed(seed)
    model = RPSM(**{**RPSM.tiny().hparams, **changes})
    if model.hparams["epochs"] > 0:
        model.fit_statistics(random_poses(model.input_spec, model.skeleton))
    return model


def clips(model: PoseModule, samples: int = 3, frames: int = 0, seed: int = 0) -> PoseBatch:
    """Everything annotated, unlike that of ``random_batch``."""
    spec = model.input_spec
    spec = InputSpec(spec.kind, spec.image_size, frames or spec.frames, spec.clip_fps)
    batch = random_batch(spec, model.skeleton, samples + 1, seed)
    cut = {k: cast(Tensor, v)[:samples] for k, v in batch.items()}
    cut["valid_3d"], cut["valid_2d"] = (torch.ones_like(cut[k]) for k in ("valid_3d", "valid_2d"))
    return cast(PoseBatch, cut)


def features(model: RPSM, samples: int = 2, frames: int = 4) -> Tensor:
    channels, cells = model.trunk.out_channels, model.hparams["image_size"] // model.trunk.stride
    return torch.rand(samples, frames, channels, cells, cells)


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


# ---- the paper's network ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "millions", "gmacs"),
    [
        ({"stages": 1}, 23.390, 45.45), ({"stages": 2}, 38.026, 46.68), ({}, 52.661, 47.90),
        ({"adaption": "rpsm_code", "stages": 1}, 37.284, 45.49),
        ({"adaption": "rpsm_code"}, 94.342, 48.00),
    ],
)  # fmt: skip
def test_sizes(arguments: dict[str, Any], millions: float, gmacs: float) -> None:
    with torch.device("meta"):
        model = RPSM(**arguments)
    assert (trainable(model.trunk) + trainable(model.machine)) / 1e6 == pytest.approx(
        millions, abs=6e-4
    )
    assert trainable(model.heatmap) == 128 * 18 + 18
    if "adaption" not in arguments:
        _, multiply_adds = count_cost("rpsm", frames=1, **arguments)
        assert multiply_adds / 1e9 == pytest.approx(gmacs, abs=0.01)


def test_the_sizes_of_each_part() -> None:
    with torch.device("meta"):
        model, shared, single = RPSM(), RPSM(share_special=True), RPSM(recurrent="fc", frames=1)
    parts = [trainable(m) for m in model.machine.recurrent]
    assert parts == [8_392_704 + 52_275, *[8_601_600 + 52_275] * 2]
    assert [trainable(m) for m in model.machine.special] == [295_168, 442_624, 442_624]
    assert [trainable(m) for m in shared.machine.special] == [442_624]
    assert trainable(single.machine.recurrent[0]) == 1024 * 1024 + 1024 + 52_275


def slow_stages(model: RPSM, maps: Tensor) -> Tensor:
    """Eq. 1, one clip, frame and stage after the other: (T, C, F, F) -> (T, K, P)."""
    machine = model.machine
    hidden = [torch.zeros(machine.hidden) for _ in range(machine.stages)]
    cell = [torch.zeros(machine.hidden) for _ in range(machine.stages)]
    poses = []
    for frame in maps:
        previous, pose, found = None, None, []
        for k in range(machine.stages):
            pair, adaption = machine.special[k].layers, machine.adaption[k]
            x = frame if previous is None else torch.cat([frame, previous])
            previous = pair[2](pair[0](x[None]).relu()).relu()[0]
            y = adaption.convs[2](adaption.convs[0](previous[None]).relu()).relu()
            y = nn.functional.max_pool2d(y, 2)
            y = adaption.fc(y.flatten()).relu()
            y = y if pose is None else torch.cat([y, pose])
            lstm = machine.recurrent[k].layer
            gates = lstm.weight_ih_l0 @ y + lstm.weight_hh_l0 @ hidden[k] + lstm.bias_ih_l0
            i, f, g, o = gates.chunk(4)
            cell[k] = f.sigmoid() * cell[k] + i.sigmoid() * g.tanh()
            hidden[k] = o.sigmoid() * cell[k].tanh()
            pose = machine.recurrent[k].out(hidden[k])
            found.append(pose)
        poses.append(torch.stack(found))
    return torch.stack(poses)


@torch.no_grad()
def test_equation_1_against_a_slow_version() -> None:
    model = tiny(stages=3)
    for name, parameter in model.machine.named_parameters():
        if "bias" in name and "bias_hh" not in name:
            parameter.normal_()
    maps = features(model)
    found, _ = model.machine(maps)
    for clip, poses in zip(maps, found, strict=True):
        torch.testing.assert_close(poses, slow_stages(model, clip), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_zeros_before_stage_1_are_the_same_as_no_such_inputs() -> None:
    own = tiny(stages=1).machine
    given = tiny(1, stages=1, share_special=True, share_recurrent=True).machine
    conv, lstm = own.special[0].layers[0], own.recurrent[0].layer
    wide = copy.deepcopy(given.state_dict())
    for key, value in own.state_dict().items():
        if wide[key].shape == value.shape:
            wide[key] = value
        else:
            wide[key][:, : value.shape[1]] = value
    given.load_state_dict(wide)
    assert given.special[0].layers[0].in_channels == conv.in_channels + 6
    assert given.recurrent[0].layer.input_size == lstm.input_size + 51
    maps = features(tiny())
    torch.testing.assert_close(own(maps)[0], given(maps)[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_first_stages_are_a_model_of_fewer_stages() -> None:
    three = tiny(stages=3)
    maps = features(three)
    whole, _ = three.machine(maps)
    for stages in (1, 2):
        fewer = tiny(1, stages=stages)
        own = {k: v for k, v in three.state_dict().items() if k in fewer.state_dict()}
        fewer.load_state_dict({**own, "alpha": torch.ones(stages)}, strict=False)
        assert torch.equal(fewer.machine(maps)[0], whole[:, :, :stages])


def test_single_frames_have_a_layer_in_the_lstms_place_or_no_past() -> None:
    model = tiny(recurrent="fc", frames=1)
    assert not [m for m in model.modules() if isinstance(m, nn.LSTM)]
    model = tiny(frames=1, stages=1)
    maps = features(model, 2, 1)
    regressor = model.machine.recurrent[0]
    y = model.machine.adaption[0](model.machine.special[0](maps[:, 0]))
    i, _, g, o = (y @ regressor.layer.weight_ih_l0.T + regressor.layer.bias_ih_l0).chunk(4, dim=1)
    expected = regressor.out(o.sigmoid() * (i.sigmoid() * g.tanh()).tanh())
    torch.testing.assert_close(model.machine(maps)[0][:, 0, 0], expected)


def test_shared_convolutions_get_the_gradients_of_all_stages() -> None:
    shared = tiny(stages=3, share_special=True).machine
    apart = tiny(1, stages=3).machine
    state = apart.state_dict()
    for key in state:
        source = shared.state_dict()[key if "special" not in key else f"special.0{key[9:]}"]
        state[key] = source[:, : state[key].shape[1]] if source.ndim == 4 else source
    apart.load_state_dict(state)
    maps = features(tiny())
    for machine in (shared, apart):
        machine(maps)[0].square().sum().backward()
    for name, parameter in shared.special[0].named_parameters():
        gradients = [cast(Tensor, dict(s.named_parameters())[name].grad) for s in apart.special]
        total = sum(gradients[1:], torch.zeros_like(gradients[1]))
        if gradients[0].shape == total.shape:
            total = total + gradients[0]
        else:
            total[:, : gradients[0].shape[1]] += gradients[0]
        torch.testing.assert_close(parameter.grad, total, atol=1e-4, rtol=1e-4)
    assert len(shared.special) == 1
    everything = tiny(stages=3, share_special=True, share_adaption=True, share_recurrent=True)
    lengths = (everything.machine.adaption, everything.machine.recurrent)
    assert [len(modules) for modules in lengths] == [1, 1]


def test_wrong_arguments_are_named() -> None:
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"state": "clips"}, "did you mean clip"), ({"recurrent": "gru"}, "gru"),
        ({"frames": 0}, "frames is 0"), ({"stages": 0}, "stages is 0"),
        ({"image_size": 34}, "stride 4"), ({"alpha": [1.0]}, "1 weights for 2 stages"),
        ({"scale": [1.1, 0.9]}, "scale is"), ({"clip_fps": 0.0}, "clip_fps"),
        ({"recurrent": "fc", "state": "sequence"}, "no state to carry"),
        ({"adaption": "pool_each"}, "8 x 8 cells"), ({"schedule": "step"}, "schedule"),
    )  # fmt: skip
    for arguments, message in wrong:
        with pytest.raises(UsageError, match=message):
            tiny(**arguments)
    batch = clips(tiny())
    batch["image"] = batch["image"][..., :20]
    with pytest.raises(DataError, match="20 x 32"):
        tiny()(batch)
    del batch["image"]
    with pytest.raises(DataError, match="no 'image'"):
        tiny()(batch)


# ---- clips and states ---------------------------------------------------------------------------


@torch.no_grad()
def test_clips_are_independent_and_every_clip_starts_afresh() -> None:
    model = tiny().eval()
    batch = clips(model, 2)
    both = model(batch)["pred_3d"]
    for i in (0, 1):
        alone = cast(PoseBatch, {k: cast(Tensor, v)[i : i + 1] for k, v in batch.items()})
        torch.testing.assert_close(model(alone)["pred_3d"], both[i : i + 1], atol=1e-2, rtol=1e-5)
    swapped = cast(PoseBatch, {k: cast(Tensor, v).flip(0) for k, v in batch.items()})
    torch.testing.assert_close(model(swapped)["pred_3d"], both.flip(0), atol=1e-2, rtol=1e-5)


@torch.no_grad()
def test_no_frame_hears_of_a_later_one() -> None:
    model = tiny().eval()
    batch = clips(model, frames=5)
    before = model.stage_poses(batch)
    batch["image"][:, 3] = 1 - batch["image"][:, 3]
    after = model.stage_poses(batch)
    assert torch.equal(after[:, :, :3], before[:, :, :3])
    assert bool((after[:, :, 3:] != before[:, :, 3:]).flatten(3).any(3).all())


def test_a_clip_cut_short_and_filled_up_is_the_same_clip() -> None:
    model = tiny().eval()
    short = clips(model, 2, frames=3)
    long = clips(model, 2, frames=5, seed=1)
    for key in ("image", "joints_3d", "valid_3d", "joints_2d", "valid_2d"):
        value = cast(dict[str, Tensor], long)[key]
        value[:, :3] = cast(dict[str, Tensor], short)[key]
    long["valid_3d"][:, 3:] = False
    torch.testing.assert_close(
        model(short)["pred_3d"], model(long)["pred_3d"][:, :3], atol=1e-2, rtol=1e-5
    )
    torch.testing.assert_close(model.compute_loss(short)["loss"], model.compute_loss(long)["loss"])


@pytest.mark.parametrize("state", ["clip", "sequence"])
@torch.no_grad()
def test_streams_are_windows_of_clips_or_the_whole_sequence(state: str) -> None:
    model = tiny(state=state).eval()
    video = clips(model, 1, frames=8)
    whole, _ = model.stream(video)
    assert whole is not None
    expected = model(video)["pred_3d"]
    if state == "clip":
        parts = []
        for first in range(0, 8, 3):
            piece = cast(PoseBatch, {"image": video["image"][:, first : first + 3]})
            parts.append(model(piece)["pred_3d"])
        windows = torch.cat(parts, 1)
        assert not torch.allclose(windows, expected, atol=0.1)
        expected = windows
    torch.testing.assert_close(whole["pred_3d"], expected, atol=1e-2, rtol=1e-5)
    carried: Any = None
    found = []
    for first, last in ((0, 1), (1, 5), (5, 6), (6, 8)):
        piece = cast(PoseBatch, {"image": video["image"][:, first:last]})
        prediction, carried = model.stream(piece, carried)
        assert prediction is not None
        found.append(prediction["pred_3d"])
    torch.testing.assert_close(torch.cat(found, 1), whole["pred_3d"], atol=1e-2, rtol=1e-5)
    assert model.stream(None, carried) == (None, None)


def recording(model: RPSM, step: int, count: int = 4) -> tuple[PoseBatch, PoseBatch]:
    """A long clip, and the same cut into clips of the model's length with ids."""
    frames = model.hparams["frames"]
    whole = clips(model, 1, frames=count * frames)
    cut = {"image": whole["image"].reshape(count, frames, *whole["image"].shape[2:])}
    for key in ("joints_2d", "joints_3d", "valid_2d", "valid_3d"):
        value = cast(dict[str, Tensor], whole)[key]
        cut[key] = value.reshape(count, frames, *value.shape[2:])
    for key in ("subject", "action", "camera", "sequence"):
        cut[key] = torch.zeros(count, dtype=torch.long)
    cut["frame"] = 10 + step * torch.arange(count)
    return whole, cast(PoseBatch, cut)


def pick(batch: PoseBatch, index: Sequence[int]) -> PoseBatch:
    return cast(PoseBatch, {k: cast(Tensor, v)[list(index)] for k, v in batch.items()})


@pytest.mark.parametrize("state", ["clip", "sequence"])
def test_evaluation_carries_states_from_clip_to_clip_if_asked(state: str) -> None:
    model = tiny(state=state).eval()
    step = round(3 * 50 / 2)
    whole, cut = recording(model, step)
    # Out of order inside a batch, and over two batches; the fifth clip goes on from none.
    lonely = pick(cut, [3])
    lonely["camera"] = lonely["camera"] + 1
    batches = [pick(cut, [2, 0, 1]), pick(cut, [3]), lonely]
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    for _ in range(2):  # a second pass starts afresh
        results = cast(list[Any], trainer.predict(model, loader))
        found = torch.cat([r["pred_3d"] for r in results])
        with torch.no_grad():
            apart = model(cut)["pred_3d"]
            joined = model(whole)["pred_3d"].reshape(apart.shape)
        expected = joined if state == "sequence" else apart
        torch.testing.assert_close(found[[1, 2, 0, 3]], expected, atol=1e-2, rtol=1e-5)
        torch.testing.assert_close(found[4], apart[3], atol=1e-2, rtol=1e-5)
    assert not torch.allclose(apart[1:], joined[1:], atol=0.1)


# ---- losses -------------------------------------------------------------------------------------


def test_equation_2_of_a_constant_error() -> None:
    target = torch.rand(4, 3, 51)
    known = torch.ones(4, 3, 51, dtype=torch.bool)
    error = 0.25
    poses = (target + error)[:, :, None].expand(-1, -1, 2, -1)
    loss = sequence_loss(poses, target, known, torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(loss, torch.full((4,), 1.5 * 3 * 51 * error**2))


def test_the_loss_is_equation_2_of_normalised_poses() -> None:
    model = tiny(alpha=[1.0, 3.0]).eval()
    batch = clips(model)
    losses = model.compute_loss(batch)
    lengths, parents = model.space.lengths, model.skeleton.parents
    joints = batch["joints_3d"].flatten(0, 1)
    whole = torch.ones(joints.shape[:2], dtype=torch.bool)
    scaled = scale_limbs(joints, whole, lengths, parents).view(3, 3, 51)
    target = (scaled - model.space.low) / model.space.span
    poses = model.machine(model._features(batch["image"]))[0]
    stage = [(poses[:, :, k] - target).square().mean() for k in (0, 1)]
    torch.testing.assert_close(losses["loss"], stage[0] + 3 * stage[1])
    torch.testing.assert_close(losses["loss_stage2"], stage[1].detach())
    assert not losses["loss_stage1"].requires_grad
    # A joint that is not annotated, and a frame without any, leave the others' loss as it is.
    batch["valid_3d"][0, 0] = False
    batch["valid_3d"][1, 1, 16] = False
    squares = (poses - target[:, :, None]).square().view(3, 3, 2, 17, 3).sum(-1)
    squares = squares * batch["valid_3d"][:, :, None]
    expected = (squares.sum((0, 1, 3)) * torch.tensor([1.0, 3.0])).sum() / (8 * 51)
    torch.testing.assert_close(model.compute_loss(batch)["loss"], expected)


def test_the_last_stage_trains_the_first_and_the_last_frame_the_first() -> None:
    model = tiny(stages=3)
    image = clips(model, 1)["image"].requires_grad_()
    maps = model._features(image)
    maps.retain_grad()
    poses, _ = model.machine(maps)
    poses[:, -1, 2].square().sum().backward()
    for part in (model.machine.special, model.machine.adaption, model.machine.recurrent):
        assert all(bool(p.grad.any()) for p in part[0].parameters() if p.grad is not None)
        assert any(p.grad is not None for p in part[0].parameters())
    assert bool(cast(Tensor, image.grad)[:, 0].any())


def test_normalised_predictions_come_back_in_mm() -> None:
    model = tiny().eval()
    batch = clips(model)
    with torch.no_grad():
        prediction = model(batch)["pred_3d"]
        poses = model.machine(model._features(batch["image"]))[0][:, :, -1]
    mm = (poses * model.space.span + model.space.low).view(prediction.shape)
    torch.testing.assert_close(prediction[:, :, 1:], mm[:, :, 1:])
    assert not bool(prediction[:, :, 0].any())
    target, _ = model.space.target(
        batch["joints_3d"].flatten(0, 1), batch["valid_3d"].flatten(0, 1)
    )
    far = model.space.to_mm(target) - batch["joints_3d"].flatten(0, 1)
    assert 0 < float(far.norm(dim=-1).mean()) < 3 * float(model.space.floor_mm)


# ---- augmentation -------------------------------------------------------------------------------


def test_frames_are_scaled_one_by_one_or_by_clip_in_training_only() -> None:
    ramp = torch.linspace(0, 1, 32).expand(2, 3, 3, 32, 32)
    frame, clip = tiny(), tiny(scale_per="clip")
    one, all_alike = frame._rescale(ramp), clip._rescale(ramp)
    assert not torch.allclose(one[:, 0], one[:, 1], atol=1e-3)
    torch.testing.assert_close(all_alike[:, 0], all_alike[:, 2])
    assert not torch.allclose(all_alike[0], all_alike[1], atol=1e-3)
    assert tiny(scale=(1.0, 1.0))._rescale(ramp) is ramp
    model, batch = tiny(), clips(tiny())
    with in_phase(model, model.phases()[-1]):
        drawn = [model.compute_loss(batch)["loss"].item() for _ in range(2)]
    assert drawn[0] != drawn[1]
    model.eval()
    assert torch.equal(model.compute_loss(batch)["loss"], model.compute_loss(batch)["loss"])


def test_pretraining_turns_picture_and_joints_together() -> None:
    model = tiny(pretrain_scale=(0.7, 1.0), pretrain_rotation=90.0)
    image = torch.full((64, 3, 32, 32), 0.5)
    image[:, :, 12, 20] = 1.0
    joint = torch.tensor([20.0, 12.0]).expand(64, 1, 2)
    turned, moved = model._turn(image, joint)
    assert float((moved - joint).abs().max()) > 4
    brightest = turned[:, 0].flatten(1).argmax(1)
    seen = torch.stack([brightest % 32, brightest // 32], -1).float()
    assert float((seen - moved[:, 0]).abs().max()) <= 1.0
    assert (
        float((moved - 15.5).norm(dim=-1).max()) <= float((joint - 15.5).norm(dim=-1).max()) + 1e-3
    )
    unchanged = tiny(pretrain_scale=(1.0, 1.0), pretrain_rotation=0.0)._turn(image, joint)
    assert unchanged[0] is image


# ---- training -----------------------------------------------------------------------------------


class Memory(pl.LightningDataModule):
    """A few batches."""

    action_names = ("walking", "sitting")

    def __init__(self, model: RPSM) -> None:
        super().__init__()
        self.batches = [clips(model, seed=seed) for seed in range(3)]
        self.poses = random_poses(model.input_spec, model.skeleton)

    def training_poses(self) -> PoseBatch:
        return self.poses

    def protocol(self, split: str) -> Protocol:
        return Protocol(f"random-{split}", "random people", ("S1",), ("S1",))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


class Watch(pl.Callback):
    """The weights at the end of each phase, whether the trunk had gradients, and the rates."""

    def __init__(self) -> None:
        self.states: dict[str, dict[str, Tensor]] = {}
        self.kinds: dict[str, tuple[str, float]] = {}
        self.trunk_gradients: dict[str, bool] = {}
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_after_backward(self, trainer: pl.Trainer, module: Any) -> None:
        given = [p.grad is not None for p in module.trunk.parameters()]
        self.trunk_gradients[module.phase.name] = any(given)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        name, optimizer = module.phase.name, trainer.optimizers[0]
        self.states[name] = {k: v.clone() for k, v in module.state_dict().items()}
        self.kinds[name] = type(optimizer).__name__, optimizer.param_groups[0]["weight_decay"]


def fit(model: RPSM) -> Watch:
    watch = Watch()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=model.total_epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[TrainingPhases(), watch], num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=Memory(model))
    return watch


@pytest.mark.parametrize("train_trunk", [False, True])
def test_phases_train_what_they_should(train_trunk: bool) -> None:
    model = tiny(train_trunk=train_trunk, schedule="cosine")
    start = {k: v.clone() for k, v in model.state_dict().items()}
    watch = fit(model)
    first, last = watch.states["pretrain"], watch.states["train"]
    buffers = {name for name, _ in model.named_buffers()}

    def moved(old: dict[str, Tensor], new: dict[str, Tensor]) -> set[str]:
        return {
            k.split(".")[0] for k in old if k not in buffers and not torch.equal(old[k], new[k])
        }

    assert moved(start, first) == {"trunk", "heatmap"}
    assert moved(first, last) == ({"machine", "trunk"} if train_trunk else {"machine"})
    assert watch.trunk_gradients == {"pretrain": True, "train": train_trunk}
    assert watch.kinds == {"pretrain": ("SGD", 5e-4), "train": ("Adam", 1e-4)}
    for key, value in last.items():
        if "bias_hh" in key:
            assert not bool(value.any()), key
    # Cosines over 3 batches of the first phase and 6 of the main one.
    cosine = [0.5 * (1 + math.cos(math.pi * step / 3)) * 1e-4 for step in range(3)]
    cosine += [0.5 * (1 + math.cos(math.pi * step / 6)) * 1e-3 for step in range(6)]
    assert watch.rates == pytest.approx(cosine)
    assert ("pred_2d" in model(clips(model))) is not train_trunk


def test_a_trunk_of_another_training_is_taken_over(tmp_path: Path) -> None:
    other = {**RPSM.tiny().hparams, "epochs": 0, "stages": 1, "hidden": 4, "frames": 1}
    source = create("rpsm", **other)
    # A data set without 3D can train it: no statistics are asked for.
    poses = random_poses(source.input_spec, source.skeleton)
    poses["valid_3d"] = torch.zeros_like(poses["valid_3d"])
    source.fit_statistics(poses)
    with pytest.raises(DataError, match="no training pose has"):
        tiny().fit_statistics(poses)
    path = save_weights(source, tmp_path / "trunk.safetensors", half=False)
    model = tiny(5, trunk_weights=str(path))
    assert [phase.name for phase in model.phases()] == ["train"]
    machine = copy.deepcopy(model.machine.state_dict())
    watch = fit(model)
    for key, value in source.state_dict().items():
        if key.startswith(("trunk.", "heatmap.")):
            assert torch.equal(watch.states["train"][key], value), key
    assert not torch.equal(
        model.machine.state_dict()["adaption.0.fc.weight"], machine["adaption.0.fc.weight"]
    )
    wrong = tiny(trunk_weights=str(path), channels=[[4], [8], [8, 6]])
    with pytest.raises(CheckpointError, match="use the sizes it was trained with"):
        fit(wrong)


def test_the_first_phase_starts_from_the_trunk_of_a_pose_machine(tmp_path: Path) -> None:
    args = {**resolve_class(get_method("cpm")).tiny().hparams, "lift_in_loop": False}
    path = save_weights(create("cpm", **args), tmp_path / "machine.safetensors", half=False)
    given = read_stored(path).state
    model = tiny(machine_weights=str(path), pretrain_lr=0.0, epochs=1)
    heatmap = model.heatmap.conv.weight.clone()
    assert [phase.name for phase in model.phases()] == ["pretrain", "train"]
    fit(model)
    for name, value in model.trunk.state_dict().items():
        assert torch.equal(value, given[f"network.machine.trunk.{name}"]), name
    assert torch.equal(model.heatmap.conv.weight, heatmap)
    path.unlink()  # a training that is resumed does not need the file again
    fit(model)
    with pytest.raises(UsageError, match="not both"):
        tiny(machine_weights="cpm", trunk_weights="cpm")


@pytest.mark.slow
def test_two_clips_are_learnt_by_heart_and_later_stages_fit_no_worse() -> None:
    model = tiny(
        stages=2, frames=5, limb_scale=False, scale=(1.0, 1.0), special_channels=16,
        adaption_kernels=16, adaption_fc=64, hidden=64,
    )  # fmt: skip
    batch = clips(model, 2)
    model.space.fit(batch["joints_3d"].flatten(0, 1), batch["valid_3d"].flatten(0, 1))
    optimizer = torch.optim.Adam(model.machine.parameters(), 3e-3)
    for step in range(500):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / 500)
        optimizer.zero_grad()
        losses = model.compute_loss(batch)
        losses["loss"].backward()
        optimizer.step()
    error = (model.eval()(batch)["pred_3d"] - batch["joints_3d"]).norm(dim=-1).mean()
    assert error.item() < 5
    assert losses["loss_stage2"].item() <= 1.2 * losses["loss_stage1"].item()


# ---- metrics, recipes, table --------------------------------------------------------------------


def test_metrics_tell_the_error_of_every_stage() -> None:
    model = tiny()
    batch = clips(model)
    batch["valid_3d"][0, 0, 3] = False
    stages = torch.stack([batch["joints_3d"] + shift for shift in (30.0, 10.0)])
    stages[..., 0, :] = 0
    metrics = StagePoseMetrics(["mpjpe_a_mm", "mpjpe_b_mm"], "synthetic-test", model.skeleton)
    metrics.update({"pred_3d": stages[1]}, cast(PoseBatch, {**batch, "stage_3d": stages}))
    values = metrics.compute()
    for name, pose in zip(("mpjpe_a_mm", "mpjpe_b_mm"), stages, strict=True):
        expected = mpjpe(pose, batch["joints_3d"], batch["valid_3d"])
        torch.testing.assert_close(values[name], expected.mean(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(values["mpjpe_mm"], values["mpjpe_b_mm"])
    assert metrics.per_action()["all frames"]["mpjpe_a_mm"] == pytest.approx(
        float(values["mpjpe_a_mm"]), rel=1e-4
    )


def test_the_recipes_hold_the_values_of_paper_and_code() -> None:
    def recipe(kind: str) -> dict[str, Any]:
        text = resource(get_method("rpsm").recipes[kind]).read_text(encoding="utf-8")
        return cast(dict[str, Any], yaml.safe_load(text))

    paper, release, small = recipe("paper"), recipe("release"), recipe("small")
    assert "model" not in paper  # the constructor's defaults are the paper's
    with torch.device("meta"):
        defaults = RPSM().hparams
        model = RPSM(**small["model"])
    assert (defaults["lr"], defaults["weight_decay"], defaults["epochs"]) == (1e-3, 1e-4, 50)
    assert (defaults["stages"], defaults["frames"], defaults["scale"]) == (3, 5, [0.9, 1.1])
    assert release["model"] == {"adaption": "rpsm_code", "lr": 1e-4}
    assert release["data"] == paper["data"]
    assert sum(p.numel() for p in model.parameters()) < 5e6
    assert [p.name for p in model.phases()] == ["pretrain", "train"]


def test_every_row_of_table_4_sees_as_many_images_and_batches() -> None:
    table = read_table("rpsm-table4")
    with_actions = [row for row in table.rows if row.paper]
    for row in with_actions:
        mean = sum(row.paper["actions"].values()) / 15
        assert row.paper["mpjpe_mm"] == pytest.approx(mean, abs=0.006), row.name
    assert {row.model["stages"] for row in table.rows} == {1, 2, 3, 4}
    jobs = plan(table, Options())
    assert {job.images for job in jobs if job.result} == {table.images}
    other, own = (next(t for t in table.shared if t.name == f"trunk-{n}") for n in ("other", "own"))
    assert (other.images, other.epochs, other.model) == (own.images, own.epochs, own.model)
    small = yaml.safe_load(resource(get_method("rpsm").recipes["small"]).read_text("utf-8"))[
        "model"
    ]
    for job in jobs:
        training = job.training
        with torch.device("meta"):
            model = create(training.method, **{**small, **training.model})
        assert model.total_epochs == training.epochs, job.name
        assert model.input_spec.frames == training.frames, job.name
        batch = job.settings["data"]["batch_size"]
        assert batch * training.frames == 20, job.name
        if job.result is not None:
            tested = job.settings["data"]["test_samples"] * training.frames
            assert tested == 4000, job.name
            assert [need.training.name for need in job.needs] == [
                {"3-stage-own": "trunk-own", "3-stage-other": "trunk-other"}.get(
                    training.name, "trunk"
                )
            ]
