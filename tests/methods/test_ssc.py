"""Wang et al. 2019: sizes, recurrence over clips, losses, Algorithm 1, the rows of Table 5."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from torch import Tensor, nn

import zoo.testing
from callbacks.correction import SelfCorrection
from tests.callbacks.callback_toy import trainer
from zoo.base import PoseModule
from zoo.batch import PoseBatch
from zoo.correction import correct
from zoo.cpm import CPMTrunk
from zoo.errors import UsageError
from zoo.methods.ssc import SSC
from zoo.methods.ssc.network import HourglassPose, PointHead, PoseTransformer, drop_joints
from zoo.projector import Projector, Regressor, SelfCorrecting
from zoo.registry import create, get_method, resolve_class, resource
from zoo.testing.files import _Memory
from zoo.testing.helpers import in_phase
from zoo.testing.people import random_batch, random_poses

J = 17


def tiny(**changes: Any) -> SSC:
    torch.manual_seed(0)
    model = SSC(**{**SSC.tiny().hparams, "scale": (1.0, 1.0), **changes})
    model.fit_statistics(random_poses(model.input_spec, model.skeleton))
    return model


def make_batch(model: PoseModule, size: int = 4, seed: int = 0) -> PoseBatch:
    return random_batch(model.input_spec, model.skeleton, size, seed)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


FAR = {
    "second_lstm": "backward", "other2d": "hourglass", "pose2d": "other", "hourglass_width": 4,
    "hourglass_depth": 1, "proj_target": "pred", "bone_weight": 1.0, "pretrain": "head",
    "special_channels": 0, "batch_norm": False, "schedule": "cosine",
    "lr_factors": {"lift.out.": 10.0}, "bias_lr": 2.0, "limb_scale": False,
}  # fmt: skip
"""Switches far from the full model, on which the registry's tests run the kit."""


@pytest.mark.parametrize(
    "check",
    [c for c in zoo.testing.CHECKS
     if c.__name__.removeprefix("check_") in (
         "constructor", "phases", "meta_device", "forward", "stream", "gradients",
         "invalid_joints", "nothing_valid", "weight_file", "fit")],
)  # fmt: skip
def test_contract_of_other_switches(check: Any) -> None:
    check(lambda: SSC(**{**SSC.tiny().hparams, **FAR}))


# ---- sizes ---------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_paper() -> None:
    """16 joints at 368 px: 42.43 million parameters."""
    with torch.device("meta"):
        lift = PoseTransformer(128, 46, 48, 0, 128, 1024, True, 1024, "paper", True, False)
        parts = {
            "trunk": (CPMTrunk(), 9_110_720),
            "head": (PointHead(128, 46, 16), 8_667_168),
            "adaption": (lift.adaption, 5_539_072),
            "lstm": (lift.first, 8_392_704),
            "lstm2": (lift.second, 8_392_704),
            "out": (lift.out, 49_200),
            "psi_c": (Regressor(48), 99_376),
            "psi_p": (Projector(48, 32), 2_182_176),
        }
        pair = PoseTransformer(128, 46, 48, 128, 128, 1024, True, 1024, "paper", True, False)
    for name, (module, size) in parts.items():
        assert count(module) == size, name
    assert sum(size for _, size in parts.values()) == pytest.approx(42.43e6, rel=1e-4)
    assert count(pair) - count(lift) == 295_168


def test_the_skip_lies_around_the_two_middle_layers() -> None:
    psi_p = Projector(9, 6, 7)
    pose = torch.randn(5, 9)
    a = psi_p.first(pose)
    b = psi_p.third(psi_p.second(a))
    torch.testing.assert_close(psi_p(pose), psi_p.out(a + b))
    nn.init.zeros_(psi_p.third[0].weight)
    nn.init.zeros_(psi_p.third[0].bias)
    torch.testing.assert_close(psi_p(pose), psi_p.out(a))
    plain = Regressor(9, 7)
    nn.init.zeros_(plain.hidden.weight)
    assert torch.equal(plain(pose), plain(pose + 1))  # Psi_C has no skip


def test_batch_norm_stands_before_the_three_relus() -> None:
    psi_p = Projector(9, 6, 7, batch_norm=True)
    kinds = [type(layer).__name__ for layer in psi_p.modules() if not list(layer.children())]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 3 + ["Linear"]


# ---- recurrence ----------------------------------------------------------------------------------


