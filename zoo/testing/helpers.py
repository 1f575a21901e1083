"""What the checks share: seeded models, batches, phases, comparisons."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from zoo.base import Phase, PoseModule
from zoo.batch import PoseBatch, Prediction
from zoo.testing.people import random_batch, random_poses

Factory: TypeAlias = Callable[[], PoseModule]
"""A callable that returns a small instance, or the class itself (its ``tiny()`` is called)."""

# Batch normalisation needs two samples in training; the fourth is the 2D-only one.
TRAIN_BATCH = 4


def rules(model: PoseModule) -> Callable[[Any, str], None]:
    """``must(condition, rule)``: raises with the method's name where the condition is false."""

    def must(condition: Any, rule: str) -> None:
        if not bool(condition):
            raise AssertionError(f"{type(model).__name__}: {rule}")

    return must


def build(factory: Factory, fitted: bool = True, seed: int = 0) -> PoseModule:
    """A seeded instance, its statistics fitted on random people."""
    torch.manual_seed(seed)
    model = cast(type[PoseModule], factory).tiny() if inspect.isclass(factory) else factory()
    if not isinstance(model, PoseModule):
        raise AssertionError(f"the factory returned a {type(model).__name__}, not a PoseModule")
    if fitted:
        model.fit_statistics(random_poses(model.input_spec, model.skeleton))
        model.statistics_fitted.fill_(True)
    return model


def training_batch(model: PoseModule, batch_size: int = TRAIN_BATCH, seed: int = 0) -> PoseBatch:
    """A random batch of what the model wants to be fed; its last sample is 2D-only."""
    return random_batch(model.input_spec, model.skeleton, batch_size, seed)


def replaced(batch: PoseBatch, **changed: Tensor) -> PoseBatch:
    """The batch with other tensors under some keys."""
    return cast(PoseBatch, {**batch, **changed})


def samples(batch: PoseBatch, index: slice) -> PoseBatch:
    """Some samples of the batch."""
    return cast(PoseBatch, {k: cast(Tensor, v)[index] for k, v in batch.items()})


def active_phases(model: PoseModule) -> list[Phase]:
    """The phases that are run: those with epochs."""
    return [phase for phase in model.phases() if phase.epochs > 0]


@contextmanager
def in_phase(model: PoseModule, phase: Phase) -> Iterator[list[str]]:
    """Puts the model into a phase as ``TrainingPhases`` does; yields the names that train."""
    from callbacks.phases import freeze_parameters, set_modes

    trainable = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    model.phase = phase
    freeze_parameters(model, phase.train, trainable)
    set_modes(model, phase.train)
    try:
        yield [name for name, p in model.named_parameters() if p.requires_grad]
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)
        model.zero_grad(set_to_none=True)
        model.phase = None


def step_against_gradient(model: PoseModule, size: float = 1e-3) -> None:
    """Moves every parameter that has a gradient by ``size``."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad.sign(), alpha=size)


def seeded_losses(model: PoseModule, batch: PoseBatch, seed: int = 11) -> dict[str, Tensor]:
    """The losses, with noise and dropout drawn from ``seed``."""
    torch.manual_seed(seed)
    return model.compute_loss(batch)


def backward(model: PoseModule, batch: PoseBatch) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The loss and the gradient of each parameter that trains."""
    must = rules(model)
    model.zero_grad(set_to_none=True)
    loss = seeded_losses(model, batch)["loss"]
    where = f"in phase {model.phase.name!r}" if model.phase else ""
    must(
        loss.requires_grad,
        f"compute_loss()['loss'] has no graph {where}, so backward() would fail; where nothing is "
        "valid return a zero that depends on the output, such as (pred * mask).sum()",
    )
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def predicted(model: PoseModule, batch: PoseBatch, seed: int = 3) -> Prediction:
    """The prediction in eval mode, without gradients."""
    model.eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        prediction: Prediction = model(batch)
    return prediction


def tensors(prediction: Prediction) -> dict[str, Tensor]:
    """The prediction as a plain dict."""
    return {k: cast(Tensor, v) for k, v in prediction.items()}


def same_prediction(one: Prediction, other: Prediction, tolerance: float = 0.0) -> bool:
    """Equal keys, and values equal to ``tolerance`` of the larger of 1 and their magnitude."""
    left, right = tensors(one), tensors(other)
    if left.keys() != right.keys():
        return False
    for key, value in left.items():
        if value.shape != right[key].shape:
            return False
        scale = max(1.0, float(value.abs().max())) if value.numel() else 1.0
        if not bool(((value - right[key]).abs() <= tolerance * scale).all()):
            return False
    return True


def spoilt_joints(batch: PoseBatch, seed: int = 5) -> PoseBatch:
    """The batch with other values wherever a joint is not valid."""
    rng = torch.Generator().manual_seed(seed)
    lost_2d, lost_3d = ~batch["valid_2d"], ~batch["valid_3d"]
    noise_2d = 60 * torch.randn(batch["joints_2d"].shape, generator=rng)
    noise_3d = 700 * torch.randn(batch["joints_3d"].shape, generator=rng)
    other_scores = torch.rand(batch["scores_2d"].shape, generator=rng)
    nowhere = lost_3d.all(-1, keepdim=True)  # samples without 3D have no root either
    return replaced(
        batch,
        joints_2d=batch["joints_2d"] + noise_2d * lost_2d[..., None],
        joints_3d=batch["joints_3d"] + noise_3d * lost_3d[..., None],
        scores_2d=torch.where(lost_2d, other_scores, batch["scores_2d"]),
        root_3d=batch["root_3d"] + 900 * nowhere,
    )


def without_joints(batch: PoseBatch) -> PoseBatch:
    """The batch with every joint of every sample unannotated."""
    zeros = {
        key: torch.zeros_like(batch[key])
        for key in ("valid_2d", "valid_3d", "joints_3d", "root_3d", "scores_2d", "occluded")
    }
    return replaced(batch, **zeros)
