"""Park 2016: sizes, crops, targets, losses, scale recovery and schedules against the paper."""

from __future__ import annotations

import json
import math
from typing import Any, cast

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from zoo.batch import PoseBatch
from zoo.errors import DataError, UsageError
from zoo.layers import MultiRootRegression
from zoo.methods.park import (
    ADULT_TORSO_MM,
    ROOTS,
    TORSO_BONES,
    Park,
    bone_lengths,
    crop_batch,
    unit_shape,
)
from zoo.registry import get_method, resource
from zoo.skeleton import H36M_17
from zoo.testing import random_batch, random_poses

BASELINE = {"link_2d": False, "roots": ["pelvis"]}


def make_batch(model: Park, batch_size: int = 4, seed: int = 0) -> PoseBatch:
    """Everything annotated, unlike that of ``random_batch``."""
    batch = random_batch(model.input_spec, model.skeleton, batch_size, seed)
    rng = torch.Generator().manual_seed(seed)
    shape = batch["joints_3d"].shape
    size = model.input_spec.image_size
    joints = 300 * torch.randn(shape, generator=rng)
    batch["joints_3d"] = joints - joints[..., :1, :]
    batch["joints_2d"] = size * (0.15 + 0.7 * torch.rand(*shape[:3], 2, generator=rng))
    batch["valid_2d"] = torch.ones(shape[:3], dtype=torch.bool)
    batch["valid_3d"] = torch.ones(shape[:3], dtype=torch.bool)
    return batch


def tiny(**changes: Any) -> Park:
    torch.manual_seed(0)
    return Park(**{**dict(Park.tiny().hparams), **changes})


def random_rotation(seed: int) -> Tensor:
    matrix = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed))
    q, _ = torch.linalg.qr(matrix)
    return q * torch.linalg.det(q)


# ---- the network of the paper -------------------------------------------------------------------


def test_trunk_sizes_are_those_of_zfnet():
    with torch.device("meta"):
        model = Park()
    trunk = model.network.trunk
    assert trunk.map_sizes == [110, 55, 26, 13, 13, 13, 13, 6]
    sides, image = [], torch.empty(1, 3, 225, 225, device="meta")
    for layer in trunk.layers:
        image = layer(image)
        if isinstance(layer, torch.nn.Conv2d | torch.nn.MaxPool2d):
            sides.append(image.shape[-1])
    assert sides == trunk.map_sizes
    assert trunk.num_features == image.flatten(1).shape[1] == 6912


@pytest.mark.parametrize(
    ("arguments", "parameters", "macs_millions"),
    [
        (BASELINE, 46.8e6, 447),
        ({"link_2d": False}, 68.3e6, 469),
        ({"roots": ["pelvis"]}, 55.7e6, 456),
        ({"roots": ["pelvis"], "probs_fc": 2048}, 59.9e6, 461),
        ({}, 121.8e6, 522.5),
        ({"probs_fc": 2048}, 102_399_200, 503),
    ],
    ids=["baseline", "multi-reg", "2d-cls", "2d-cls-revised", "full", "full-revised"],
)
def test_sizes_of_the_rows_of_table_2(arguments, parameters, macs_millions):
    with torch.device("meta"):
        model = Park(**arguments).eval()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=1e-3)
    with FlopCounterMode(display=False) as counter:
        output = model.network(torch.empty(1, 3, 225, 225, device="meta"))
    assert counter.get_total_flops() / 2e6 == pytest.approx(macs_millions, abs=0.6)
    roots = len(arguments.get("roots", ROOTS))
    assert output.logits_2d.shape == (1, 17, 256)
    assert output.relative_3d.shape == (1, roots, 16, 3)


def test_revised_version_has_exactly_these_parameters():
    with torch.device("meta"):
        model = Park(probs_fc=2048)
    assert sum(p.numel() for p in model.parameters()) == 102_399_200