def poses(model: SSC, image: Tensor) -> Tensor:
    with torch.no_grad():
        return model({"image": image})["pred_3d"]


@pytest.mark.parametrize("second", ["forward", "backward"])
def test_clips_do_not_know_each_other(second: Any) -> None:
    model = tiny(second_lstm=second).eval()
    image = make_batch(model)["image"]
    whole = poses(model, image)
    for i in range(len(image)):
        torch.testing.assert_close(poses(model, image[i : i + 1])[0], whole[i], atol=1e-3, rtol=0)
    torch.testing.assert_close(poses(model, image.flip(0)), whole.flip(0), atol=1e-3, rtol=0)


def test_forwards_no_frame_sees_the_future() -> None:
    model = tiny().eval()
    image = make_batch(model, 2)["image"]
    changed = image.clone()
    changed[:, 1] = 1 - changed[:, 1]
    before, after = poses(model, image), poses(model, changed)
    assert torch.equal(before[:, 0], after[:, 0])
    assert (before[:, 1:] - after[:, 1:]).abs().amax((0, 2, 3)).min() > 1e-4


def test_backwards_every_frame_sees_its_clip() -> None:
    model = tiny(second_lstm="backward").eval()
    image = make_batch(model, 2)["image"]
    for frame in range(3):
        changed = image.clone()
        changed[0, frame] = 1 - changed[0, frame]
        moved = (poses(model, image) - poses(model, changed)).abs().amax((2, 3))
        assert moved[0].min() > 1e-4
        assert moved[1].max() == 0


def test_backwards_by_hand() -> None:
    model = tiny(second_lstm="backward").eval()
    lift = model.lift
    vector = torch.randn(2, 3, 12)
    one = cast(nn.LSTM, lift.first)(vector)[0]
    reverse = torch.stack([one[:, 2], one[:, 1], one[:, 0]], dim=1)
    two = cast(nn.LSTM, lift.second)(reverse)[0]
    want = lift.out(torch.stack([two[:, 2], two[:, 1], two[:, 0]], dim=1))
    torch.testing.assert_close(lift.recur(vector)[0], want)


def test_single_frame_is_the_full_model_on_clips_of_length_one() -> None:
    model, single = tiny().eval(), tiny(reset_every=1).eval()
    single.load_state_dict(model.state_dict())
    image = make_batch(model)["image"]
    alone = poses(model, image.flatten(0, 1)[:, None]).reshape(4, 3, J, 3)
    torch.testing.assert_close(poses(single, image), alone, atol=1e-3, rtol=0)
    assert (poses(model, image)[:, 1:] - alone[:, 1:]).abs().max() > 1e-2
    single.train()
    torch.testing.assert_close(poses(single, image), poses(model, image), atol=1e-3, rtol=0)


def test_without_temporal_there_is_no_recurrent_weight() -> None:
    model = tiny(temporal=False).eval()
    image = make_batch(model)["image"]
    alone = poses(model, image.flatten(0, 1)[:, None]).reshape(4, 3, J, 3)
    torch.testing.assert_close(poses(model, image), alone, atol=1e-3, rtol=0)
    assert not [m for m in model.modules() if isinstance(m, nn.LSTM)]
    assert isinstance(model.lift.first, nn.Linear)
    assert model.lift.first.out_features == model.lift.second.out_features == 10


