"""The checks: one function a rule, each with a one-line message when the rule is broken."""

from __future__ import annotations

import inspect
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from zoo.base import Phase, PoseModule
from zoo.batch import SAMPLE_ID_KEYS, PoseBatch, Prediction
from zoo.testing.people import random_batch, random_poses

__all__ = ["CHECKS", "Factory", "check_method"]

Factory: TypeAlias = Callable[[], PoseModule]
"""A callable that returns a small instance, or the class itself (its ``tiny()`` is called)."""

# Batch normalisation needs two samples in training; the fourth is the 2D-only one.
_TRAIN_BATCH = 4
_LIMIT_MM = 1e5
_TINY_SECONDS = 1.0
_TARGETS = ("joints_3d", "root_3d", "valid_3d", "occluded")
_TARGETS_2D = ("joints_2d", "scores_2d", "valid_2d")


# ---- helpers ------------------------------------------------------------------------------------


def _require(ok: Any, model: PoseModule, rule: str) -> None:
    if not bool(ok):
        raise AssertionError(f"{type(model).__name__}: {rule}")


def _build(factory: Factory, fitted: bool = True, seed: int = 0) -> PoseModule:
    """A seeded instance, its statistics fitted on random people."""
    torch.manual_seed(seed)
    model = cast(type[PoseModule], factory).tiny() if inspect.isclass(factory) else factory()
    if not isinstance(model, PoseModule):
        raise AssertionError(f"the factory returned a {type(model).__name__}, not a PoseModule")
    if fitted:
        model.fit_statistics(random_poses(model.input_spec, model.skeleton))
        model.statistics_fitted.fill_(True)
    return model


def _batch(model: PoseModule, batch_size: int = _TRAIN_BATCH, seed: int = 0) -> PoseBatch:
    return random_batch(model.input_spec, model.skeleton, batch_size, seed)


def _with(batch: PoseBatch, **changed: Tensor) -> PoseBatch:
    return cast(PoseBatch, {**batch, **changed})


def _samples(batch: PoseBatch, index: slice) -> PoseBatch:
    return cast(PoseBatch, {k: cast(Tensor, v)[index] for k, v in batch.items()})


def _trained_names(model: PoseModule, phase: Phase) -> list[str]:
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name.startswith(phase.train)
    ]


@contextmanager
def _in_phase(model: PoseModule, phase: Phase) -> Iterator[list[str]]:
    """Puts the model into a phase as ``TrainingPhases`` does; yields the names that train."""
    trained = _trained_names(model, phase)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    model.phase = phase
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            module.eval()
    try:
        yield trained
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
        model.zero_grad(set_to_none=True)
        model.phase = None


def _losses(model: PoseModule, batch: PoseBatch, seed: int = 11) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return model.compute_loss(batch)


