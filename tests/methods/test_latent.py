"""Katircioglu 2017: sizes, stages, baselines and windows against the paper."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from torch import Tensor, nn

from zoo.batch import PoseBatch
from zoo.checkpoint import save_weights
from zoo.errors import CheckpointError, DataError, UsageError
from zoo.info import count_cost
from zoo.layers import TargetLinear
from zoo.methods.latent import LatentKDE, LatentPose
from zoo.methods.latent.baselines import PoseBasis
from zoo.methods.latent.kde import fourier_features, pre_image
from zoo.methods.latent.loss import autoencoder_loss, latent_loss, pose_loss
from zoo.methods.latent.network import (
    Detector,
    ShallowTrunk,
    crop_maps,
    joint_maps,
    render_heatmaps,
)
from zoo.methods.latent.ridge import RidgeFit
from zoo.recurrent import WindowLSTM, WindowMLP, window_head, window_index
from zoo.registry import create, get_method, list_models, resource
from zoo.reproduce.table import read_table
from zoo.testing import random_batch, random_poses
from zoo.testing.helpers import in_phase

FEATURE: dict[str, Any] = {"temporal": "blstm", "level": "feature"}


def tiny(cls: Any = LatentPose, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    model = cls(**{**cls.tiny().hparams, **changes})
    model.fit_statistics(random_poses(model.input_spec, model.skeleton))
    return model


def whole_batch(model: Any, samples: int = 4, seed: int = 0) -> PoseBatch:
    """Everything annotated, unlike that of ``random_batch``."""
    batch = random_batch(model.input_spec, model.skeleton, samples, seed)
    shape = batch["joints_3d"].shape
    joints = 300 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    batch["joints_3d"] = joints - joints[..., :1, :]
    batch["valid_3d"] = torch.ones(shape[:3], dtype=torch.bool)
    batch["valid_2d"] = torch.ones(shape[:3], dtype=torch.bool)
    return batch


# ---- the networks of the paper ------------------------------------------------------------------

AE_TWO, AE_ONE = 106_251, 104_051


@pytest.mark.parametrize(
    ("name", "arguments", "millions", "macs_millions"),
    [
        ("latent-direct", {}, 23.71, 362),
        # The stored network also keeps the tied autoencoder beside the decoder's copy.
        ("latent-ae", {"hidden": [2000]}, 31.69 + 0.10 + AE_ONE / 1e6, 370),
        ("latent-ae", {}, 24.73 + 0.11 + AE_TWO / 1e6, 363),
        ("latent-ae-heatmap", {}, 24.87 + AE_TWO / 1e6, 786),
    ],
)
def test_sizes(name: str, arguments: dict[str, Any], millions: float, macs_millions: float):
    parameters, multiply_adds = count_cost(name, **arguments)
    assert parameters / 1e6 == pytest.approx(millions, abs=0.011)
    assert multiply_adds / 1e6 == pytest.approx(macs_millions, abs=1)


def test_resnet_and_temporal_sizes():
    with torch.device("meta"):
        model = create("latent-ae-resnet")
        heads = [window_head(kind, 51, 51) for kind in ("lstm", "blstm", "fc")]
        feature = window_head("blstm", 4096, 300)

    def count(module: nn.Module) -> float:
        return sum(p.numel() for p in module.parameters()) / 1e6

    trunk = model.trunk
    assert count(trunk.first) == pytest.approx(1.44, abs=0.01)
    assert count(trunk.first) + count(trunk.top) == pytest.approx(8.54, abs=0.01)
    assert count(trunk.extra) == pytest.approx(4.72 + 0.59, abs=0.01)
    assert count(model.regressor) == pytest.approx(0.61, abs=0.01)
    assert [count(head) for head in heads] == pytest.approx([3.39, 8.87, 8.87], abs=0.02)
    assert count(feature) == pytest.approx(25.2 + 1.54, abs=0.05)


def test_the_shallow_network_is_the_papers():
    with torch.device("meta"):
        trunk = LatentPose().trunk
    convs = [m for m in trunk.convs if isinstance(m, nn.Conv2d)]
    assert [c.kernel_size for c in convs] == [(9, 9), (5, 5), (5, 5)]
    assert trunk.map_features == 64 * 14 * 14
    dropouts = [m for m in trunk.modules() if isinstance(m, nn.Dropout)]
    assert [m.p for m in dropouts] == [0.5] * 3
    kinds = [type(m) for m in trunk.fcs]
    assert kinds == [nn.Linear, nn.ReLU, nn.Dropout] * 3


def test_the_latent_layer_is_linear_and_dropout_rests_in_evaluation():
    model = tiny().eval()
    assert [type(m) for m in model.regressor] == [TargetLinear]
    maps = torch.rand(64, 3, 28, 28)
    code = model.regressor(model.trunk(maps))
    assert bool((code < 0).any())
    assert torch.equal(code, model.regressor(model.trunk(maps)))


def test_wrong_arguments_are_named():
    for arguments in (
        {"head": "vae"}, {"crop_size": 200}, {"unit_mm": 0.0}, {"noise": []}, {"components": 52,
        "head": "pca"}, {"temporal": "gru"}, {"backbone": "resnet1"}, {"channels": [8, 8]},
        {"backbone": "resnet18", "frozen_levels": 5},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            tiny(**arguments)
    with pytest.raises(UsageError, match="kde_epochs"):
        tiny(LatentKDE, kde_epochs=1)
    model = tiny()
    batch = whole_batch(model)
    batch["image"] = batch["image"][..., :20]
    with pytest.raises(DataError, match="20 x 32"):
        model(batch)


# ---- input --------------------------------------------------------------------------------------


def test_one_random_crop_for_all_channels_and_frames_and_poses_stay():
    rows = torch.arange(20.0)[:, None].expand(20, 20)
    maps = torch.stack([rows, rows.T, rows], dim=0).expand(6, 5, 3, 20, 20)
    torch.manual_seed(0)
    cut, corner = crop_maps(maps, 14, random=True)
    assert cut.shape == (6, 5, 3, 14, 14)
    assert len(corner.unique(dim=0)) > 1
    assert bool(((corner >= 0) & (corner <= 6)).all())
    for sample, (x, y) in zip(cut, corner.tolist(), strict=True):
        assert torch.equal(sample, maps[0, :, :, y : y + 14, x : x + 14])
    middle, corner = crop_maps(maps, 14, random=False)
    assert corner.tolist() == [[3, 3]] * 6
    assert torch.equal(middle, maps[..., 3:17, 3:17])


def test_heatmaps_peak_at_the_joint_at_the_size_of_the_image():
    points = torch.tensor([[[40.0, 87.0], [10.5, 20.5], [64.0, 64.0]]])
    valid = torch.tensor([[True, True, False]])
    cells = joint_maps(points, valid, 64, 128, 1.0)
    # Cell k has its centre at 2 k + 1/2 px: px 10.5 is cell 5, px 20.5 cell 10.
    assert cells[0, 1, 10, 5] == 1
    assert cells[0, 1, 10, 6] == pytest.approx(math.exp(-0.5))
    maps = render_heatmaps(points, valid, 128)
    assert maps.shape == (1, 3, 128, 128)
    assert not maps[0, 2].any()
    weight = maps[0, 0] / maps[0, 0].sum()
    line = torch.arange(128.0)
    assert float((weight.sum(0) * line).sum()) == pytest.approx(40, abs=0.05)
    assert float((weight.sum(1) * line).sum()) == pytest.approx(87, abs=0.05)


def test_heatmap_input_hears_nothing_but_valid_joints_and_disturbs_them_in_training_only():
    model = tiny(input="heatmap", noise_2d=2.0, missing_2d=0.3).eval()
    assert model.input_spec.kind == "keypoints"
    batch = whole_batch(model)
    one, _ = model._maps(batch)
    assert one.shape == (4, 16, 28, 28)
    batch["scores_2d"] = batch["scores_2d"] * 0.5
    assert torch.equal(model._maps(batch)[0], one)
    wrist = model.skeleton.index("l_wrist")
    batch["valid_2d"][:, :, wrist] = False
    batch["joints_2d"][:, :, wrist] = math.nan
    assert int((model._maps(batch)[0] != one).flatten(2).any(2).sum(1).max()) == 1
    model.train()
    assert not torch.equal(model._maps(batch)[0], model._maps(batch)[0])


# ---- losses -------------------------------------------------------------------------------------


def test_losses_are_sums_over_dimensions_and_means_over_labelled_poses():
    predicted, target = torch.randn(3, 6), torch.randn(3, 6)
    known = torch.ones(3, 6, dtype=torch.bool)
    squares = (predicted - target).square()
    torch.testing.assert_close(pose_loss(predicted, target, known), squares.sum(1).mean())
    torch.testing.assert_close(latent_loss(predicted, target, known), squares.sum(1).mean())
    known[2] = False
    known[1, 3:] = False
    expected = (squares[0].sum() + squares[1, :3].sum()) / 2
    torch.testing.assert_close(pose_loss(predicted, target, known), expected)
    half = (squares[0].sum() + 0.5 * squares[1].sum()) / 2
    torch.testing.assert_close(latent_loss(predicted, target, known), half)
    parts = autoencoder_loss(squares, torch.tensor([1.0, 3.0, 99.0]), known)
    torch.testing.assert_close(parts["loss"], expected + 2)


def test_the_loss_of_each_stage_is_its_equation():
    model = tiny(noise=[0.0], contractive=0.0, dropout=0.0, crop_size=32)
    batch = whole_batch(model)
    pose = batch["joints_3d"].flatten(0, 1).flatten(1) / 300
    losses = {}
    for phase in model.phases():
        with in_phase(model, phase):
            losses[phase.name] = model.compute_loss(batch)["loss"]
    with torch.no_grad():
        code = model.regressor(model.trunk(batch["image"].flatten(0, 1)))
        expected = {
            "ae": (model.autoencoder(pose) - pose).square(),
            "regress": (code - model.autoencoder.encode(pose)).square(),
            "finetune": (model.decoder(code) - pose).square(),
        }
    for name, squares in expected.items():
        torch.testing.assert_close(losses[name].detach(), squares.sum(1).mean())
    torch.testing.assert_close(model.compute_loss(batch)["loss"], losses["finetune"])


# ---- stages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["detect", "ae1", "ae2", "ae", "regress", "finetune"]),
        ({"hidden": [20]}, ["detect", "ae", "regress", "finetune"]),
        ({"input": "heatmap", "finetune_epochs": 0}, ["ae1", "ae2", "ae", "regress"]),
        ({"head": "direct"}, ["detect", "direct"]),
        ({"head": "extrafc"}, ["detect", "direct"]),
        ({"head": "pca"}, ["detect", "regress", "finetune"]),
        ({"temporal": "lstm"}, ["detect", "ae1", "ae2", "ae", "regress", "finetune", "temporal"]),
        (FEATURE, ["detect", "direct", "ae1", "ae2", "ae", "temporal"]),
        ({**FEATURE, "head": "direct"}, ["detect", "direct", "temporal"]),
        ({"temporal": "fc", "base_weights": "x.ckpt"}, ["temporal"]),
        ({"autoencoder_weights": "x.ckpt"}, ["detect", "regress", "finetune"]),
    ],
)
def test_stages(changes: dict[str, Any], names: list[str]):
    model = tiny(**changes)
    assert [phase.name for phase in model.phases()] == names
    assert all(phase.monitor for phase in model.phases()[:-1])


def test_each_stage_trains_its_own_parameters_and_no_others():
    model = tiny(backbone="resnet18", frozen_levels=2)
    expected = {
        "detect": {"trunk.first", "trunk.top", "detector.out"},
        "ae1": {"autoencoder.layers.0"}, "ae2": {"autoencoder.layers.1"},
        "ae": {"autoencoder.layers.0", "autoencoder.layers.1"},
        "regress": {"trunk.top", "trunk.extra", "regressor.0"},
        "finetune": {"trunk.top", "trunk.extra", "regressor.0", "decoder.layers"},
    }  # fmt: skip
    for phase in model.phases():
        with in_phase(model, phase) as trained:
            parts = set()
            for name in trained:
                depth = 3 if name.startswith("autoencoder") else 2
                parts.add(".".join(name.split(".")[:depth]))
            in_optimizer = {
                id(p) for g in model.configure_optimizers().param_groups for p in g["params"]
            }
            assert in_optimizer == {id(p) for p in model.parameters() if p.requires_grad}
            frozen_norms = [m for m in model.trunk.first.modules() if "Norm" in type(m).__name__]
            assert frozen_norms
            assert all(m.training == (phase.name == "detect") for m in frozen_norms)
        assert parts == expected[phase.name]


class FakeTrainer:
    """Just enough for ``_prepare``."""

    def __init__(self, model: Any) -> None:
        poses = random_poses(model.input_spec, model.skeleton)
        self.datamodule = type("Data", (), {"training_poses": lambda self: poses})()


def test_fine_tuning_starts_from_the_autoencoders_decoder_and_leaves_it(
    monkeypatch: pytest.MonkeyPatch,
):
    model = tiny()
    monkeypatch.setattr(type(model), "trainer", property(lambda self: FakeTrainer(self)))
    model.phase = next(p for p in model.phases() if p.name == "regress")
    model.on_train_epoch_start()
    code = torch.randn(9, 20)
    torch.testing.assert_close(model.decoder(code), model.autoencoder.decode(code))
    # The regressor starts at the mean code of the training poses, in units of their deviation.
    poses = model.trainer.datamodule.training_poses()
    codes = model._code(*model._targets(poses))
    start = model.regressor(torch.zeros(1, model.trunk.num_features))[0].detach()
    torch.testing.assert_close(start, codes.mean(0))
    torch.testing.assert_close(model.regressor[0].std, codes.std(0, correction=0).norm() / 20**0.5)
    batch = whole_batch(model)
    before = model.eval()(batch)["pred_3d"]
    model.phase = next(p for p in model.phases() if p.name == "finetune")
    model.on_train_epoch_start()
    assert torch.equal(model.eval()(batch)["pred_3d"], before)  # "no FT", bit for bit
    encoder = copy.deepcopy(model.autoencoder.state_dict())
    with in_phase(model, model.phase):
        optimizer = model.configure_optimizers()
        model.compute_loss(batch)["loss"].backward()
        optimizer.step()
    assert all(torch.equal(v, encoder[k]) for k, v in model.autoencoder.state_dict().items())
    assert not torch.allclose(model.decoder(code), model.autoencoder.decode(code))
    tuned = model.decoder(code)
    model.on_train_epoch_start()  # the next epoch copies nothing
    assert torch.equal(model.decoder(code), tuned)


@pytest.mark.parametrize("level", ["pose", "feature"])
def test_a_temporal_head_starts_at_the_mean_of_its_targets(
    level: str, monkeypatch: pytest.MonkeyPatch
):
    model = tiny(temporal="blstm", level=level)
    monkeypatch.setattr(type(model), "trainer", property(lambda self: FakeTrainer(self)))
    poses = model.trainer.datamodule.training_poses()
    model.fit_statistics(poses)
    model.phase = next(p for p in model.phases() if p.name == "temporal")
    model.on_train_epoch_start()
    targets = model._targets(poses)
    values = targets[0] if level == "pose" else model._code(*targets)
    merge = model.refiner.merge
    torch.testing.assert_close(merge.mean, values.mean(0), atol=1e-4, rtol=1e-4)
    spread = (values - values.mean(0)).square().mean().sqrt()
    torch.testing.assert_close(merge.std, spread, atol=1e-4, rtol=0.02)
    torch.testing.assert_close(merge(torch.zeros(1, merge.in_features))[0].detach(), merge.mean)


@pytest.mark.slow
def test_regression_and_fine_tuning_overfit_a_few_images(monkeypatch: pytest.MonkeyPatch):
    model = tiny(dropout=0.0, crop_size=32, channels=(16, 16, 16), fc=(128, 128, 128),
                 hidden=(60,))  # fmt: skip
    monkeypatch.setattr(type(model), "trainer", property(lambda self: FakeTrainer(self)))
    batch = whole_batch(model, 16)
    batch["joints_3d"] = random_poses(model.input_spec, model.skeleton, 40)["joints_3d"][:16]
    for phase, steps in zip(model.phases()[1:], (200, 200, 300), strict=True):
        if phase.name == "regress":
            model._prepare("regress")
        with in_phase(model, phase):
            optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for _ in range(steps):
                optimizer.zero_grad()
                model.compute_loss(batch)["loss"].backward()
                optimizer.step()
                schedule.step()
    error = (model.eval()(batch)["pred_3d"] - batch["joints_3d"]).norm(dim=-1).mean()
    assert error < 10


# ---- principal components -----------------------------------------------------------------------


def test_all_components_are_a_rotation_of_the_pose():
    poses = torch.randn(200, 12) @ torch.randn(12, 12)
    basis = PoseBasis(12, 12)
    basis.fit(poses)
    a, b = torch.randn(5, 12), torch.randn(5, 12)
    distance = (basis.encode(a) - basis.encode(b)).square().sum(1)
    torch.testing.assert_close(distance, (a - b).square().sum(1), rtol=1e-4, atol=1e-4)


def test_the_error_of_few_components_is_the_dropped_variance():
    poses = (torch.randn(200, 12) @ torch.randn(12, 12)).double()
    basis = PoseBasis(12, 5).double()
    basis.fit(poses)
    error = (basis.decode(basis.encode(poses)) - poses).square().sum(1).mean()
    spectrum = torch.linalg.eigvalsh(torch.cov(poses.T, correction=0))
    torch.testing.assert_close(error, spectrum[:7].sum(), rtol=1e-6, atol=1e-6)


# ---- temporal -----------------------------------------------------------------------------------


def test_window_indices_at_both_ends():
    index, inside = window_index(24, frames=5, stride=5)
    assert index[12].tolist() == [2, 7, 12, 17, 22]
    assert inside.nonzero().flatten().tolist() == [10, 11, 12, 13]
    assert index[0].tolist() == [0, 0, 0, 5, 10]
    assert index[23].tolist() == [13, 18, 23, 23, 23]
    index, inside = window_index(24, frames=5, stride=5, causal=True)
    assert index[20].tolist() == [0, 5, 10, 15, 20]
    assert inside.nonzero().flatten().tolist() == [20, 21, 22, 23]
    assert window_index(3)[1].any().item() is False


def test_the_lstm_is_equation_5():
    torch.manual_seed(0)
    head = WindowLSTM(4, 3, frames=5, hidden=6, layers=1, bidirectional=False).double()
    window = torch.randn(2, 5, 4).double()
    lstm = head.lstm
    weight_x, weight_h = lstm.weight_ih_l0, lstm.weight_hh_l0
    bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
    h = c = torch.zeros(2, 6).double()
    outputs = []
    for t in range(5):
        i, f, g, o = (window[:, t] @ weight_x.T + h @ weight_h.T + bias).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    expected = head.merge(torch.cat(outputs, dim=1))
    torch.testing.assert_close(head(window), expected, atol=1e-9, rtol=0)


def test_a_reversed_window_with_exchanged_directions_gives_reversed_outputs():
    torch.manual_seed(0)
    one = WindowLSTM(4, 3, hidden=6, layers=1).lstm
    other = copy.deepcopy(one)
    state = one.state_dict()
    other.load_state_dict(
        {k: state[k[:-8] if k.endswith("_reverse") else f"{k}_reverse"] for k in state}
    )
    window = torch.randn(2, 5, 4)
    forward, backward = one(window)[0], other(window.flip(1))[0]
    torch.testing.assert_close(backward.flip(1), torch.cat([forward[..., 6:], forward[..., :6]], 2))


@pytest.mark.parametrize("changes", [{"temporal": "lstm"}, FEATURE])
def test_the_frozen_part_does_not_change_under_the_temporal_head(changes: dict[str, Any]):
    model = tiny(backbone="resnet18", frozen_levels=1, **changes)
    batch = whole_batch(model)
    phase = model.phases()[-1]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with in_phase(model, phase):
        optimizer = model.configure_optimizers()
        for _ in range(3):
            optimizer.zero_grad()
            model.compute_loss(batch)["loss"].backward()
            optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(k.startswith(phase.train) for k in changed)
    assert any(k.startswith("refiner.lstm") for k in changed)


@pytest.mark.parametrize("changes", [{"temporal": "blstm"}, FEATURE, {"temporal": "fc"}, {}])
def test_every_frame_of_a_recording_gets_a_pose(changes: dict[str, Any]):
    model = tiny(**changes).eval()
    batch = whole_batch(model, 5)
    video = cast(
        PoseBatch,
        {k: torch.randn(1, 30, *cast(Tensor, batch[k]).shape[2:]).abs() for k in ("image",)},
    )
    video["joints_2d"] = torch.zeros(1, 30, 17, 2)
    poses = model.predict_recording(video, stride=5, chunk=7)
    assert poses.shape == (30, 17, 3)
    assert poses.isfinite().all()
    features = model.trunk(model._maps(video)[0])
    single = model._to_mm(model._pose(features))
    if changes:
        torch.testing.assert_close(poses[:10], single[:10], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(poses[20:], single[20:], atol=1e-3, rtol=1e-4)
        clip = cast(PoseBatch, {k: v[:, 3:24:5] for k, v in video.items()})  # type: ignore[index]
        torch.testing.assert_close(poses[13], model(clip)["pred_3d"][0, 0], atol=1e-3, rtol=1e-4)
        assert not torch.allclose(poses[13], single[13])
    else:
        torch.testing.assert_close(poses, single, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "changes", [{"temporal": "blstm"}, FEATURE, {"temporal": "lstm", "causal": True}, {}]
)
@pytest.mark.parametrize("length", [3, 13])
def test_a_stream_is_the_recording(changes: dict[str, Any], length: int):
    model = tiny(**changes).eval()
    video = cast(
        PoseBatch,
        {"image": torch.rand(1, length, 3, 32, 32), "joints_2d": torch.zeros(1, length, 17, 2)},
    )
    whole = model.predict_recording(video, stride=1)
    state, poses, counts = None, [], []
    for t in range(length):
        piece = cast(PoseBatch, {k: v[:, t : t + 1] for k, v in video.items()})  # type: ignore[index]
        found, state = model.stream(piece, state)
        poses += [] if found is None else [found["pred_3d"]]
        counts.append(sum(p.shape[1] for p in poses))
        assert state is None or len(state[0]) <= 4  # what the next window needs, and no more
    found, state = model.stream(None, state)
    poses += [] if found is None else [found["pred_3d"]]
    assert state is None
    torch.testing.assert_close(torch.cat(poses, 1)[0], whole, atol=1e-3, rtol=1e-5)
    late = 2 if changes and not changes.get("causal") else 0
    assert counts == [max(0, t + 1 - late) for t in range(length)]


def test_causal_windows_end_at_the_predicted_frame():
    assert tiny(temporal="lstm").predicted_frames == (2,)
    model = tiny(temporal="lstm", causal=True)
    assert model.predicted_frames == (4,)
    batch = whole_batch(model)
    changed = cast(PoseBatch, {**batch, "joints_3d": batch["joints_3d"].clone()})
    changed["joints_3d"][:, :4] += 100
    with in_phase(model, model.phases()[-1]):
        torch.manual_seed(0)
        one = model.compute_loss(batch)["loss"]
        torch.manual_seed(0)
        assert torch.equal(one, model.compute_loss(changed)["loss"])


def test_a_window_of_noisy_looks_at_a_still_pose_is_averaged():
    torch.manual_seed(0)
    head = WindowLSTM(6, 6, hidden=24, layers=2)
    optimizer = torch.optim.Adam(head.parameters(), 0.01)
    error = torch.zeros(())
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - step / 200)
        truth = torch.randn(128, 6)
        seen = truth[:, None] + 0.5 * torch.randn(128, 5, 6)
        error = (head(seen) - truth).square().mean().sqrt()
        optimizer.zero_grad()
        error.square().backward()
        optimizer.step()
    assert error < 0.4  # one look errs by 0.5, the mean of five by 0.22


def test_the_control_has_the_capacity_of_the_blstm():
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in head.parameters())
            for head in (WindowLSTM(51, 51), WindowMLP(51, 51))
        ]
    assert sizes[1] / sizes[0] == pytest.approx(1, abs=0.001)


# ---- parts of other trainings -------------------------------------------------------------------


def test_the_single_frame_part_of_another_training_is_taken_once(tmp_path: Path):
    base = tiny(seed=5)
    base.zoo_name = "latent-ae"
    file = save_weights(base, tmp_path / "base.safetensors", half=False)
    model = tiny(temporal="lstm", base_weights=str(file))
    model.take_parts()
    for name in ("trunk", "regressor", "decoder", "autoencoder"):
        taken, given = getattr(model, name).state_dict(), getattr(base, name).state_dict()
        assert all(torch.equal(taken[k], given[k]) for k in given)
    file.unlink()
    model.take_parts()  # the file is not needed again
    heat = tiny(input="heatmap", autoencoder_weights=str(tmp_path / "gone.ckpt"))
    with pytest.raises(CheckpointError, match="no file"):
        heat.take_parts()


def test_parts_that_do_not_fit_are_named(tmp_path: Path):
    base = tiny(head="direct")
    base.zoo_name = "latent-direct"
    file = str(save_weights(base, tmp_path / "base.safetensors", half=False))
    for changes, reason in (
        ({"autoencoder_weights": file}, "has no autoencoder"),
        ({"base_weights": file, "temporal": "lstm", "unit_mm": 1.0}, "unit_mm"),
        ({"base_weights": file, **FEATURE, "fc": [12, 12, 8]}, "use the sizes"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            tiny(**changes).take_parts()
    tiny(base_weights=file, **FEATURE).take_parts()
    tiny(LatentKDE, base_weights=file).take_parts()


# ---- kernel dependency estimation ---------------------------------------------------------------


def fourier(dimensions: int, count: int, width: float) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    weights = torch.randn(dimensions, count, generator=rng) / width
    return weights, 2 * math.pi * torch.rand(count, generator=rng)


def test_inner_products_of_fourier_features_are_a_gaussian_kernel():
    weights, offsets = fourier(51, 2000, 10.0)
    y = 1.2 * torch.randn(40, 51)
    phi = fourier_features(y, weights, offsets)
    kernel = torch.exp(-torch.cdist(y, y).square() / (2 * 10.0**2))
    assert kernel.min() < 0.7
    assert (phi @ phi.T - kernel).abs().max() < 0.05 * 1.5  # the largest of 1600
    assert (phi @ phi.T - kernel).abs().mean() < 0.02


def test_the_pre_image_of_a_poses_features_is_the_pose():
    weights, offsets = fourier(51, 2000, 10.0)
    y = torch.randn(8, 51)
    found = pre_image(fourier_features(y, weights, offsets), y + 0.3 * torch.randn(8, 51),
                      weights, offsets)  # fmt: skip
    torch.testing.assert_close(found, y, atol=2e-3, rtol=0)


def ridge_data(samples: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(samples, 5)
    t = x @ torch.randn(5, 3) + 0.1 * torch.randn(samples, 3)
    return x, t, torch.rand(samples)


def test_ridge_regression_from_sums_is_the_solution_and_resumes_at_any_batch():
    x, t, w = ridge_data()
    fits = [RidgeFit([0.02]), RidgeFit([0.02])]
    for fit in fits:
        fit.begin_pass(4)
        fit.measure(x, w)
    mean, scale = fits[0].moments()
    torch.testing.assert_close(mean, (w[:, None] * x).sum(0) / w.sum())
    assert scale > 0
    assert fits[0].solve() is None
    for number, rows in enumerate(torch.arange(60).split(16)):
        if number == 2:
            resumed = RidgeFit([0.02])
            resumed.load_state_dict(fits[1].state_dict())
            fits[1] = resumed
        for fit in fits:
            first = fit.begin_pass(5)
            assert first == (number == 0)
            fit.add(x[rows], t[rows], w[rows], held_out=False)
    gram, cross = (w[:, None] * x).T @ x, (w[:, None] * t).T @ x
    ridge = 0.02 * gram.diagonal().mean()
    expected = torch.linalg.solve(gram + ridge * torch.eye(5), cross.T).T
    solutions = [fit.solve() for fit in fits]
    torch.testing.assert_close(solutions[0], expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(solutions[0], solutions[1])


def test_the_ridge_is_the_best_one_on_held_out_samples():
    x, t, w = ridge_data(10)
    t = torch.randn(10, 3)  # nothing to learn: the largest penalty errs least
    fit = RidgeFit([1e-6, 1e3])
    fit.begin_pass(0)
    fit.measure(x, w)
    fit.begin_pass(1)
    fit.add(x[:6], t[:6], w[:6], held_out=False)
    fit.add(x[6:], t[6:], w[6:], held_out=True)
    fit.solve()
    assert fit.ridge == 1e3


@pytest.mark.parametrize(
    ("features", "input_map"), [("conv3", "linear"), ("hog", "skewed_chi2"), ("hog", "rbf")]
)
def test_kernel_estimation_on_other_features(features: str, input_map: str):
    if features == "hog":
        pytest.importorskip("skimage")
    if input_map == "skewed_chi2":
        pytest.importorskip("sklearn")
    model = tiny(LatentKDE, features=features, input_map=input_map)
    batch = whole_batch(model)
    assert [p.name for p in model.phases()] == (
        ["kde"] if features == "hog" else ["detect", "direct", "kde"]
    )
    assert model.compute_loss(batch)["loss"].isfinite()
    assert model.eval()(batch)["pred_3d"].isfinite().all()


# ---- files --------------------------------------------------------------------------------------

NAMES = [name for name in list_models("latent-*") if get_method(name).origin == "zoo"]
SIZES = {
    "image_size", "crop_size", "channels", "fc", "backbone", "frozen_levels", "extra_channels",
    "hidden", "extra_fc", "unit_mm", "recurrent_hidden", "temporal_fc", "input_dim", "output_dim",
    "backbone_pretrained",
}  # fmt: skip


def test_all_names_of_the_paper_are_there():
    assert len(NAMES) == 12


@pytest.mark.parametrize("name", NAMES)
def test_the_small_recipe_differs_in_sizes_and_lengths_only(name: str):
    recipes = {}
    for kind in ("paper", "small"):
        text = resource(get_method(name).recipes[kind]).read_text(encoding="utf-8")
        recipes[kind] = yaml.safe_load(text)
    small = recipes["small"]["model"]
    may_change = {*SIZES, "dropout"}  # narrow layers want less
    assert all(key in may_change or key.endswith("_epochs") for key in small)
    paper = {**recipes["paper"]["data"], "batch_size": 32}  # a short training wants many steps
    assert recipes["small"]["data"] == paper
    with torch.device("meta"):
        model = create(name, **small)
        assert model.phases()
        assert sum(p.numel() for p in model.parameters()) < 4e6


def test_the_sweep_has_the_eleven_sizes_of_table_10():
    sweep = yaml.safe_load(resource("zoo/sweeps/latent.yaml").read_text(encoding="utf-8"))
    sizes = sweep["parameters"]["model.hidden"]["values"]
    assert len(sizes) == 11
    assert sweep["method"] == "grid"
    for hidden in sizes:
        assert tiny(hidden=hidden, noise=[40.0, 20.0]).autoencoder.hidden == hidden


@pytest.mark.parametrize("number", [1, 3, "4-7", 9, 10])
def test_tables_are_read_and_their_arguments_build(number: int | str):
    read = read_table(f"latent-table{number}")
    for training in (*read.shared, *read.rows):
        recipe = resource(get_method(training.method).recipes[training.recipe])
        model = yaml.safe_load(recipe.read_text(encoding="utf-8"))["model"]
        trained = next((step.model for step in read.shared if step.name == training.test_of), {})
        with torch.device("meta"):
            built = create(training.method, **{**model, **trained, **training.model})
        assert built.total_epochs == training.epochs, training.name


def test_table_9_is_copied_right_and_table_10_has_the_sweep_s_sizes():
    for row in read_table("latent-table9").rows:
        actions = row.paper["actions"]
        assert len(actions) == 15
        mean = sum(actions.values()) / 15
        assert mean == pytest.approx(row.paper["mpjpe_mm"], abs=0.011), row.name
    sweep = yaml.safe_load(resource("zoo/sweeps/latent.yaml").read_text(encoding="utf-8"))
    sizes = [row.model["hidden"] for row in read_table("latent-table10").rows]
    assert sizes == sweep["parameters"]["model.hidden"]["values"]


@pytest.mark.parametrize("seed", range(3))
def test_detection_starts_from_an_empty_picture_and_keeps_the_maps_alive(seed: int) -> None:
    """With a loud first output narrow trunks lose channels for good; one lost all of them."""
    torch.manual_seed(seed)
    trunk = ShallowTrunk(3, 32, [8, 16, 16], [8], 0.0)
    detector = Detector(16, 17, 32)
    optimizer = torch.optim.Adam([*trunk.convs.parameters(), *detector.parameters()], 1e-3)
    seen = torch.ones(16, 17, dtype=torch.bool)
    losses = []
    for _ in range(60):
        points = torch.rand(16, 17, 2) * 28 + 2
        image = torch.rand(16, 3, 32, 32) * 0.3
        image[:, 0] += joint_maps(points, seen, 32, 32, 1.0).amax(1)
        if not losses:
            maps = joint_maps(points, seen, 4, 32, 1.0)
            empty = float(maps.square().sum(dim=(1, 2, 3)).mean())
        loss = detector.loss(trunk.maps(image), points, seen)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(empty, rel=0.05)
    assert losses[-1] < 0.6 * empty
    assert float((trunk.maps(image) > 0).float().mean()) > 0.5  # a loud start: 0.32 to 0.46


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("head", ["ae", "direct"])
def test_regression_starts_at_the_mean_and_keeps_the_features_alive(seed: int, head: str) -> None:
    """A loud regressor pulls all features below zero; wide codes lost all of a layer to it."""
    torch.manual_seed(seed)
    model = tiny(head=head, crop_size=32, channels=(8, 16, 16), fc=(64, 64), dropout=0.0,
                 hidden=(600,))  # fmt: skip
    width = model.regressor[-1].out_features
    basis = torch.randn(2, width)
    targets = torch.relu((torch.rand(4096, 2) - 0.5) @ basis)
    model.regressor[-1].calibrate(
        targets.mean(0), (targets - targets.mean(0)).square().mean().sqrt()
    )
    trained = [*model.trunk.parameters(), *model.regressor.parameters()]
    optimizer = torch.optim.Adam(trained, 1e-3)
    shares = []  # of the targets' variance
    for _ in range(60):
        colour = torch.rand(16, 2)
        image = torch.rand(16, 3, 32, 32) * 0.3
        image[:, :2] += colour[:, :, None, None]
        target = torch.relu((colour - 0.5) @ basis)
        loss = (model.regressor(model.trunk(image)) - target).square().sum(1).mean()
        spread = (target - target.mean(0)).square().sum(1).mean()
        shares.append(float((loss / spread).detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert shares[0] == pytest.approx(1.0, abs=0.25)  # a loud start: 12 to 60
    assert sum(shares[-5:]) / 5 < 0.15  # a loud start: 0.17 to 0.97
    assert float((model.trunk(image) > 0).float().mean()) > 0.38  # a loud start: 0.25 to 0.48