def video(model: SSC, frames: int) -> PoseBatch:
    batch = make_batch(model, -(-frames // 3) + 1)
    return {
        k: cast(Tensor, v)[:-1].flatten(0, 1)[None, :frames]
        for k, v in batch.items() if k in ("image", "joints_2d", "valid_2d")
    }  # type: ignore[return-value] # fmt: skip


def streamed(model: SSC, batch: PoseBatch, cuts: list[int]) -> Tensor:
    found, state, at = [], None, 0
    for size in cuts:
        piece = {k: cast(Tensor, v)[:, at : at + size] for k, v in batch.items()}
        some, state = model.stream(cast(PoseBatch, piece), state)
        found += [] if some is None else [some["pred_3d"]]
        at += size
    last, state = model.stream(None, state)
    assert state is None
    return torch.cat(found + ([] if last is None else [last["pred_3d"]]), dim=1)


@pytest.mark.parametrize("second", ["forward", "backward"])
def test_a_video_is_clips_one_after_the_other(second: Any) -> None:
    model = tiny(second_lstm=second).eval()
    batch = video(model, 8)
    want = torch.cat([poses(model, batch["image"][:, i : i + 3]) for i in (0, 3, 6)], dim=1)
    for cuts in ([8], [1] * 8, [2, 5, 1]):
        torch.testing.assert_close(streamed(model, batch, cuts), want, atol=1e-3, rtol=0)


def test_a_sequence_carries_its_state() -> None:
    model = tiny(state="sequence").eval()
    batch = video(model, 9)
    whole = poses(model, batch["image"])  # one clip of nine frames
    torch.testing.assert_close(streamed(model, batch, [4, 5]), whole, atol=1e-3, rtol=0)
    # As clips of a recording in a test, shuffled over two batches.
    clips = cast(Tensor, batch["image"]).reshape(3, 3, *batch["image"].shape[2:])
    step = model.memory.step
    ids = {k: torch.zeros(3, dtype=torch.long) for k in ("subject", "action", "camera", "sequence")}
    ids["frame"] = torch.arange(3) * step + 7
    model._follow()
    model._trainer = trainer(".")  # one process
    found: dict[int, Tensor] = {}
    for order in ([1, 0], [2]):
        part = {"image": clips[order], **{k: v[order] for k, v in ids.items()}}
        with torch.no_grad():
            prediction = model(cast(PoseBatch, part))["pred_3d"]
        found |= dict(zip(order, prediction, strict=True))
    got = torch.cat([found[i] for i in range(3)])[None]
    torch.testing.assert_close(got, whole, atol=1e-3, rtol=0)
    model.teardown("test")
    fresh = poses(model, clips)
    assert (fresh[1] - got[0, 3:6]).abs().max() > 1e-2


def test_streams_are_corrected_like_batches() -> None:
    from zoo.correction import correcting

    model = tiny(correction="lr=0.001,dead_zone=0,tau_mm=inf").eval()
    batch = video(model, 6)
    clips = {k: cast(Tensor, v).reshape(2, 3, *v.shape[2:]) for k, v in batch.items()}
    want, _ = correct(model, cast(PoseBatch, clips), model.correction)
    with correcting(model):
        got = streamed(model, batch, [2, 4])
    torch.testing.assert_close(got, want["pred_3d"].reshape(1, 6, J, 3), atol=1e-2, rtol=0)
    assert (streamed(model, batch, [6]) - got).abs().max() > 1


# ---- losses --------------------------------------------------------------------------------------


def losses_in(model: SSC, batch: PoseBatch, name: str) -> dict[str, Tensor]:
    phase = next(p for p in model.phases() if p.name == name)
    with in_phase(model, phase), torch.no_grad():
        return model.eval().compute_loss(batch)


def half_squares(output: Tensor, target: Tensor, valid: Tensor) -> float:
    """By hand: (N, J, D)."""
    total, frames = 0.0, 0
    for o, t, v in zip(output, target, valid, strict=True):
        if v.any():
            frames += 1
            total += float((o[v] - t[v]).square().sum()) / 2
    return total / max(frames, 1)


def test_losses_by_hand() -> None:
    model = tiny()
    batch = make_batch(model)
    assert model.psi_c is not None
    assert model.psi_p is not None
    model.eval()
    with torch.no_grad():
        terms = model.correction_terms(batch)
        regressed = model.psi_c(terms.pose.flatten(0, 1))
        projected = model.psi_p(regressed)
    points = ((batch["joints_2d"] + 0.5) / 32).flatten(0, 1)
    valid_2d, valid_3d = batch["valid_2d"].flatten(0, 1), batch["valid_3d"].flatten(0, 1)
    target, _ = model.space.target(batch["joints_3d"].flatten(0, 1), valid_3d)
    target = target.reshape(-1, J, 3)
    want = {
        "loss_2d": half_squares(terms.points.flatten(0, 1), points, valid_2d),
        "loss_3d": half_squares(terms.pose.reshape(-1, J, 3), target, valid_3d),
        "loss_regressed": half_squares(regressed.reshape(-1, J, 3), target, valid_3d),
        "loss_projected": half_squares(projected.reshape(-1, J, 2), points, valid_2d),
    }
    got = losses_in(model, batch, "joint")
    assert {k: float(v) for k, v in got.items() if k != "loss"} == pytest.approx(want, rel=1e-4)
    assert float(got["loss"]) == pytest.approx(sum(want.values()), rel=1e-4)
    parts = {"pose2d": {"loss_2d", "loss_heatmap"}, "lift": {"loss_3d"},
             "project": {"loss_regressed", "loss_projected"}}  # fmt: skip
    for name, keys in parts.items():
        found = losses_in(model, batch, name)
        assert set(found) == keys | {"loss"}
        for key in keys - {"loss_heatmap"}:
            assert float(found[key]) == pytest.approx(want[key], rel=1e-4), name


def test_bone_loss_by_hand() -> None:
    plain, model = tiny(), tiny(bone_weight=0.5)
    model.load_state_dict(plain.state_dict())
    batch = make_batch(model)
    with torch.no_grad():
        pose = model.eval().correction_terms(batch).pose.reshape(-1, J, 3)
    valid = batch["valid_3d"].flatten(0, 1)
    target, _ = model.space.target(batch["joints_3d"].flatten(0, 1), valid)
    target = target.reshape(-1, J, 3)
    child, parent = (list(ends) for ends in zip(*model.skeleton.bones, strict=True))
    bone = half_squares(
        pose[:, parent] - pose[:, child], target[:, parent] - target[:, child],
        valid[:, parent] & valid[:, child],
    )  # fmt: skip
    more = losses_in(model, batch, "lift")["loss_3d"] - losses_in(plain, batch, "lift")["loss_3d"]
    assert float(more) == pytest.approx(0.5 * bone, rel=1e-3)


def gradients(model: SSC, batch: PoseBatch, stage: str, key: str) -> dict[str, Tensor]:
    phase = next(p for p in model.phases() if p.name == stage)
    with in_phase(model, phase) as names:
        torch.manual_seed(5)
        loss = model.compute_loss(batch)[key]
        some = [(n, p) for n, p in model.named_parameters() if n in names]
        found = torch.autograd.grad(loss, [p for _, p in some], allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(some, found, strict=True)
    }


def moves(found: dict[str, Tensor], prefix: str) -> bool:
    return any(bool(g.abs().max() > 0) for n, g in found.items() if n.startswith(prefix))


def test_two_d_only_samples_train_by_their_projection_alone() -> None:
    """Algorithm 1, line 4: their 3D loss is zero; in the joint step their 2D shapes everything."""
    model = tiny(batch_norm=False, joint_dropout=0.0)
    batch = make_batch(model)
    only = {k: cast(Tensor, v)[-1:] for k, v in batch.items()}  # the 2D-only one
    rest = {k: cast(Tensor, v)[:-1] for k, v in batch.items()}
    assert not only["valid_3d"].any()
    for key in ("loss_3d", "loss_regressed"):
        assert not moves(gradients(model, cast(PoseBatch, only), "joint", key), "")
        whole = gradients(model, batch, "joint", key)
        without = gradients(model, cast(PoseBatch, rest), "joint", key)
        for name, value in whole.items():
            torch.testing.assert_close(value, without[name], atol=1e-6, rtol=1e-4)
    reached = gradients(model, cast(PoseBatch, only), "joint", "loss_projected")
    assert all(moves(reached, part) for part in ("trunk.", "lift.", "psi_c.", "psi_p."))
    assert set(gradients(model, cast(PoseBatch, only), "project", "loss")) == {
        n for n, _ in model.named_parameters() if n.startswith("psi_")
    }


def test_the_mixture_of_table_5_is_five_clips_and_three_pictures() -> None:
    """Algorithm 1, line 4, with the table's own data: 2D-only pictures are clips of one frame."""
    from datamodules.mixed import MixedDataModule
    from zoo.reproduce.table import read_table

    settings = {k: v for k, v in read_table("ssc-table5").rows[0].data.items() if k != "seed"}
    model = tiny()
    data = MixedDataModule(**settings, train_samples=8, input_spec=model.input_spec)
    data.prepare_data()
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    whole = batch["valid_3d"].any(-1).all(-1)  # clips with 3D
    assert int(whole.sum()) == 5
    assert not batch["valid_3d"][~whole].any()
    assert batch["valid_2d"][~whole].any(-1).sum(-1).tolist() == [1, 1, 1]
    model.fit_statistics(data.training_poses(200))
    for phase in model.phases():
        with in_phase(model, phase):
            losses = model.compute_loss(batch)
            losses["loss"].backward()
            assert all(value.isfinite() for value in losses.values())
            model.zero_grad()


@pytest.mark.parametrize(("target", "reaches"), [("gt", False), ("pred", False)])
def test_the_projection_loss_does_not_pull_at_its_target(target: Any, reaches: bool) -> None:
    model = tiny(proj_target=target)
    batch = make_batch(model)
    found = gradients(model, batch, "joint", "loss_projected")
    assert moves(found, "head.") is reaches
    assert moves(found, "psi_p.")


def test_a_predicted_target_is_p_2d() -> None:
    plain, model = tiny(), tiny(proj_target="pred")
    model.load_state_dict(plain.state_dict())
    batch = make_batch(model)
    with torch.no_grad():
        seen = model.eval()(batch)["pred_2d"]
    as_label = cast(PoseBatch, {**batch, "joints_2d": seen})
    got = losses_in(model, batch, "project")["loss_projected"]
    want = losses_in(plain, as_label, "project")["loss_projected"]
    torch.testing.assert_close(got, want)


def test_joint_dropout_takes_whole_joints_in_training_only() -> None:
    torch.manual_seed(0)
    valid = torch.ones(4000, J, dtype=torch.bool)
    share = drop_joints(valid, 0.3).float().mean(0)
    assert (share - 0.7).abs().max() < 0.04
    assert drop_joints(valid, 0.0).all()
    model = tiny(joint_dropout=0.3)
    batch = make_batch(model)
    seen: list[Tensor] = []
    assert model.psi_c is not None
    model.psi_c.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    phase = next(p for p in model.phases() if p.name == "project")
    with in_phase(model, phase):
        torch.manual_seed(1)
        model.compute_loss(batch)
        torch.manual_seed(2)
        model.compute_loss(batch)
        model.eval()
        model.compute_loss(batch)
    one, two, still = (x.reshape(-1, J, 3) for x in seen)
    lost = (one == 0).all(-1)
    assert 0.15 < lost.float().mean() < 0.45
    assert torch.equal(lost, (one == 0).any(-1))
    assert not torch.equal(lost, (two == 0).all(-1))
    assert (still != 0).all(-1).float().mean() > 0.9
    torch.testing.assert_close(one[~lost], still[~lost])


def test_scaled_frames_take_their_2d_joints_along() -> None:
    model = tiny(scale=(0.5, 0.5))
    batch = make_batch(model)
    image, points = model.train()._scaled(batch["image"], batch["joints_2d"])
    middle = 15.5
    torch.testing.assert_close(points, (batch["joints_2d"] - middle) / 2 + middle)
    assert (image[..., 0, 0] - 0.5).abs().max() < 0.02  # grey beyond the picture
    assert model.eval()._scaled(batch["image"], points)[0] is batch["image"]


# ---- Algorithm 1 ---------------------------------------------------------------------------------


def test_four_steps_each_train_their_own_part() -> None:
    model = tiny()
    trained = {p.name: set(p.train) for p in model.phases()}
    assert list(trained) == ["pose2d", "lift", "project", "joint"]
    assert trained["pose2d"] == {"trunk.", "head.", "heatmap."}
    assert trained["lift"] == {"lift."}
    assert trained["project"] == {"psi_c.", "psi_p."}
    assert trained["joint"] == {"trunk.", "head.", "lift.", "psi_c.", "psi_p."}
    batch = make_batch(model)
    for phase in model.phases():
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        with in_phase(model, phase):
            optimizer = model.configure_optimizers()
            for _ in range(5):
                optimizer.zero_grad()
                model.compute_loss(batch)["loss"].backward()
                optimizer.step()
        for name, parameter in model.named_parameters():
            frozen = not name.startswith(phase.train) or "bias_hh" in name
            assert torch.equal(before[name], parameter) or not frozen, (phase.name, name)
        for prefix in phase.train:
            assert any(
                not torch.equal(before[n], p)
                for n, p in model.named_parameters() if n.startswith(prefix)
            )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"projector": "none"}, ["pose2d", "lift"]),
        ({"projector": "multitask"}, ["pose2d", "lift", "joint"]),
        ({"pose2d_weights": "x"}, ["lift", "project", "joint"]),
        ({"lift_weights": "x"}, ["project", "joint"]),
    ],
)
def test_steps_of_the_variants(changes: dict[str, Any], names: list[str]) -> None:
    model = tiny(**changes)
    assert [p.name for p in model.phases()] == names
    if "projector" in changes:
        assert model.psi_c is None
        assert model.correction == "off"
        assert not any("loss_proj" in k for k in losses_in(model, make_batch(model), names[-1]))
        with pytest.raises(UsageError, match="projector"):
            correct(model, make_batch(model))
    else:
        assert isinstance(model, SelfCorrecting)


