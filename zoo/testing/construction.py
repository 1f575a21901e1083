"""Checks of the constructor, ``tiny``, ``phases`` and ``fit_statistics``."""

from __future__ import annotations

import inspect
import json
import time
from typing import Any, cast

import torch
from torch import Tensor

from zoo.batch import PoseBatch
from zoo.testing.helpers import (
    Factory,
    build,
    predicted,
    rules,
    training_batch,
)
from zoo.testing.people import random_poses

__all__ = [
    "check_constructor",
    "check_meta_device",
    "check_phases",
    "check_statistics",
    "check_tiny",
]


_TINY_SECONDS = 1.0


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
    model = build(factory, fitted=False)
    must = rules(model)
    cls = type(model)
    parameters = list(inspect.signature(cls).parameters.values())
    for parameter in parameters:
        starred = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        must(not starred, f"argument *{parameter.name} hides the flags: name every argument")
        must(
            parameter.annotation is not parameter.empty,
            f"argument {parameter.name!r} has no type, so the command line cannot offer it",
        )
        must(
            parameter.default is not parameter.empty,
            f"argument {parameter.name!r} has no default; the paper's value belongs there",
        )
        must(
            parameter.name in model.hparams,
            f"argument {parameter.name!r} is not in hparams: call self.save_hyperparameters()",
        )
    for name, value in model.hparams.items():
        impure = _impure(value, name)
        must(not impure, f"hparams must be plain values, but {impure}")
    # Weight files keep the arguments as JSON, so a tuple comes back as a list.
    rebuilt = cls(**json.loads(json.dumps(dict(model.hparams))))
    old = {k: v.shape for k, v in model.state_dict().items()}
    new = {k: v.shape for k, v in rebuilt.state_dict().items()}
    differ = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    must(not differ, f"rebuilt from its hparams it differs in {', '.join(differ[:3])}")
    must(
        rebuilt.input_spec == model.input_spec, "rebuilt from its hparams it has another input_spec"
    )


def check_tiny(factory: Factory) -> None:
    """``tiny()`` is small: a forward pass of two samples takes less than a second of CPU."""
    model = build(factory)
    must = rules(model)
    must(type(type(model).tiny()) is type(model), "tiny() returns an instance of another class")
    batch = training_batch(model, 2)
    seconds = []
    for _ in range(2):  # the first pass may pay for lazy initialisation
        start = time.process_time()
        predicted(model, batch)
        seconds.append(time.process_time() - start)
    must(
        min(seconds) < _TINY_SECONDS,
        f"tiny() is not small: a forward pass of 2 samples takes {min(seconds):.1f} s of CPU",
    )


def check_meta_device(factory: Factory) -> None:
    """Builds and runs on the meta device, where ``zoo info`` counts what a method costs."""
    model = build(factory)
    batch = training_batch(model, 1)
    try:
        with torch.device("meta"), torch.no_grad():
            hollow = type(model)(**model.hparams).eval()
            hollow(cast(PoseBatch, {k: cast(Tensor, v).to("meta") for k, v in batch.items()}))
    except (NotImplementedError, RuntimeError) as error:
        raise AssertionError(
            f"{type(model).__name__}: does not run on the meta device, where `zoo info` counts its "
            f"size (branch on shapes, not on values): {str(error).splitlines()[0]}"
        ) from error


def check_phases(factory: Factory) -> None:
    """Phases have names and lengths, and each parameter that is trainable trains in one."""
    model = build(factory)
    must = rules(model)
    phases = model.phases()
    must(any(phase.epochs > 0 for phase in phases), "phases() has no phase with epochs")
    names = [phase.name for phase in phases]
    must(len(set(names)) == len(names), f"phases() repeats a name: {names}")
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    covered: set[str] = set()
    for phase in phases:
        must(
            type(phase.epochs) is int and phase.epochs >= 0,
            f"phase {phase.name!r} lasts {phase.epochs!r} epochs; an integer is needed",
        )
        must(phase.lr is None or phase.lr > 0, f"phase {phase.name!r} has lr {phase.lr!r}")
        must(
            isinstance(phase.train, tuple) and phase.train,
            f"phase {phase.name!r}: train must be a tuple of prefixes, not {phase.train!r}",
        )
        for prefix in phase.train:
            hit = {name for name in trainable if name.startswith(prefix)}
            must(hit, f"phase {phase.name!r}: no parameter's name starts with {prefix!r}")
            covered |= hit if phase.epochs > 0 else set()
    left = [name for name in trainable if name not in covered]
    must(
        not left, f"no phase trains {', '.join(left[:3])}: name it in a phase, or make it a buffer"
    )
    must(
        model.total_epochs == sum(p.epochs for p in phases),
        "total_epochs is not the sum of the phases",
    )


def check_statistics(factory: Factory) -> None:
    """``fit_statistics`` is deterministic, ignores missing joints, and only fills buffers."""
    model = build(factory, fitted=False)
    must = rules(model)
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
    must(not changed, f"fit_statistics changes its argument: {', '.join(changed)}")
    moved = [k for k, v in model.named_parameters() if not torch.equal(v, weights[k])]
    must(not moved, f"fit_statistics changes the parameter {', '.join(moved[:3])}: fill buffers")
    differ = [k for k, v in model.state_dict().items() if v.shape != before.get(k)]
    must(
        not differ,
        f"fit_statistics changes the shape of {', '.join(differ[:3])}: a checkpoint would not load",
    )
    for name, value in fitted[0].items():
        must(
            not value.is_floating_point() or value.isfinite().all(),
            f"fit_statistics makes {name} not finite",
        )
        must(
            torch.equal(value, fitted[1][name]),
            f"fit_statistics gives another {name} with another seed: processes would disagree",
        )
        must(
            torch.equal(value, fitted[2][name]),
            f"fit_statistics lets joints with valid_3d false change {name}",
        )