def test_batch_norm_and_dropout_stand_behind_every_layer_but_the_outputs():
    network = tiny().network
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    maps = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    hidden = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    dropouts = [m for m in network.modules() if isinstance(m, torch.nn.Dropout)]
    linear = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    assert len(convolutions) == len(maps) == 5
    assert len(hidden) == len(dropouts) == 3 + 6  # fc1_2D, fc2_2D, fc1_3D, six fc2_3D
    assert {d.p for d in dropouts} == {0.3}
    assert len(linear) == len(hidden) + 1 + 6  # one 2D and six 3D outputs
    assert sum(m.bias is not None for m in linear) == 1 + 6


def test_roots_reach_every_joint_but_the_top_of_the_head():
    model = tiny()
    assert model.network.regressor.roots == (0, 2, 5, 8, 12, 15)
    near = set(model.network.regressor.roots)
    for child, parent in H36M_17.bones:
        if child in model.network.regressor.roots or parent in model.network.regressor.roots:
            near |= {child, parent}
    assert {H36M_17.joints[j] for j in set(range(17)) - near} == {"head_top"}
    assert tuple(H36M_17.flip[r] for r in (0, 5, 2, 8, 15, 12)) == model.network.regressor.roots


def test_roots_by_index_or_name_are_the_same():
    assert tiny(roots=[0, "thorax"]).network.regressor.roots == (0, 8)


# ---- the link from 2D to 3D ---------------------------------------------------------------------


def outputs_before_and_after_changing_the_2d_branch(model: Park) -> tuple[Tensor, Tensor]:
    model.eval()
    image = torch.rand(3, 3, 49, 49)
    before = model.network(image).relative_3d
    with torch.no_grad():
        for part in (model.network.fc1_2d, model.network.fc2_2d, model.network.classifier):
            for parameter in part.parameters():
                parameter.add_(torch.randn_like(parameter))
    return before, model.network(image).relative_3d


def test_without_the_link_3d_is_deaf_to_the_2d_branch():
    before, after = outputs_before_and_after_changing_the_2d_branch(tiny(link_2d=False))
    assert torch.equal(before, after)


@pytest.mark.parametrize("probs_fc", [0, 12])
def test_with_the_link_3d_hears_the_2d_branch(probs_fc):
    model = tiny(probs_fc=probs_fc)
    before, after = outputs_before_and_after_changing_the_2d_branch(model)
    assert (before - after).abs().max() > 1e-4
    assert isinstance(model.network.fc_probs_2d, torch.nn.Identity) == (probs_fc == 0)


@pytest.mark.parametrize("probs_fc", [0, 12])
@pytest.mark.parametrize("detach", [True, False])
def test_detached_probabilities_keep_the_3d_loss_out_of_the_2d_branch(detach, probs_fc):
    model = tiny(detach_probs=detach, lambda_2d=0.0, probs_fc=probs_fc)
    model.compute_loss(make_batch(model))["loss"].backward()
    network = model.network
    for part in (network.fc1_2d, network.fc2_2d, network.classifier):
        moved = max(p.grad.abs().max().item() for p in part.parameters())
        assert (moved == 0) == detach
    for part in (network.trunk, network.fc1_3d):
        assert all(p.grad.abs().max() > 0 for p in part.parameters() if p.ndim > 1)


def test_gain_scales_the_probabilities_at_the_link():
    seen: list[Tensor] = []
    for gain in (1.0, 16.0):
        model = tiny(probs_gain=gain).eval()
        fc = model.network.regressor.branches[0][0][0]
        fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model.network(torch.full((2, 3, 49, 49), 0.3))
    one, sixteen = (features[:, -17 * 16 :] for features in seen)
    torch.testing.assert_close(one.view(2, 17, 16).sum(-1), torch.ones(2, 17))
    torch.testing.assert_close(16 * one, sixteen)
    torch.testing.assert_close(seen[0][:, :16], seen[1][:, :16])


# ---- crops --------------------------------------------------------------------------------------