def test_multitask_trains_both_heads_together() -> None:
    model = tiny(projector="multitask")
    found = losses_in(model, make_batch(model), "joint")
    assert set(found) == {"loss", "loss_2d", "loss_3d"}


def test_rates_of_the_steps_and_of_layers() -> None:
    model = tiny(lr=1e-3, joint_lr=1e-4, lr_factors={"lift.out.": 10.0}, bias_lr=2.0)
    assert [p.lr for p in model.phases()] == [None, None, None, 1e-4]
    optimizer = model.configure_optimizers()
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert optimizer.param_groups[0]["lr"] == 1e-3  # phases scale the others along
    assert rates[id(model.lift.out.weight)] == pytest.approx(1e-2)
    assert rates[id(model.lift.out.bias)] == pytest.approx(2e-2)
    assert rates[id(model.head.fc.bias)] == pytest.approx(2e-3)


# ---- 2D poses that the correction compares with --------------------------------------------------


def test_2d_is_in_sides_of_the_crop() -> None:
    model = tiny()
    px = torch.tensor([[-0.5, 31.5], [15.5, 0.0]])
    torch.testing.assert_close(model._from_px(px), torch.tensor([[0.0, 1.0], [0.5, 0.5 / 32]]))
    flat = torch.rand(2, 3, 2 * J)
    torch.testing.assert_close(model._from_px(model._to_px(flat)).flatten(-2), flat)


