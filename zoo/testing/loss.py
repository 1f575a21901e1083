"""Checks of ``compute_loss`` and its gradients."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from zoo.base import PoseModule
from zoo.batch import PoseBatch
from zoo.testing.helpers import (
    Factory,
    active_phases,
    backward,
    build,
    in_phase,
    predicted,
    replaced,
    rules,
    same_prediction,
    seeded_losses,
    spoilt_joints,
    step_against_gradient,
    tensors,
    training_batch,
    without_joints,
)

__all__ = [
    "check_gradients",
    "check_invalid_joints",
    "check_learns",
    "check_loss",
    "check_nothing_valid",
    "check_occluded_joints",
    "check_two_d_only",
]


def check_loss(factory: Factory) -> None:
    """``compute_loss`` returns finite scalars with ``loss``; the same seed gives the same loss."""
    model, twin = build(factory), build(factory)
    must = rules(model)
    batch = training_batch(model)
    for phase, same in zip(active_phases(model), active_phases(twin), strict=True):
        with in_phase(model, phase), in_phase(twin, same):
            losses, again = seeded_losses(model, batch), seeded_losses(twin, batch)
        where = f"in phase {phase.name!r}"
        must(isinstance(losses, dict), f"compute_loss returns no dict {where}")
        must("loss" in losses, f"compute_loss returns no 'loss' {where}")
        for name, value in losses.items():
            must(
                isinstance(value, Tensor) and value.ndim == 0,
                f"compute_loss()[{name!r}] is no scalar tensor {where}",
            )
            must(value.isfinite(), f"compute_loss()[{name!r}] is {value.item()} {where}")
            must(
                torch.equal(value, again[name]),
                f"compute_loss()[{name!r}] differs between two runs of the same seed {where}",
            )


def check_gradients(factory: Factory) -> None:
    """Every parameter gets a finite gradient in the phase that trains it, and not always zero."""
    model = build(factory)
    must = rules(model)
    batches = [training_batch(model, seed=seed) for seed in range(3)]
    alive: set[str] = set()
    for phase in active_phases(model):
        with in_phase(model, phase) as trained:
            for batch in batches:
                _, gradients = backward(model, batch)
                for name in trained:
                    gradient = gradients[name]
                    must(
                        gradient is not None,
                        f"{name} gets no gradient in phase {phase.name!r}, which trains it",
                    )
                    assert gradient is not None
                    must(
                        gradient.isfinite().all(),
                        f"the gradient of {name} is not finite in phase {phase.name!r}",
                    )
                    if bool((gradient != 0).any()):
                        alive.add(name)
                # A small step, because a last layer may start at zero and block the others.
                step_against_gradient(model)
    dead = [n for n, p in model.named_parameters() if p.requires_grad and n not in alive]
    must(not dead, f"the gradient of {', '.join(dead[:3])} is always zero")


def check_invalid_joints(factory: Factory) -> None:
    """Joints that are not valid change neither prediction nor loss nor gradient."""
    model = build(factory)
    must = rules(model)
    batch = training_batch(model)
    spoilt = spoilt_joints(batch)
    must(
        same_prediction(predicted(model, batch), predicted(model, spoilt)),
        "the prediction depends on 2D joints with valid_2d false",
    )
    for phase in active_phases(model):
        with in_phase(model, phase) as trained:
            state = {k: v.clone() for k, v in model.state_dict().items()}
            loss, gradients = backward(model, batch)
            gradients = {k: None if g is None else g.clone() for k, g in gradients.items()}
            model.load_state_dict(state)  # running means of the first pass
            loss_2, gradients_2 = backward(model, spoilt)
        must(
            torch.equal(loss, loss_2),
            f"joints that are not valid change the loss in phase {phase.name!r}: "
            f"{loss.item():.6g} becomes {loss_2.item():.6g} (mask by torch.where or indexing)",
        )
        for name in trained:
            one, two = gradients[name], gradients_2[name]
            must(
                one is two or (one is not None and two is not None and torch.equal(one, two)),
                f"joints that are not valid change the gradient of {name}",
            )


def check_occluded_joints(factory: Factory) -> None:
    """Joints that are annotated but occluded carry loss."""
    model = build(factory)
    must = rules(model)
    batch = training_batch(model)
    batch["occluded"] = batch["valid_2d"] | batch["valid_3d"]
    seen = replaced(batch, occluded=torch.zeros_like(batch["occluded"]))
    other_pose = batch["valid_3d"][..., None].float()
    other_pose[:, :, model.skeleton.index(model.skeleton.root)] = 0  # the pelvis is the origin
    moved = replaced(batch, joints_3d=batch["joints_3d"] + 150 * other_pose)
    if model.input_spec.kind == "image":
        moved["joints_2d"] = batch["joints_2d"] + model.input_spec.image_size / 4
    sensitive = False
    for phase in active_phases(model):
        with in_phase(model, phase):
            state = {k: v.clone() for k, v in model.state_dict().items()}
            values = []
            for variant in (batch, seen, moved):
                values.append(seeded_losses(model, variant)["loss"].detach())
                model.load_state_dict(state)
        must(
            torch.equal(values[0], values[1]),
            f"the loss depends on 'occluded' in phase {phase.name!r}; only valid_2d and valid_3d "
            "decide what carries loss",
        )
        sensitive = sensitive or not torch.equal(values[0], values[2])
    must(sensitive, "the loss does not depend on annotated joints that are occluded")


def check_two_d_only(factory: Factory) -> None:
    """A batch of 2D-only samples trains without NaN, as does one mixed with 3D samples."""
    model = build(factory)
    batch = training_batch(model)
    only = replaced(
        batch,
        valid_3d=torch.zeros_like(batch["valid_3d"]),
        joints_3d=torch.zeros_like(batch["joints_3d"]),
        root_3d=torch.zeros_like(batch["root_3d"]),
    )
    _check_trains(model, only, "with 2D-only samples")


def check_nothing_valid(factory: Factory) -> None:
    """Batches without any valid joint, alone or beside others, give finite loss and gradient."""
    model = build(factory)
    must = rules(model)
    batch = training_batch(model)
    empty = without_joints(batch)
    for key, value in tensors(predicted(model, empty)).items():
        must(value.isfinite().all(), f"{key} is not finite where no joint is valid")
    _check_trains(model, empty, "where no joint is valid")
    half = {
        key: torch.cat((cast(Tensor, value)[:2], cast(Tensor, empty[key])[2:]))  # type: ignore[literal-required]
        for key, value in batch.items()
    }
    _check_trains(model, cast(PoseBatch, half), "where half of the samples have no valid joint")


def _check_trains(model: PoseModule, batch: PoseBatch, when: str) -> None:
    must = rules(model)
    for phase in active_phases(model):
        with in_phase(model, phase):
            loss, gradients = backward(model, batch)
        must(loss.isfinite(), f"the loss is {loss.item()} {when}, phase {phase.name!r}")
        for name, gradient in gradients.items():
            must(
                gradient is None or gradient.isfinite().all(),
                f"the gradient of {name} is not finite {when}, phase {phase.name!r}",
            )


def check_learns(factory: Factory, steps: int = 40) -> None:
    """Some steps of Adam on one batch lower the loss of each phase; predictions are in mm."""
    model = build(factory)
    must = rules(model)
    batch = training_batch(model)
    for phase in active_phases(model):
        with in_phase(model, phase):
            optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), 3e-3)
            curve = []
            for step in range(steps):
                optimizer.zero_grad(set_to_none=True)
                loss = seeded_losses(model, batch, seed=step)["loss"]
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                curve.append(float(loss.detach()))
        start, end = sum(curve[:3]) / 3, sum(curve[-3:]) / 3
        must(
            end < start,
            f"{steps} steps on one batch do not lower the loss of phase {phase.name!r}: "
            f"{start:.4g} becomes {end:.4g}",
        )
    target = model.select_frames(batch)["joints_3d"][:-1]  # the last sample is 2D-only
    ratio = float(predicted(model, batch)["pred_3d"][:-1].norm() / target.norm())
    must(
        0.02 < ratio < 50,
        f"after {steps} steps on one batch the predicted pose is {ratio:.2g} times as large as the "
        "true one: pred_3d must be in mm",
    )