def position_image(batch: int, frames: int, size: int) -> Tensor:
    """Every pixel says where it is: channels x, y and sample."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    image = torch.stack([x, y, torch.zeros_like(x)]).float().expand(batch, frames, 3, size, size)
    image = image.clone()
    image[:, :, 2] = torch.arange(batch).view(-1, 1, 1, 1).float()
    return image


def crop_input(batch: int = 64, frames: int = 2, size: int = 250) -> PoseBatch:
    rng = torch.Generator().manual_seed(0)
    return PoseBatch(
        image=position_image(batch, frames, size),
        joints_2d=250 * torch.rand(batch, frames, 17, 2, generator=rng),
        joints_3d=torch.randn(batch, frames, 17, 3, generator=rng),
        intrinsics=torch.tensor([[300.0, 0, 124], [0, 310, 120], [0, 0, 1]]).expand(
            batch, frames, 3, 3
        ),
        crop_to_image=torch.tensor([[1.5, 0.2, 40], [-0.2, 1.5, 60]]).expand(batch, frames, 2, 3),
    )


@pytest.mark.parametrize("random", [True, False])
def test_labels_and_camera_move_with_the_crop(random):
    batch = crop_input()
    cut, offset = crop_batch(batch, 225, random)
    assert cut["image"].shape == (64, 2, 3, 225, 225)
    corner = cut["image"][..., 0, 0]
    assert torch.equal(corner[:, 0, :2], offset.float())
    assert torch.equal(corner[:, 0], corner[:, 1])  # all frames of a clip alike
    assert torch.equal(corner[:, 0, 2], torch.arange(64.0))  # and every sample its own
    assert torch.equal(cut["image"][..., -1, -1][:, 0, :2], offset + 224.0)
    shift = offset[:, None, None].float()
    torch.testing.assert_close(batch["joints_2d"] - cut["joints_2d"], shift.expand(64, 2, 17, 2))
    assert torch.equal(cut["joints_3d"], batch["joints_3d"])
    # A camera point and a source pixel land where they did before.
    torch.testing.assert_close(
        batch["intrinsics"][..., :2, 2] - cut["intrinsics"][..., :2, 2],
        shift[:, :, 0].expand(64, 2, 2),
    )
    assert torch.equal(cut["intrinsics"][..., :2, :2], batch["intrinsics"][..., :2, :2])
    for key_batch in (batch, cut):
        affine = key_batch["crop_to_image"]
        points = key_batch["joints_2d"] @ affine[..., :2].mT + affine[..., None, :, 2]
        if key_batch is batch:
            source = points
    torch.testing.assert_close(points, source, atol=1e-3, rtol=0)


def test_crops_are_random_in_training_and_central_in_evaluation():
    torch.manual_seed(0)
    _, offset = crop_batch(crop_input(3000, 1, size=31), 6, random=True)  # 26 x 26 places, too
    counts = torch.stack([axis.bincount(minlength=26) for axis in offset.T])
    assert counts.shape == (2, 26)
    assert (counts - 3000 / 26).abs().max() < 5 * math.sqrt(3000 / 26)
    assert len({tuple(o) for o in offset.tolist()}) > 600
    _, offset = crop_batch(crop_input(3, 1), 225, random=False)
    assert (offset == 12).all()


def test_method_crops_by_its_mode():
    model = tiny()
    batch = make_batch(model)
    model.eval()
    first, second = model(batch), model(batch)
    assert torch.equal(first["pred_3d"], second["pred_3d"])
    model.train()
    model.apply(lambda m: m.eval() if isinstance(m, torch.nn.Dropout) else None)
    torch.manual_seed(1)
    first = model(batch)
    second = model(batch)
    assert not torch.equal(first["pred_3d"], second["pred_3d"])


def test_2d_predictions_are_px_of_the_whole_image():
    model = tiny().eval()
    classifier = model.network.classifier
    with torch.no_grad():
        classifier.out.weight.zero_()
        bias = torch.zeros(17, 4, 4)
        bias[:, 2, 1] = 40.0  # row 2, column 1 of 49 px, whose corner is (2, 2) of 54 px
        classifier.out.bias.copy_(bias.flatten())
    expected = torch.tensor([1.5 * 12.25 - 0.5 + 2, 2.5 * 12.25 - 0.5 + 2])
    pred = model(make_batch(model))["pred_2d"]
    torch.testing.assert_close(pred, expected.expand_as(pred))


# ---- targets and losses -------------------------------------------------------------------------


def test_targets_have_mean_zero_and_norm_one():
    pose = 400 * torch.randn(5, 17, 3) + 1000
    shape, valid = unit_shape(pose, torch.ones(5, 17, dtype=torch.bool))
    torch.testing.assert_close(shape.mean(dim=1), torch.zeros(5, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(shape.norm(dim=(1, 2)), torch.ones(5))
    assert valid.all()
    again, _ = unit_shape(3.7 * pose - 500, valid)
    torch.testing.assert_close(again, shape, atol=1e-5, rtol=0)


def test_targets_of_incomplete_poses():
    pose = 400 * torch.randn(4, 17, 3)
    valid = torch.ones(4, 17, dtype=torch.bool)
    valid[0, [3, 4]] = False
    valid[1] = False
    valid[2, 1:] = False  # one joint has no extent
    shape, usable = unit_shape(pose.masked_fill(~valid[..., None], math.nan), valid)
    assert torch.isfinite(shape).all()
    assert usable[0].tolist() == valid[0].tolist()
    assert not usable[1:3].any()
    kept = shape[0][valid[0]]
    torch.testing.assert_close(kept.mean(dim=0), torch.zeros(3), atol=1e-6, rtol=0)
    # As large as the same joints of a whole pose of norm 1 are on average.
    assert kept.norm().item() == pytest.approx(math.sqrt(15 / 17), rel=1e-5)
    assert shape[3].norm().item() == pytest.approx(1, rel=1e-5)


def test_loss_is_the_weighted_sum_of_equation_6():
    model = tiny(dropout=0.0, lambda_2d=0.3, lambda_3d=0.7).eval()
    batch = make_batch(model, 3)
    losses = model.compute_loss(batch)
    torch.testing.assert_close(losses["loss"], 0.3 * losses["loss_2d"] + 0.7 * losses["loss_3d"])

    cut, _ = crop_batch(batch, 49, random=False)
    with torch.no_grad():
        output = model.network(cut["image"][:, 0])
    classifier = model.network.classifier
    points = cut["joints_2d"][:, 0]
    entropies = -(classifier.targets(points) * output.logits_2d.log_softmax(-1)).sum(-1)
    expected_2d = (entropies * classifier.inside(points)).sum() / 3
    torch.testing.assert_close(losses["loss_2d"], expected_2d)
    pose = batch["joints_3d"][:, 0]
    pose = pose - pose.mean(dim=1, keepdim=True)
    pose = pose / pose.norm(dim=(1, 2), keepdim=True)
    expected_3d = torch.tensor(0.0)
    for branch, root in enumerate((0, 2, 5, 8, 12, 15)):
        others = [j for j in range(17) if j != root]
        error = output.relative_3d[:, branch] - (pose[:, others] - pose[:, [root]])
        expected_3d += error.square().sum() / 3
    torch.testing.assert_close(losses["loss_3d"], expected_3d)


def test_a_sample_without_labels_adds_and_dilutes_nothing():
    model = tiny(dropout=0.0).eval()  # batch norm would mix the samples
    batch = make_batch(model, 4)
    alone = model.compute_loss(cast(PoseBatch, {k: v[:2] for k, v in batch.items()}))
    for key in ("valid_3d", "valid_2d"):
        cast(dict[str, Tensor], batch)[key][2:] = False
    batch["joints_3d"][2:] = math.nan
    batch["joints_2d"][2:] = math.nan
    together = model.compute_loss(batch)
    for key, value in alone.items():
        torch.testing.assert_close(together[key], value)


def test_2d_only_samples_train_the_2d_branch_alone():
    model = tiny(link_2d=False)
    batch = make_batch(model)
    batch["valid_3d"][:] = False
    batch["joints_3d"][:] = math.nan
    losses = model.compute_loss(batch)
    losses["loss"].backward()
    assert losses["loss_3d"] == 0
    assert all((p.grad == 0).all() for p in model.network.regressor.parameters())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.network.classifier.out.weight.grad.abs().max() > 0


def test_clips_are_folded_frame_by_frame():
    model = tiny().eval()
    batch = make_batch(model, 6)
    clip = cast(
        PoseBatch,
        {k: v.reshape(3, 2, *v.shape[2:]) if v.ndim > 2 and k != "world_to_camera" else v[:3]
         for k, v in batch.items()},
    )  # fmt: skip
    single, folded = model(batch), model(clip)
    for key, value in single.items():
        torch.testing.assert_close(folded[key], value.reshape(3, 2, *value.shape[2:]))
    torch.testing.assert_close(model.compute_loss(clip), model.compute_loss(batch))


# ---- scale --------------------------------------------------------------------------------------


def fitted(model: Park) -> tuple[Park, PoseBatch]:
    poses = random_poses(model.input_spec, model.skeleton)
    model.fit_statistics(poses)
    return model, poses


def test_statistics_are_mean_torso_lengths_of_annotated_bones():
    model = tiny()
    poses = random_poses(model.input_spec, model.skeleton)
    poses["valid_3d"][::3, :, H36M_17.index("spine")] = False
    poses["joints_3d"][::3, :, H36M_17.index("spine")] = math.nan
    model.fit_statistics(poses)
    for (one, other), mean in zip(TORSO_BONES, model.torso_mm, strict=True):
        a, b = H36M_17.index(one), H36M_17.index(other)
        lengths = (poses["joints_3d"][..., a, :] - poses["joints_3d"][..., b, :]).norm(dim=-1)
        known = poses["valid_3d"][..., a] & poses["valid_3d"][..., b]
        assert mean.item() == pytest.approx(lengths[known].mean().item(), rel=1e-5)
    assert bool(model.statistics_fitted)


def test_statistics_need_every_torso_bone():
    model = tiny()
    poses = random_poses(model.input_spec, model.skeleton)
    poses["valid_3d"][:, :, H36M_17.index("thorax")] = False
    with pytest.raises(DataError, match="spine-thorax, thorax-l_shoulder, thorax-r_shoulder"):
        model.fit_statistics(poses)


def predict_shape(model: Park, shape: Tensor) -> Tensor:
    """``pred_3d`` of a network whose branches all say ``shape`` (17, 3)."""
    regressor = model.network.regressor
    target = regressor.targets(shape[None])[0]
    with torch.no_grad():
        for branch, relative in zip(regressor.branches, target, strict=True):
            branch[1].weight.zero_()
            branch[1].bias.copy_(relative.flatten())
    return model.eval()(make_batch(model, 2))["pred_3d"][0, 0].detach()


@pytest.mark.parametrize("seed", range(3))
def test_scale_recovery_is_exact_for_a_scaled_and_turned_mean_skeleton(seed):
    model = tiny()
    pose = random_poses(model.input_spec, model.skeleton)["joints_3d"][seed, 0]
    lengths = bone_lengths(pose, model.torso_bones)
    model.torso_mm.copy_(lengths)
    pelvis = pose - pose[:1]
    for factor in (0.001, 0.01, 5.0):
        turned = pelvis @ random_rotation(seed).T
        pred = predict_shape(model, factor * turned + 3 * factor)
        torch.testing.assert_close(pred, turned, atol=0.05, rtol=0)
        assert (pred[0] == 0).all()


def test_scale_ignores_the_limbs_and_follows_the_training_mean():
    model, _ = fitted(tiny())
    shape = torch.randn(17, 3)
    before = predict_shape(model, shape)
    stretched = shape.clone()
    wrist = H36M_17.index("l_wrist")
    stretched[wrist] *= 3
    after = predict_shape(model, stretched)
    others = [j for j in range(17) if j != wrist]
    torch.testing.assert_close(after[others], before[others], atol=1e-2, rtol=1e-4)
    model.torso_mm.mul_(1.1)
    torch.testing.assert_close(predict_shape(model, shape), 1.1 * before, atol=1e-2, rtol=1e-4)


def test_untrained_scale_is_an_adults():
    model = tiny().eval()
    assert not bool(model.statistics_fitted)
    pred = model(make_batch(model))["pred_3d"]
    torso = bone_lengths(pred, model.torso_bones).sum(-1)
    torch.testing.assert_close(torso, torch.full_like(torso, sum(ADULT_TORSO_MM)))


def test_one_root_has_no_spread():
    assert "std_3d" not in tiny(roots=["pelvis"]).eval()(make_batch(tiny()))
    assert (tiny().eval()(make_batch(tiny()))["std_3d"] > 0).all()


# ---- schedules ----------------------------------------------------------------------------------


class _Epoch:
    """Stands in for the trainer: knows the epoch only."""

    def __init__(self, epoch: int) -> None:
        self.current_epoch = epoch


@pytest.mark.parametrize(("epoch", "weight"), [(0, 0.1), (15, 0.1), (16, 0.01), (27, 0.01)])
def test_2d_weight_falls_at_epoch_16(epoch, weight):
    model = tiny(dropout=0.0).eval()
    model._trainer = cast(Any, _Epoch(epoch))
    assert model.lambda_2d == weight
    losses = model.compute_loss(make_batch(model))
    torch.testing.assert_close(losses["loss"], weight * losses["loss_2d"] + 0.5 * losses["loss_3d"])


def test_learning_rate_is_halved_every_four_epochs():
    parts = tiny().configure_optimizers()
    rates = []
    for _ in range(28):
        rates.append(parts["optimizer"].param_groups[0]["lr"])
        parts["optimizer"].step()
        parts["lr_scheduler"]["scheduler"].step()
    expected = {0: 0.01, 3: 0.01, 4: 0.005, 16: 6.25e-4, 27: 1.5625e-4}
    assert {epoch: rates[epoch] for epoch in expected} == pytest.approx(expected)
    assert parts["lr_scheduler"]["interval"] == "epoch"


def test_weight_decay_is_for_weights_only():
    model = tiny()
    optimizer = model.configure_optimizers()["optimizer"]
    decayed, free = optimizer.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.001, 0.0)
    assert {g["momentum"] for g in optimizer.param_groups} == {0.9}
    names = {id(p): n for n, p in model.named_parameters()}
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    matrices = (torch.nn.Conv2d, torch.nn.Linear)
    expected = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, matrices)}
    assert {names[id(p)] for p in decayed["params"]} == expected


def test_schedule_lengths_are_arguments():
    assert Park.tiny().total_epochs == 28
    assert tiny(epochs=3).total_epochs == 3


# ---- training -----------------------------------------------------------------------------------


def overfit(model: Park, batch: PoseBatch, steps: int) -> None:
    optimizer = model.configure_optimizers()["optimizer"]
    for step in range(steps):
        if step == steps * 3 // 4:
            for group in optimizer.param_groups:
                group["lr"] /= 10
        optimizer.zero_grad()
        model.compute_loss(batch)["loss"].backward()
        optimizer.step()


def test_overfits_a_few_pictures():
    """All mechanisms together can say the right answer: 2D cells and unit-norm 3D."""
    model = tiny(
        crop_size=49, image_size=49, channels=(8, 16, 16, 16, 16), fc=128, dropout=0.0,
        weight_decay=0.0, lr=0.1,
    )  # fmt: skip
    batch = make_batch(model, 64)
    # Well inside their cells: at a border two cells want the same probability.
    cells = torch.randint(0, 4, (64, 1, 17, 2)) + 0.3 + 0.4 * torch.rand(64, 1, 17, 2)
    batch["joints_2d"] = cells * 49 / 4 - 0.5
    overfit(model, batch, 250)
    with torch.no_grad():
        losses = model.compute_loss(batch)
        output = model.network(batch["image"][:, 0])
    assert losses["loss_3d"] < 1e-3
    classifier = model.network.classifier
    targets = classifier.targets(batch["joints_2d"][:, 0])
    assert torch.equal(output.logits_2d.argmax(-1), targets.argmax(-1))


def test_curvature_behind_the_stated_bound_of_the_learning_rate():
    """Gradient descent with momentum m is stable below 2 (1 + m) / curvature."""
    width = 512
    branch = MultiRootRegression(64, 17, [0], hidden=width, dropout=0.0).branches[0]
    hidden = branch[0](torch.randn(2000, 64)).detach()
    # Second derivative of lambda_3d * mean ||W h - t||^2 by any row of W, lambda_3d = 0.5.
    curvature = torch.linalg.eigvalsh(2 * 0.5 * hidden.T @ hidden / 2000).max().item()
    assert curvature == pytest.approx(2 * 0.16 * 0.5 * width, rel=0.1)


# ---- alternatives, arguments and recipes --------------------------------------------------------


def test_timm_backbone_instead_of_the_five_convolutions():
    model = tiny(backbone="resnet10t", image_size=70, crop_size=64, backbone_pool=2)
    assert model.network.trunk.num_features == 512 * 4
    batch = make_batch(model, 3)
    model.compute_loss(batch)["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval()(batch)["pred_3d"].shape == (3, 1, 17, 3)


def test_adamw_for_backbones_that_want_it():
    parts = tiny(optimizer="adamw").configure_optimizers()
    assert isinstance(parts["optimizer"], torch.optim.AdamW)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"crop_size": 60}, "crop_size 60 is larger than image_size 54"),
        ({"crop_size": 20}, "crop_size 20 is too small"),
        ({"roots": ["pelvsi"]}, "did you mean pelvis"),
        ({"roots": [17]}, "0 to 16"),
        ({"channels": [4, 8]}, "five numbers"),
        ({"optimizer": "sdg"}, "did you mean sgd"),
        ({"soft_labels": "nearest"}, "nearest4"),
        ({"backbone": "resnte18"}, "did you mean resnet18"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(UsageError, match=words):
        tiny(**arguments)


def test_wrong_batches_are_named():
    model = tiny()
    batch = make_batch(model)
    with pytest.raises(DataError, match="must be 54 x 54"):
        model({**batch, "image": batch["image"][..., :50, :]})
    with pytest.raises(DataError, match="no 'image'"):
        model(PoseBatch(joints_2d=batch["joints_2d"]))
    with pytest.raises(UsageError, match="batch norm needs two"):
        model.compute_loss(make_batch(model, 1))


def test_small_recipe_changes_sizes_and_rates_only():
    recipes = {
        tag: yaml.safe_load(resource(path).read_text(encoding="utf-8"))
        for tag, path in get_method("park").recipes.items()
    }
    small, paper = recipes["small"], recipes["paper"]
    sizes = {"image_size", "crop_size", "channels", "strides", "fc", "grid"}
    rates = {"lr", "lr_halve_every", "epochs", "lambda_switch", "dropout"}  # narrow layers: less
    assert set(small["model"]) <= sizes | rates
    assert not paper.get("model")
    for key in ("batch_size", "pca_color", "color_jitter", "flip"):
        assert small["data"][key] == paper["data"][key]
    model = Park(**small["model"])
    assert model.network.trunk.map_sizes[-1] >= 4
    assert model.input_spec.image_size == small["model"]["image_size"]


def test_sweep_parameters_are_arguments_with_valid_values(tmp_path):
    sweep = yaml.safe_load(resource("zoo/sweeps/park.yaml").read_text(encoding="utf-8"))
    assert sweep["metric"] == {"name": "val/mpjpe_mm", "goal": "minimize"}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Park, "model")
    for name, spec in sweep["parameters"].items():
        for value in spec.get("values", [spec.get("min"), spec.get("max")]):
            chosen = tmp_path / "args.json"  # as the agent's ${args_json_file} has it
            chosen.write_text(json.dumps({name: value}), encoding="utf-8")
            model = parser.parse_args(["--config", str(chosen)]).model
            assert model[name.removeprefix("model.")] == value
            with torch.device("meta"):
                Park(**{**dict(Park.tiny().hparams), name.removeprefix("model."): value})