def test_the_true_2d_pose_as_target() -> None:
    model = tiny(pose2d="gt").eval()
    batch = make_batch(model)
    terms = model.correction_terms(batch)
    torch.testing.assert_close(terms.points, (batch["joints_2d"] + 0.5) / 32)
    assert torch.equal(terms.valid, batch["valid_2d"])
    head = tiny().eval().correction_terms(batch)
    torch.testing.assert_close(head.points * 32 - 0.5, head.prediction["pred_2d"])
    assert head.valid.all()


@pytest.mark.parametrize("kind", ["own_lstm", "hourglass"])
def test_another_2d_network_learns_and_is_compared_with(kind: Any) -> None:
    model = tiny(
        other2d=kind, pose2d="other", hourglass_width=12, hourglass_depth=1, pretrain="head"
    )
    batch = make_batch(model)
    phase = model.phases()[0]
    with in_phase(model, phase):
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 5e-3)
        curve = []
        for _ in range(20):
            optimizer.zero_grad()
            losses = model.compute_loss(batch)
            losses["loss"].backward()
            optimizer.step()
            curve.append(float(losses["loss_other2d"]))
    assert curve[-1] < 0.8 * curve[0]
    assert not any("other2d." in prefix for p in model.phases()[1:] for prefix in p.train)
    terms = model.eval().correction_terms(batch)
    assert terms.points.shape == (4, 3, J, 2)
    assert (terms.points * 32 - 0.5 - terms.prediction["pred_2d"]).abs().max() > 0.1