def _backward(model: PoseModule, batch: PoseBatch) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The loss and the gradient of each parameter that trains."""
    model.zero_grad(set_to_none=True)
    loss = _losses(model, batch)["loss"]
    where = f"in phase {model.phase.name!r}" if model.phase else ""
    _require(
        loss.requires_grad,
        model,
        f"compute_loss()['loss'] has no graph {where}, so backward() would fail; where nothing is "
        "valid return a zero that depends on the output, such as (pred * mask).sum()",
    )
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def _predict(model: PoseModule, batch: PoseBatch, seed: int = 3) -> Prediction:
    model.eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        prediction: Prediction = model(batch)
    return prediction


def _tensors(prediction: Prediction) -> dict[str, Tensor]:
    return {k: cast(Tensor, v) for k, v in prediction.items()}


def _same(one: Prediction, other: Prediction, tolerance: float = 0.0) -> bool:
    """Equal keys, and values equal to ``tolerance`` of the larger of 1 and their magnitude."""
    left, right = _tensors(one), _tensors(other)
    if left.keys() != right.keys():
        return False
    for key, value in left.items():
        if value.shape != right[key].shape:
            return False
        scale = max(1.0, float(value.abs().max())) if value.numel() else 1.0
        if not bool(((value - right[key]).abs() <= tolerance * scale).all()):
            return False
    return True


def _spoil(batch: PoseBatch, seed: int = 5) -> PoseBatch:
    """The batch with other values wherever a joint is not valid."""
    rng = torch.Generator().manual_seed(seed)
    lost_2d, lost_3d = ~batch["valid_2d"], ~batch["valid_3d"]
    noise_2d = 60 * torch.randn(batch["joints_2d"].shape, generator=rng)
    noise_3d = 700 * torch.randn(batch["joints_3d"].shape, generator=rng)
    other_scores = torch.rand(batch["scores_2d"].shape, generator=rng)
    nowhere = lost_3d.all(-1, keepdim=True)  # samples without 3D have no root either
    return _with(
        batch,
        joints_2d=batch["joints_2d"] + noise_2d * lost_2d[..., None],
        joints_3d=batch["joints_3d"] + noise_3d * lost_3d[..., None],
        scores_2d=torch.where(lost_2d, other_scores, batch["scores_2d"]),
        root_3d=batch["root_3d"] + 900 * nowhere,
    )


def _without_joints(batch: PoseBatch) -> PoseBatch:
    """The batch with every joint of every sample unannotated."""
    zeros = {
        key: torch.zeros_like(batch[key])
        for key in ("valid_2d", "valid_3d", "joints_3d", "root_3d", "scores_2d", "occluded")
    }
    return _with(batch, **zeros)


# ---- construction -------------------------------------------------------------------------------


def _impure(value: Any, where: str) -> str:
    """Where ``value`` is not plain, or an empty string."""
    if value is None or type(value) in (bool, int, float, str):
        return ""
    if type(value) in (list, tuple):
        items = [(f"{where}[{i}]", v) for i, v in enumerate(value)]
    elif type(value) is dict:
        items = [(f"{where}[{k!r}]", v) for k, v in value.items()]
        if any(type(k) is not str for k in value):
            return f"{where} has keys that are not strings"
    else:
        return f"{where} is a {type(value).__module__}.{type(value).__name__}"
    return next((found for name, item in items if (found := _impure(item, name))), "")


def check_constructor(factory: Factory) -> None:
    """Arguments are typed, plain, saved in ``hparams``, and rebuild the same network."""
    model = _build(factory, fitted=False)
    cls = type(model)
    parameters = list(inspect.signature(cls).parameters.values())
    for parameter in parameters:
        starred = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        _require(
            not starred, model, f"argument *{parameter.name} hides the flags: name every argument"
        )
        _require(
            parameter.annotation is not parameter.empty,
            model,
            f"argument {parameter.name!r} has no type, so the command line cannot offer it",
        )
        _require(
            parameter.default is not parameter.empty,
            model,
            f"argument {parameter.name!r} has no default; the paper's value belongs there",
        )
        _require(
            parameter.name in model.hparams,
            model,
            f"argument {parameter.name!r} is not in hparams: call self.save_hyperparameters()",
        )
    for name, value in model.hparams.items():
        impure = _impure(value, name)
        _require(not impure, model, f"hparams must be plain values, but {impure}")
    # Weight files keep the arguments as JSON, so a tuple comes back as a list.
    rebuilt = cls(**json.loads(json.dumps(dict(model.hparams))))
    old = {k: v.shape for k, v in model.state_dict().items()}
    new = {k: v.shape for k, v in rebuilt.state_dict().items()}
    differ = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    _require(not differ, model, f"rebuilt from its hparams it differs in {', '.join(differ[:3])}")
    _require(
        rebuilt.input_spec == model.input_spec,
        model,
        "rebuilt from its hparams it has another input_spec",
    )


def check_tiny(factory: Factory) -> None:
    """``tiny()`` is small: a forward pass of two samples takes less than a second of CPU."""
    model = _build(factory)
    _require(
        type(type(model).tiny()) is type(model),
        model,
        "tiny() returns an instance of another class",
    )
    batch = _batch(model, 2)
    seconds = []
    for _ in range(2):  # the first pass may pay for lazy initialisation
        start = time.process_time()
        _predict(model, batch)
        seconds.append(time.process_time() - start)
    _require(
        min(seconds) < _TINY_SECONDS,
        model,
        f"tiny() is not small: a forward pass of 2 samples takes {min(seconds):.1f} s of CPU",
    )


def check_phases(factory: Factory) -> None:
    """Phases are named, last, and train every parameter that is trainable, in some phase."""
    model = _build(factory)
    phases = model.phases()
    _require(len(phases) > 0, model, "phases() is empty")
    names = [phase.name for phase in phases]
    _require(len(set(names)) == len(names), model, f"phases() repeats a name: {names}")
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    covered: set[str] = set()
    for phase in phases:
        _require(
            isinstance(phase.epochs, int) and phase.epochs > 0,
            model,
            f"phase {phase.name!r} lasts {phase.epochs!r} epochs; a positive integer is needed",
        )
        _require(
            phase.lr is None or phase.lr > 0, model, f"phase {phase.name!r} has lr {phase.lr!r}"
        )
        _require(
            isinstance(phase.train, tuple) and phase.train,
            model,
            f"phase {phase.name!r}: train must be a tuple of prefixes, not {phase.train!r}",
        )
        for prefix in phase.train:
            hit = {name for name in trainable if name.startswith(prefix)}
            _require(
                hit, model, f"phase {phase.name!r}: no parameter's name starts with {prefix!r}"
            )
            covered |= hit
    left = [name for name in trainable if name not in covered]
    _require(
        not left,
        model,
        f"no phase trains {', '.join(left[:3])}: name it in a phase, or make it a buffer",
    )
    _require(
        model.total_epochs == sum(p.epochs for p in phases),
        model,
        "total_epochs is not the sum of the phases",
    )


# ---- prediction ---------------------------------------------------------------------------------


def check_forward(factory: Factory) -> None:
    """``forward`` returns the documented keys, shapes and frame, alike in train and eval mode."""
    model = _build(factory)
    joints, frames = len(model.skeleton), len(model.predicted_frames)
    _require(
        all(0 <= f < model.input_spec.frames for f in model.predicted_frames) and frames > 0,
        model,
        f"predicted_frames {model.predicted_frames} are not among {model.input_spec.frames} frames",
    )
    shapes = {
        "pred_3d": (_TRAIN_BATCH, frames, joints, 3),
        "pred_2d": (_TRAIN_BATCH, frames, joints, 2),
        "std_3d": (_TRAIN_BATCH, frames, joints),
    }
    batch = _batch(model)
    keys: dict[str, set[str]] = {}
    for mode in ("train", "eval"):
        model.train(mode == "train")
        with torch.no_grad():
            prediction: Prediction = model(batch)
        _require(
            isinstance(prediction, dict),
            model,
            f"forward returns a {type(prediction).__name__} in {mode} mode, not a Prediction",
        )
        keys[mode] = set(prediction)
        _require("pred_3d" in prediction, model, f"forward returns no 'pred_3d' in {mode} mode")
        for key, value in _tensors(prediction).items():
            _require(
                key in shapes,
                model,
                f"forward returns {key!r}, which Prediction does not have ({', '.join(shapes)})",
            )
            _require(
                value.shape == shapes[key],
                model,
                f"{key} has shape {tuple(value.shape)} in {mode} mode, expected {shapes[key]}",
            )
            _require(
                value.dtype == torch.float32, model, f"{key} is {value.dtype}, expected float32"
            )
            _require(
                value.isfinite().all(),
                model,
                f"{key} is not finite in {mode} mode after fit_statistics",
            )
            _require(
                value.abs().max() < _LIMIT_MM,
                model,
                f"{key} reaches {float(value.abs().max()):.3g}; mm and px are expected",
            )
        root = prediction["pred_3d"][:, :, model.skeleton.index(model.skeleton.root)]
        _require((root == 0).all(), model, f"the predicted pelvis is not exactly 0 in {mode} mode")
        if "std_3d" in prediction:
            _require((prediction["std_3d"] >= 0).all(), model, f"std_3d is negative in {mode} mode")
    _require(
        keys["train"] == keys["eval"],
        model,
        f"forward returns {sorted(keys['train'])} in training, {sorted(keys['eval'])} in eval mode",
    )


def check_unfitted(factory: Factory) -> None:
    """Without ``fit_statistics`` a forward pass is finite too: buffers start harmless."""
    model = _build(factory, fitted=False)
    for key, value in _tensors(_predict(model, _batch(model, 2))).items():
        _require(
            value.isfinite().all(),
            model,
            f"{key} is not finite before fit_statistics: give the buffers harmless first values",
        )


def check_evaluation(factory: Factory) -> None:
    """In eval mode a prediction is deterministic and does not depend on the rest of the batch."""
    model = _build(factory)
    batch = _batch(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    whole = _predict(model, batch)
    _require(_same(whole, _predict(model, batch, seed=4)), model, "eval mode is not deterministic")
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, state[k])]
    _require(not changed, model, f"a forward pass in eval mode changes {', '.join(changed[:3])}")
    for index in (0, _TRAIN_BATCH - 1):
        alone = _predict(model, _samples(batch, slice(index, index + 1)))
        part = {k: v[index : index + 1] for k, v in _tensors(whole).items()}
        _require(
            _same(cast(Prediction, part), alone, tolerance=1e-4),
            model,
            f"in eval mode sample {index} alone is predicted otherwise than in its batch",
        )


def check_no_leak(factory: Factory) -> None:
    """In eval mode a prediction does not look at the targets, and does not need them."""
    model = _build(factory)
    batch = _batch(model)
    whole = _predict(model, batch)
    hidden = _TARGETS + (_TARGETS_2D if model.input_spec.kind == "image" else ())
    others = _batch(model, seed=1)
    swapped = {k: cast(Tensor, others[k]) for k in hidden}  # type: ignore[literal-required]
    _require(
        _same(whole, _predict(model, _with(batch, **swapped))),
        model,
        f"in eval mode the prediction depends on the targets ({', '.join(hidden)})",
    )
    bare = {k: v for k, v in batch.items() if k not in (*hidden, *SAMPLE_ID_KEYS)}
    try:
        alone = _predict(model, cast(PoseBatch, bare))
    except KeyError as error:
        raise AssertionError(
            f"{type(model).__name__}: in eval mode forward needs batch[{error}], which a new "
            f"picture does not have; it has {', '.join(sorted(bare))}"
        ) from error
    _require(_same(whole, alone), model, "without targets in the batch the prediction differs")


# ---- loss ---------------------------------------------------------------------------------------


def check_loss(factory: Factory) -> None:
    """``compute_loss`` returns finite scalars with ``loss``; the same seed gives the same loss."""
    model, twin = _build(factory), _build(factory)
    batch = _batch(model)
    for phase, same in zip(model.phases(), twin.phases(), strict=True):
        with _in_phase(model, phase), _in_phase(twin, same):
            losses, again = _losses(model, batch), _losses(twin, batch)
        where = f"in phase {phase.name!r}"
        _require(isinstance(losses, dict), model, f"compute_loss returns no dict {where}")
        _require("loss" in losses, model, f"compute_loss returns no 'loss' {where}")
        for name, value in losses.items():
            _require(
                isinstance(value, Tensor) and value.ndim == 0,
                model,
                f"compute_loss()[{name!r}] is no scalar tensor {where}",
            )
            _require(value.isfinite(), model, f"compute_loss()[{name!r}] is {value.item()} {where}")
            _require(
                torch.equal(value, again[name]),
                model,
                f"compute_loss()[{name!r}] differs between two runs of the same seed {where}",
            )


def check_gradients(factory: Factory) -> None:
    """Every parameter gets a finite gradient in the phase that trains it, and not always zero."""
    model = _build(factory)
    batches = [_batch(model, seed=seed) for seed in range(3)]
    alive: set[str] = set()
    for phase in model.phases():
        with _in_phase(model, phase) as trained:
            for batch in batches:
                _, gradients = _backward(model, batch)
                for name in trained:
                    gradient = gradients[name]
                    _require(
                        gradient is not None,
                        model,
                        f"{name} gets no gradient in phase {phase.name!r}, which trains it",
                    )
                    assert gradient is not None
                    _require(
                        gradient.isfinite().all(),
                        model,
                        f"the gradient of {name} is not finite in phase {phase.name!r}",
                    )
                    if bool((gradient != 0).any()):
                        alive.add(name)
                # A small step, because a last layer may start at zero and block the others.
                with torch.no_grad():
                    for parameter in model.parameters():
                        if parameter.grad is not None:
                            parameter.sub_(parameter.grad.sign(), alpha=1e-3)
    dead = [n for n, p in model.named_parameters() if p.requires_grad and n not in alive]
    _require(not dead, model, f"the gradient of {', '.join(dead[:3])} is always zero")


def check_invalid_joints(factory: Factory) -> None:
    """Joints that are not valid change neither prediction nor loss nor gradient."""
    model = _build(factory)
    batch = _batch(model)
    spoilt = _spoil(batch)
    _require(
        _same(_predict(model, batch), _predict(model, spoilt)),
        model,
        "the prediction depends on 2D joints with valid_2d false",
    )
    for phase in model.phases():
        with _in_phase(model, phase) as trained:
            state = {k: v.clone() for k, v in model.state_dict().items()}
            loss, gradients = _backward(model, batch)
            gradients = {k: None if g is None else g.clone() for k, g in gradients.items()}
            model.load_state_dict(state)  # running means of the first pass
            loss_2, gradients_2 = _backward(model, spoilt)
        _require(
            torch.equal(loss, loss_2),
            model,
            f"joints that are not valid change the loss in phase {phase.name!r}: "
            f"{loss.item():.6g} becomes {loss_2.item():.6g} (mask by torch.where or indexing)",
        )
        for name in trained:
            one, two = gradients[name], gradients_2[name]
            _require(
                one is two or (one is not None and two is not None and torch.equal(one, two)),
                model,
                f"joints that are not valid change the gradient of {name}",
            )


def check_occluded_joints(factory: Factory) -> None:
    """Joints that are annotated but occluded carry loss."""
    model = _build(factory)
    batch = _batch(model)
    batch["occluded"] = batch["valid_2d"] | batch["valid_3d"]
    seen = _with(batch, occluded=torch.zeros_like(batch["occluded"]))
    moved = _with(batch, joints_3d=batch["joints_3d"] + 150 * _visible_3d(model, batch))
    if model.input_spec.kind == "image":
        moved["joints_2d"] = batch["joints_2d"] + model.input_spec.image_size / 4
    sensitive = False
    for phase in model.phases():
        with _in_phase(model, phase):
            state = {k: v.clone() for k, v in model.state_dict().items()}
            values = []
            for variant in (batch, seen, moved):
                values.append(_losses(model, variant)["loss"].detach())
                model.load_state_dict(state)
        _require(
            torch.equal(values[0], values[1]),
            model,
            f"the loss depends on 'occluded' in phase {phase.name!r}; only valid_2d and valid_3d "
            "decide what carries loss",
        )
        sensitive = sensitive or not torch.equal(values[0], values[2])
    _require(sensitive, model, "the loss does not depend on annotated joints that are occluded")


def _visible_3d(model: PoseModule, batch: PoseBatch) -> Tensor:
    mask = batch["valid_3d"][..., None].float()
    mask[:, :, model.skeleton.index(model.skeleton.root)] = 0
    return mask


def check_two_d_only(factory: Factory) -> None:
    """A batch of 2D-only samples trains without NaN, as does one mixed with 3D samples."""
    model = _build(factory)
    batch = _batch(model)
    only = _with(
        batch,
        valid_3d=torch.zeros_like(batch["valid_3d"]),
        joints_3d=torch.zeros_like(batch["joints_3d"]),
        root_3d=torch.zeros_like(batch["root_3d"]),
    )
    _check_trains(model, only, "with 2D-only samples")


def check_nothing_valid(factory: Factory) -> None:
    """Batches without any valid joint, alone or beside others, give finite loss and gradient."""
    model = _build(factory)
    batch = _batch(model)
    empty = _without_joints(batch)
    for key, value in _tensors(_predict(model, empty)).items():
        _require(value.isfinite().all(), model, f"{key} is not finite where no joint is valid")
    _check_trains(model, empty, "where no joint is valid")
    half = {
        key: torch.cat((cast(Tensor, value)[:2], cast(Tensor, empty[key])[2:]))  # type: ignore[literal-required]
        for key, value in batch.items()
    }
    _check_trains(model, cast(PoseBatch, half), "where half of the samples have no valid joint")


def _check_trains(model: PoseModule, batch: PoseBatch, when: str) -> None:
    for phase in model.phases():
        with _in_phase(model, phase):
            loss, gradients = _backward(model, batch)
        _require(loss.isfinite(), model, f"the loss is {loss.item()} {when}, phase {phase.name!r}")
        for name, gradient in gradients.items():
            _require(
                gradient is None or gradient.isfinite().all(),
                model,
                f"the gradient of {name} is not finite {when}, phase {phase.name!r}",
            )


def check_learns(factory: Factory, steps: int = 40) -> None:
    """Some steps of Adam on one batch lower the loss of each phase; predictions are in mm."""
    model = _build(factory)
    batch = _batch(model)
    for phase in model.phases():
        with _in_phase(model, phase):
            optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), 3e-3)
            curve = []
            for step in range(steps):
                optimizer.zero_grad(set_to_none=True)
                loss = _losses(model, batch, seed=step)["loss"]
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                curve.append(float(loss.detach()))
        start, end = sum(curve[:3]) / 3, sum(curve[-3:]) / 3
        _require(
            end < start,
            model,
            f"{steps} steps on one batch do not lower the loss of phase {phase.name!r}: "
            f"{start:.4g} becomes {end:.4g}",
        )
    target = model.select_frames(batch)["joints_3d"][:-1]  # the last sample is 2D-only
    ratio = float(_predict(model, batch)["pred_3d"][:-1].norm() / target.norm())
    _require(
        0.02 < ratio < 50,
        model,
        f"after {steps} steps on one batch the predicted pose is {ratio:.2g} times as large as the "
        "true one: pred_3d must be in mm",
    )


# ---- statistics and files -----------------------------------------------------------------------


def check_statistics(factory: Factory) -> None:
    """``fit_statistics`` is deterministic, ignores missing joints, and only fills buffers."""
    model = _build(factory, fitted=False)
    poses = random_poses(model.input_spec, model.skeleton)
    other = dict(poses)
    noise = 700 * torch.randn(poses["joints_3d"].shape, generator=torch.Generator().manual_seed(5))
    other["joints_3d"] = poses["joints_3d"] + noise * ~poses["valid_3d"][..., None]
    given = {k: cast(Tensor, v).clone() for k, v in poses.items()}
    before = {k: v.shape for k, v in model.state_dict().items()}
    weights = {k: v.detach().clone() for k, v in model.named_parameters()}
    fitted: list[dict[str, Tensor]] = []
    for seed, variant in ((0, poses), (1, poses), (0, cast(PoseBatch, other))):
        torch.manual_seed(seed)
        model.fit_statistics(variant)
        fitted.append({k: v.clone() for k, v in model.named_buffers()})
    changed = [k for k, v in poses.items() if not torch.equal(cast(Tensor, v), given[k])]
    _require(not changed, model, f"fit_statistics changes its argument: {', '.join(changed)}")
    moved = [k for k, v in model.named_parameters() if not torch.equal(v, weights[k])]
    _require(
        not moved,
        model,
        f"fit_statistics changes the parameter {', '.join(moved[:3])}: fill buffers",
    )
    differ = [k for k, v in model.state_dict().items() if v.shape != before.get(k)]
    _require(
        not differ,
        model,
        f"fit_statistics changes the shape of {', '.join(differ[:3])}: a checkpoint would not load",
    )
    for name, value in fitted[0].items():
        _require(
            not value.is_floating_point() or value.isfinite().all(),
            model,
            f"fit_statistics makes {name} not finite",
        )
        _require(
            torch.equal(value, fitted[1][name]),
            model,
            f"fit_statistics gives another {name} with another seed: processes would disagree",
        )
        _require(
            torch.equal(value, fitted[2][name]),
            model,
            f"fit_statistics lets joints with valid_3d false change {name}",
        )


def _stepped(factory: Factory) -> PoseModule:
    """A model after one training step in each phase, so that running means have moved."""
    model = _build(factory)
    for phase in model.phases():
        with _in_phase(model, phase):
            _backward(model, _batch(model))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad.sign(), alpha=1e-3)
    return model.eval()


def check_checkpoint(factory: Factory) -> None:
    """Weights and arguments, read back with ``weights_only=True``, predict bit for bit the same."""
    model = _stepped(factory)
    file = io.BytesIO()
    torch.save({"state_dict": model.state_dict(), "hparams": dict(model.hparams)}, file)
    file.seek(0)
    try:
        content = torch.load(file, weights_only=True)
    except Exception as error:
        raise AssertionError(
            f"{type(model).__name__}: its checkpoint holds more than tensors and plain values: "
            f"{str(error).splitlines()[0]}"
        ) from error
    torch.manual_seed(99)  # another initialisation, so that nothing but the file can restore it
    again = type(model)(**content["hparams"])
    again.load_state_dict(content["state_dict"])
    batch = _batch(model)
    _require(
        _same(_predict(model, batch), _predict(again, batch)),
        model,
        "a model restored from its state_dict predicts otherwise: what it uses must be a "
        "parameter or a persistent buffer",
    )


def check_weight_file(factory: Factory) -> None:
    """A safetensors weight file restores the prediction, and half precision does not overflow."""
    from zoo.checkpoint import load_into, read_stored, save_weights

    model = _stepped(factory)
    model.zoo_name = model.zoo_name or type(model).__name__.lower()
    batch = _batch(model)
    with tempfile.TemporaryDirectory() as folder:
        stored = read_stored(save_weights(model, Path(folder) / "full.safetensors", half=False))
        half = read_stored(save_weights(model, Path(folder) / "half.safetensors", half=True))
    again = type(model)(**stored.args)
    load_into(again, stored)
    _require(
        _same(_predict(model, batch), _predict(again, batch)),
        model,
        "a model restored from its safetensors file predicts otherwise",
    )
    load_into(again, half)
    for key, value in _tensors(_predict(again, batch)).items():
        _require(value.isfinite().all(), model, f"{key} is not finite with half-precision weights")


CHECKS: tuple[Callable[[Factory], None], ...] = (
    check_constructor,
    check_tiny,
    check_phases,
    check_forward,
    check_unfitted,
    check_evaluation,
    check_no_leak,
    check_loss,
    check_gradients,
    check_invalid_joints,
    check_occluded_joints,
    check_two_d_only,
    check_nothing_valid,
    check_learns,
    check_statistics,
    check_checkpoint,
    check_weight_file,
)
"""Every check, in the order in which :func:`check_method` runs them."""


def check_method(factory: Factory) -> None:
    """Runs every check.

    Args:
        factory: the method's class, or a callable that returns a small instance.

    Raises:
        AssertionError: a rule of the contract is broken; the message names it in one line.
    """
    for check in CHECKS:
        check(factory)