def test_hourglasses_of_any_size_read_in_px() -> None:
    net = HourglassPose(J, width=8, depth=3).eval()
    for size in (32, 44):
        points = net(torch.rand(2, 3, size, size))
        assert points.shape == (2, J, 2)
        assert points.min() >= -1
        assert points.max() <= size


# ---- in a trainer --------------------------------------------------------------------------------


def test_a_test_is_corrected_by_the_models_own_settings(tmp_path: Path) -> None:
    found = {}
    for setting in ("off", "lr=0.001,dead_zone=0,tau_mm=inf"):
        model = tiny(correction=setting)
        run = trainer(tmp_path / setting[:2], SelfCorrection())
        run.test(model, datamodule=_Memory(model), verbose=False)
        found[setting] = dict(run.callback_metrics)
    off, on = found.values()
    assert "test/correction_kept" not in off
    assert float(on["test/correction_kept"]) == 1.0
    assert float(on["test/correction_after_px"]) < float(on["test/correction_before_px"])
    assert abs(float(on["test/mpjpe_mm"]) - float(off["test/mpjpe_mm"])) > 0.1


def test_weights_of_the_first_steps_are_taken_over(tmp_path: Path) -> None:
    from zoo.checkpoint import save_weights

    source = tiny()
    source.zoo_name = "ssc"
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1)
    path = save_weights(source, tmp_path / "source.safetensors", half=False)
    model = tiny(lift_weights=str(path))
    data = _Memory(model)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=0)
    run.fit(model, datamodule=data)
    for name, value in model.state_dict().items():
        if name.startswith(("trunk.", "head.", "lift.")):
            assert torch.equal(value, source.state_dict()[name]), name
        elif name.startswith("psi_") and "weight" in name:
            assert not torch.equal(value, source.state_dict()[name]), name


def test_step_1_starts_from_the_trunk_of_a_pose_machine(tmp_path: Path) -> None:
    from zoo.checkpoint import read_stored, save_weights

    args = {**resolve_class(get_method("cpm")).tiny().hparams, "lift_in_loop": False}
    path = save_weights(create("cpm", **args), tmp_path / "machine.safetensors", half=False)
    given = read_stored(path).state
    model = tiny(machine_weights=str(path))
    assert [p.name for p in model.phases()] == ["pose2d", "lift", "project", "joint"]
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=0)
    run.fit(model, datamodule=_Memory(model))
    for name, value in model.trunk.state_dict().items():
        assert torch.equal(value, given[f"network.machine.trunk.{name}"]), name
    with pytest.raises(UsageError, match="not both"):
        tiny(machine_weights="cpm", pose2d_weights="x")


@pytest.mark.parametrize("clip", [None, 5.0])
def test_gradients_are_clipped_in_mixed_precision_too(tmp_path: Path, clip: float | None) -> None:
    model = tiny(lr=0.0, joint_lr=0.0)
    run = trainer(
        tmp_path, max_epochs=1, limit_train_batches=1, precision="bf16-mixed",
        gradient_clip_val=clip,
    )  # fmt: skip
    run.fit(model, datamodule=_Memory(model))
    assert run.global_step == 1
    assert bool(run.optimizers[0].param_groups[0]["fused"]) is (clip is None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"projector": "scc"}, "did you mean ssc"), ({"frames": 0}, "frames"),
        ({"temporal": False, "state": "sequence"}, "state"), ({"reset_every": 2}, "divide"),
        ({"pose2d": "other"}, "other2d"),
        ({"state": "sequence", "second_lstm": "backward"}, "sequence"),
        ({"joint_dropout": 1.0}, "joint_dropout"), ({"scale": [1.1, 0.9]}, "scale"),
        ({"pose2d": "hg"}, "pose2d"), ({"image_size": 30}, "multiple of 4"),
        ({"second_lstm": "both"}, "second_lstm"), ({"proj_target": "truth"}, "proj_target"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tiny(**arguments)


# ---- recipes, sweep, table -----------------------------------------------------------------------


def settings_of(path: str) -> dict[str, Any]:
    return cast(dict[str, Any], yaml.safe_load(resource(path).read_text(encoding="utf-8")))


def test_the_release_recipe_has_the_codes_values() -> None:
    with torch.device("meta"):
        model = SSC(**settings_of("zoo/recipes/ssc/release.yaml")["model"])
    assert model.lift.backward
    assert model.lift.adaption.in_features == 12_800
    assert count(model.lift.adaption) == 13_927_680
    assert not model.lift.adaption.relu
    assert [p.lr for p in model.phases()] == [None, None, None, 1e-5]


def test_sweep_parameters_are_arguments_with_valid_values() -> None:
    sweep = settings_of("zoo/sweeps/ssc.yaml")
    for key, choice in sweep["parameters"].items():
        name = key.removeprefix("model.")
        for value in choice.get("values", [choice.get("min"), choice.get("max")]):
            tiny(**{name: value})


def test_every_row_of_table_5_is_a_model() -> None:
    from zoo.reproduce.table import read_table

    table = read_table("ssc-table5")
    names = {row.name for row in table.rows}
    assert {"ours", "no-ssc", "no-ssc-test", "no-projection", "no-temporal", "single-frame",
            "no-external", "hg", "gt-2d"} <= names  # fmt: skip
    full = next(step for step in table.shared if step.name == "full")
    for row in table.rows:
        trained = full.model if row.test_of else row.model
        model = tiny(**{**trained, "hourglass_width": 8})
        assert model.total_epochs == row.epochs == table.rows[0].epochs, row.name
        tested = tiny(**{**trained, "hourglass_width": 8, **row.model})
        tested.load_state_dict(model.state_dict())
        assert row.paper["mpjpe_mm"] > 50
