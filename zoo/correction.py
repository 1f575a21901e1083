"""Self-supervised correction of 3D poses at test time (Wang et al. 2019, Eq. 3-4).

A frame's 3D pose is projected by the model's own projector; where the result disagrees with the 2D
pose seen in the picture, copies of the projector's weights (:class:`~zoo.projector.Regressor` and
:class:`~zoo.projector.Projector`, Psi_C and Psi_P) take a few steps against that disagreement, the
frame's pose is read off the changed Psi_C, and the copies are thrown away. The rule, for each frame
by itself::

    y_0 = Psi_C(pose), u_0 = Psi_P(y_0)
    for i = 1 .. steps:       one step of the optimiser on |points - u_(i-1)|^2; y_i, u_i
        stop if the robust joints (pelvis, shoulders, hips) moved less than eps_mm from y_(i-1)
    discard y_i if the robust joints moved more than tau_mm from y_0: keep the uncorrected pose

"Moved" is the mean over the five robust joints. The pelvis is the origin of a pose, so one of the
five never moves: means over the four others are 5/4 as large (6.25 and 25 mm at the thresholds).

Three ways to the same numbers (``how``):

* ``rank-one``: plain SGD. One frame's gradient of a linear layer is an outer product, so after s
  steps W_s a = W a - lr sum_s d_s (a_s . a): weights of a frame are never built, and a batch of
  frames shares all matrix products. Exact.
* ``stacked``: any elementwise optimiser. The weights get a leading frame axis; ``torch.func`` gives
  each frame its own gradient.
* ``loop``: one frame after the other with copies of the modules; slow, and the only way to carry
  an optimiser's moments from frame to frame (``reset_state=False``).

**What the paper does not say** is the optimiser and its rate at test time. The authors' code has
Adam with 1.5e-4, which is the setting ``release`` here. A first step of fresh Adam moves each pose
by about the same amount, however small its disagreement, and can make poses worse; the default is
SGD with a small rate and a dead zone. ``zoo correction`` (:func:`search`) measures settings on
validation data.
"""

from __future__ import annotations

import copy
import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from zoo.base import PoseModule
from zoo.batch import PoseBatch, Prediction
from zoo.errors import UsageError, suggest
from zoo.pose import write_atomically
from zoo.projector import CorrectionTerms, SelfCorrecting

__all__ = [
    "OPTIMIZERS",
    "PRESETS",
    "ROBUST_JOINTS",
    "Corrected",
    "Correction",
    "CorrectionReport",
    "FrameCorrection",
    "correct",
    "correct_poses",
    "correct_terms",
    "correcting",
    "save_corrections",
    "save_csv",
]

ROBUST_JOINTS = ("pelvis", "l_shoulder", "r_shoulder", "l_hip", "r_hip")
"""Joints whose displacement stops or discards a correction (sec. 3.5)."""

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}
"""Elementwise optimisers with their default arguments: on stacked weights each frame has its own
state."""

How = Literal["auto", "rank-one", "stacked", "loop"]


# ---- settings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Correction:
    """Settings of the correction; the first line of each preset says where it is from.

    Attributes:
        optimizer: a key of ``OPTIMIZERS``.
        lr: its learning rate.
        steps: most back-propagations a frame, I.
        update: ``C+P``: both parts change (Eq. 3); ``C``: the regression function only.
        eps_mm: a smaller movement of the robust joints in one step ends the steps.
        tau_mm: a larger movement from y_0 discards the correction.
        dead_zone: frames that disagree less than this are not corrected. Root mean square over
            joints of the 2D distance, in units of Psi_P's output (sides of the crop).
        fallback: what a discarded frame gets: the ``intermediate`` pose, or the ``regressed`` one,
            y_0.
        loss: squared coordinates, their ``sum`` or their ``mean``.
        bone_weight: of a second loss, on the absolute coordinates of 2D bone vectors.
        masked: joints that are left out of the 2D loss.
        reset_state: a new optimiser for each frame. False carries its moments from frame to frame,
            so that the result depends on the order of the frames.
        output: ``last``: the pose after all steps; ``before_last``: the one that the last step was
            computed from.
    """

    optimizer: str = "sgd"
    lr: float = 1e-3
    steps: int = 2
    update: Literal["C+P", "C"] = "C+P"
    eps_mm: float = 5.0
    tau_mm: float = 20.0
    dead_zone: float = 1e-5
    fallback: Literal["intermediate", "regressed"] = "intermediate"
    loss: Literal["sum", "mean"] = "sum"
    bone_weight: float = 0.0
    masked: tuple[str, ...] = ()
    reset_state: bool = True
    output: Literal["last", "before_last"] = "last"

    def __post_init__(self) -> None:
        choices: tuple[tuple[str, Sequence[str]], ...] = (
            ("optimizer", tuple(OPTIMIZERS)), ("update", ("C+P", "C")), ("loss", ("sum", "mean")),
            ("fallback", ("intermediate", "regressed")), ("output", ("last", "before_last")),
        )  # fmt: skip
        for name, known in choices:
            if getattr(self, name) not in known:
                raise UsageError(
                    "correction: " + suggest(str(getattr(self, name)), known, f"{name}")
                )
        if self.steps < 0:
            raise UsageError(f"correction: steps is {self.steps}; it must be 0 or more")
        for name in ("lr", "eps_mm", "tau_mm", "dead_zone", "bone_weight"):
            if not getattr(self, name) >= 0:  # NaN fails, too
                raise UsageError(f"correction: {name} is {getattr(self, name)}; it must be >= 0")

    @classmethod
    def parse(cls, text: str | Correction | None) -> Correction | None:
        """Settings in words.

        Args:
            text: ``off`` or an empty text; a name of ``PRESETS``; ``KEY=VALUE`` pairs; or a name
                and pairs that change it, all separated by commas: ``release,lr=1e-5``. Joints of
                ``masked`` are joined by ``+``.

        Returns:
            The settings; None for ``off``.

        Raises:
            UsageError: an unknown name, key or value.
        """
        if text is None or isinstance(text, Correction):
            return text
        words = [word.strip() for word in text.split(",") if word.strip()]
        if not words or words == ["off"]:
            return None
        settings = PRESETS["on"]
        if "=" not in words[0]:
            if words[0] not in PRESETS:
                raise UsageError(suggest(words[0], [*PRESETS, "off"], "correction setting"))
            settings = PRESETS[words.pop(0)]
        changes: dict[str, Any] = {}
        kinds = {f.name: type(getattr(settings, f.name)) for f in fields(cls)}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or key not in kinds:
                raise UsageError(f"correction {text!r}: {suggest(key, kinds, 'setting')}")
            changes[key] = _read(kinds[key], value, key)
        return replace(settings, **changes)

    def __str__(self) -> str:
        """The pairs that differ from the defaults; ``parse`` reads them."""
        plain = asdict(Correction())
        changed = {k: v for k, v in asdict(self).items() if v != plain[k]}
        words = [f"{k}={'+'.join(v) if k == 'masked' else _write(v)}" for k, v in changed.items()]
        return ",".join(words) or "on"


def _read(kind: type, value: str, key: str) -> Any:
    if kind is tuple:
        return tuple(joint for joint in value.split("+") if joint)
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise UsageError(f"correction: {key} is true or false, not {value!r}")
        return value.lower() == "true"
    try:
        return kind(value)
    except ValueError as error:
        raise UsageError(f"correction: {key} is a number, not {value!r}") from error


def _write(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


PRESETS: dict[str, Correction] = {
    # The paper's rules, and what it leaves open chosen so that poses do not get worse.
    "on": Correction(),
    # The authors' code: Adam whose moments are kept from frame to frame, Psi_C only, a bone loss,
    # neither rule nor dead zone; the pose that it saves is the one before the second step.
    "release": Correction(
        optimizer="adam", lr=1.5e-4, steps=2, update="C", eps_mm=0.0, tau_mm=math.inf,
        dead_zone=0.0, loss="mean", bone_weight=1.0, masked=("spine",), reset_state=False,
        output="before_last",
    ),
    # The paper's text with the rate and the optimiser of the authors' code.
    "paper": Correction(optimizer="adam", lr=1.5e-4, dead_zone=0.0),
}  # fmt: skip
"""Settings with a name."""


# ---- the plain function --------------------------------------------------------------------------


class Corrected(NamedTuple):
    """What became of N frames.

    Attributes:
        pose: (N, P), the pose to use, in the model's units; no gradient.
        before: (N,) disagreement of y_0: root mean square over valid joints of the 2D distance, in
            the units of ``points``; NaN without a valid joint.
        after: (N,) the same of the pose after the steps, whether it is kept or not.
        steps: (N,) int64 steps taken; 0 in the dead zone.
        moved_mm: (N,) mean displacement of the robust joints from y_0.
        kept: (N,) bool; false where the correction was discarded, or the frame has no valid 2D
            joint: ``pose`` is the fallback then.
    """

    pose: Tensor
    before: Tensor
    after: Tensor
    steps: Tensor
    moved_mm: Tensor
    kept: Tensor


def correct_poses(
    psi_c: nn.Module,
    psi_p: nn.Module,
    pose: Tensor,
    points: Tensor,
    *,
    to_mm: Callable[[Tensor], Tensor],
    robust: Sequence[int],
    valid: Tensor | None = None,
    bones: Sequence[tuple[int, int]] = (),
    settings: Correction | None = None,
    how: How = "auto",
    chunk: int = 0,
    state: dict[str, Any] | None = None,
) -> Corrected:
    """Corrects frames, each with disposable weights of its own.

    The modules are evaluated in eval mode. Neither they nor their gradients change, and modes are
    as before when the function is left, also by an exception. It works under ``no_grad``,
    ``inference_mode`` and autocast (it computes in float32).

    Args:
        psi_c: regression function, (N, P) -> (N, P).
        psi_p: projection function, (N, P) -> (N, 2 J).
        pose: (N, P) intermediate poses.
        points: (N, J, 2) or (N, 2 J), the 2D poses to agree with.
        to_mm: (N, P) -> (N, J', 3) mm.
        robust: indices into J' of the joints whose movement counts.
        valid: (N, J) bool, joints of ``points`` that are known; None: all.
        bones: pairs of joints (child, parent) for ``bone_weight``.
        settings: default: ``PRESETS["on"]``.
        how: see the module; ``auto`` takes the fastest that the settings allow.
        chunk: frames at a time; 0 keeps the working copies below about half a GiB.
        state: where ``reset_state=False`` keeps the optimiser between two calls; filled in.

    Raises:
        UsageError: ``how`` and the settings exclude each other, or a shape is wrong.
    """
    settings = settings or PRESETS["on"]
    if points.ndim == 3:
        points = points.flatten(1)
    if valid is None:
        valid = torch.ones_like(points[:, ::2], dtype=torch.bool)
    if (
        pose.ndim != 2
        or points.shape != (len(pose), 2 * valid.shape[-1])
        or valid.shape[:-1] != pose.shape[:1]
    ):
        raise UsageError(
            f"correction: poses are {tuple(pose.shape)}, points {tuple(points.shape)} and valid "
            f"{tuple(valid.shape)}; expected (N, P), (N, 2 J) and (N, J)"
        )
    ways = _ways(how, settings, psi_c, psi_p)
    dtype = next(psi_c.parameters()).dtype
    with _plain_tensors(psi_c, psi_p, pose.device.type) as parts:
        moments = {} if settings.reset_state or state is None else state
        task = _Task(parts, settings, to_mm, list(robust), tuple(bones), moments)
        # Clones are no inference tensors, whatever the caller's mode.
        frames = _Frames(
            pose.detach().to(dtype).clone(), points.detach().to(dtype).clone(), valid.clone()
        )
        try:
            return _in_chunks(task, ways[0], frames, chunk)
        except _CalledTwiceError:
            if len(ways) == 1:
                raise
            return _in_chunks(task, ways[1], frames, chunk)


def disagreement(projected: Tensor, points: Tensor, valid: Tensor) -> Tensor:
    """Root mean square over valid joints of the 2D distance.

    Args:
        projected: (N, 2 J).
        points: (N, 2 J), anything where not valid.
        valid: (N, J) bool.

    Returns:
        (N,), NaN where nothing is valid.
    """
    square = _residual(projected, points, valid).square().sum(dim=-1)
    return (square / valid.sum(dim=-1)).sqrt()


def frame_losses(
    projected: Tensor,
    points: Tensor,
    valid: Tensor,
    settings: Correction,
    bones: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """The loss of each frame by itself (Eq. 3): (N, 2 J), (N, 2 J), (N, J) -> (N,)."""
    loss = _residual(projected, points, valid).square()
    count = 2 * valid.sum(dim=-1)
    total = loss.sum(dim=-1)
    if settings.loss == "mean":
        total = total / count.clamp(min=1)
    if settings.bone_weight and bones:
        child, parent = torch.tensor(bones, device=points.device).unbind(dim=1)
        both = valid[:, child] & valid[:, parent]

        def offsets(flat: Tensor) -> Tensor:
            joints = flat.reshape(len(flat), -1, 2)
            vectors = (joints[:, child] - joints[:, parent]).abs()
            return torch.where(both[..., None], vectors, 0.0).flatten(1)

        bone = (offsets(projected) - offsets(points)).square().sum(dim=-1)
        if settings.loss == "mean":
            bone = bone / (2 * both.sum(dim=-1)).clamp(min=1)
        total = total + settings.bone_weight * bone
    return total


def _residual(projected: Tensor, points: Tensor, valid: Tensor) -> Tensor:
    """(N, 2 J) points minus projection, 0 where not valid (NaN there does no harm)."""
    mask = valid.repeat_interleave(2, dim=-1)
    return torch.where(mask, points, 0.0) - torch.where(mask, projected, 0.0)


# ---- one chunk of frames -------------------------------------------------------------------------


class _Parts(NamedTuple):
    psi_c: nn.Module
    psi_p: nn.Module


class _Task(NamedTuple):
    parts: _Parts
    settings: Correction
    to_mm: Callable[[Tensor], Tensor]
    robust: list[int]
    bones: tuple[tuple[int, int], ...]
    moments: dict[str, Any]


class _Frames(NamedTuple):
    pose: Tensor
    points: Tensor
    valid: Tensor


class _CalledTwiceError(UsageError):
    """A module runs one of its layers twice."""


def _in_chunks(task: _Task, way: How, frames: _Frames, chunk: int) -> Corrected:
    engines: dict[str, Callable[[_Task, _Frames], _Copies | _Stacked | _RankOne]]
    engines = {"rank-one": _RankOne, "stacked": _Stacked, "loop": _Copies}
    size = 1 if way == "loop" else chunk or _chunk(task, way)
    pieces = []
    for start in range(0, max(len(frames.pose), 1), size):
        some = _Frames(*(x[start : start + size] for x in frames))
        pieces.append(_follow(task, engines[way](task, some) if len(some.pose) else None, some))
    return Corrected(*(torch.cat(column) for column in zip(*pieces, strict=True)))


def _follow(
    task: _Task, engine: _Copies | _Stacked | _RankOne | None, frames: _Frames
) -> Corrected:
    """The rule of the module's docstring for some frames; decisions are masks."""
    if engine is None:  # no frames
        none = frames.pose.new_zeros(0)
        return Corrected(frames.pose, none, none, none.long(), none, none.bool())
    settings = task.settings
    first, projected = engine.now()
    mm_first = mm_before = task.to_mm(first)[:, task.robust]
    before = after = disagreement(projected, frames.points, frames.valid)
    seen = frames.valid.any(dim=-1)
    active = seen & (before >= settings.dead_zone)
    pose = last = first
    steps = torch.zeros_like(seen, dtype=torch.int64)
    moved = torch.zeros_like(before)
    for _ in range(settings.steps):
        if not bool(active.any()):
            break
        engine.step(active)
        next_pose, next_points = engine.now()
        if settings.output == "before_last":
            last = torch.where(active[:, None], pose, last)
        pose = torch.where(active[:, None], next_pose, pose)
        after = torch.where(active, disagreement(next_points, frames.points, frames.valid), after)
        mm = task.to_mm(pose)[:, task.robust]
        steps = steps + active
        step_mm = (mm - mm_before).norm(dim=-1).mean(dim=-1)
        moved = torch.where(active, (mm - mm_first).norm(dim=-1).mean(dim=-1), moved)
        mm_before = mm
        active = active & (step_mm >= settings.eps_mm)
    result = last if settings.output == "before_last" else pose
    # Not "moved > tau": a pose that has become NaN is discarded as well.
    kept = seen & (moved <= settings.tau_mm) & result.isfinite().all(dim=-1)
    fallback = frames.pose if settings.fallback == "intermediate" else first
    return Corrected(
        torch.where(kept[:, None], result, fallback), before, after, steps, moved, kept
    )


class _Copies:
    """One frame with copies of the modules and a torch optimiser: the obvious way."""

    def __init__(self, task: _Task, frames: _Frames) -> None:
        self.task, self.frames = task, frames
        self.psi_c, self.psi_p = (copy.deepcopy(part) for part in task.parts)
        trained = [*self.psi_c.parameters()]
        if task.settings.update == "C+P":
            trained += [*self.psi_p.parameters()]
        for part in (self.psi_c, self.psi_p):
            part.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        self.optimizer = _optimizer(task.settings, trained)
        if task.moments.get("optimizer"):
            self.optimizer.load_state_dict(task.moments["optimizer"])
        self._projected: Tensor | None = None

    def now(self) -> tuple[Tensor, Tensor]:
        pose = self.psi_c(self.frames.pose)
        self._projected = self.psi_p(pose)
        return pose.detach(), self._projected.detach()

    def step(self, active: Tensor) -> None:
        assert self._projected is not None
        loss = frame_losses(
            self._projected, self.frames.points, self.frames.valid, self.task.settings,
            self.task.bones,
        ).sum()  # fmt: skip
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if not self.task.settings.reset_state:
            self.task.moments["optimizer"] = self.optimizer.state_dict()


class _Stacked:
    """Weights with a leading frame axis, per-frame gradients by ``torch.func``."""

    def __init__(self, task: _Task, frames: _Frames) -> None:
        self.task, self.frames = task, frames
        count = len(frames.pose)
        self.shared: dict[str, Tensor] = {}
        self.own: dict[str, Tensor] = {}
        for prefix, part, changes in (
            ("c.", task.parts.psi_c, True),
            ("p.", task.parts.psi_p, task.settings.update == "C+P"),
        ):
            for name, parameter in part.named_parameters():
                value = parameter.detach()
                if changes:
                    own = value.expand(count, *value.shape).clone()
                    self.own[prefix + name] = own
                else:
                    self.shared[prefix + name] = value
        self.optimizer = _optimizer(task.settings, list(self.own.values()))

    def _forward(self, own: dict[str, Tensor], pose: Tensor) -> tuple[Tensor, Tensor]:
        """One frame: (P,) -> (P,), (2 J,)."""
        weights = {**self.shared, **own}
        of_c = {k[2:]: v for k, v in weights.items() if k.startswith("c.")}
        of_p = {k[2:]: v for k, v in weights.items() if k.startswith("p.")}
        regressed = functional_call(self.task.parts.psi_c, of_c, (pose[None],))
        projected = functional_call(self.task.parts.psi_p, of_p, (regressed,))
        return regressed[0], projected[0]

    def now(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return vmap(self._forward)(self.own, self.frames.pose)

    def step(self, active: Tensor) -> None:
        def loss(own: dict[str, Tensor], pose: Tensor, points: Tensor, valid: Tensor) -> Tensor:
            _, projected = self._forward(own, pose)
            return frame_losses(
                projected[None], points[None], valid[None], self.task.settings, self.task.bones
            )[0]

        gradients, _ = vmap(grad_and_value(loss))(self.own, *self.frames)
        # A stopped frame's weights go on here, but its pose is not read any more.
        for name, value in self.own.items():
            value.grad = gradients[name]
        self.optimizer.step()
        for value in self.own.values():
            value.grad = None


class _RankOne(TorchFunctionMode):
    """SGD without any weight of a frame: the steps so far as pairs of vectors a layer.

    Every call of ``linear`` (and of an evaluating ``batch_norm``, whose weights act elementwise)
    with a weight that changes is answered by the shared weight's result, minus what the frame's
    steps have changed in it. Its output's gradient, taken by autograd, is the next pair's d.
    """

    def __init__(self, task: _Task, frames: _Frames) -> None:
        super().__init__()
        self.task, self.frames = task, frames
        parts = task.parts if task.settings.update == "C+P" else task.parts[:1]
        self.changing = {id(p) for part in parts for p in part.parameters()}
        self.steps: dict[int, list[tuple[Tensor, Tensor]]] = {}  # (a, d) by layer
        self.calls: dict[int, tuple[Tensor, Tensor]] = {}  # a and output by layer
        self._projected: Tensor | None = None

    def now(self) -> tuple[Tensor, Tensor]:
        self.calls = {}
        with self:
            pose = self.task.parts.psi_c(self.frames.pose)
            self._projected = self.task.parts.psi_p(pose)
        assert self._projected is not None
        return pose.detach(), self._projected.detach()

    def step(self, active: Tensor) -> None:
        assert self._projected is not None
        losses = frame_losses(
            self._projected, self.frames.points, self.frames.valid, self.task.settings,
            self.task.bones,
        )  # fmt: skip
        loss = torch.where(active, losses, 0.0).sum()
        layers = list(self.calls)
        outputs = [self.calls[layer][1] for layer in layers]
        for layer, d in zip(layers, torch.autograd.grad(loss, outputs), strict=True):
            pair = (self.calls[layer][0], self.task.settings.lr * d)
            self.steps.setdefault(layer, []).append(pair)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear:
            return self._linear(*args, **kwargs)
        if func is functional.batch_norm:
            return self._batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _linear(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        output = functional.linear(a, weight.detach(), None if bias is None else bias.detach())
        if id(weight) not in self.changing:
            return output
        constant = 0.0 if bias is None else 1.0
        for old, d in self.steps.get(id(weight), ()):
            output = output - d * ((old * a).sum(dim=-1, keepdim=True) + constant)
        return self._note(a, output, weight)

    def _batch_norm(
        self,
        a: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        assert not training
        normal = functional.batch_norm(a, mean, variance, None, None, False, momentum, eps)
        if weight is None or bias is None:
            return normal
        output = normal * weight.detach() + bias.detach()
        if id(weight) not in self.changing:
            return output
        for old, d in self.steps.get(id(weight), ()):
            output = output - d * (old * normal + 1.0)
        return self._note(normal, output, weight)

    def _note(self, a: Tensor, output: Tensor, weight: Tensor) -> Tensor:
        if id(weight) in self.calls:
            raise _CalledTwiceError(
                "correction: a layer is used twice, so the rank-one form does not hold; use stacked"
            )
        if not output.requires_grad:
            output.requires_grad_()  # nothing above it has a gradient
        self.calls[id(weight)] = (a.detach(), output)
        return output


def _optimizer(settings: Correction, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    return OPTIMIZERS[settings.optimizer](list(parameters), lr=settings.lr)  # type: ignore[call-arg]


def _ways(how: How, settings: Correction, psi_c: nn.Module, psi_p: nn.Module) -> list[How]:
    """Ways to try in order; raises where the wish and the settings exclude each other."""
    simple = settings.optimizer == "sgd" and all(
        type(module) in (nn.Linear, nn.BatchNorm1d) or not list(module.parameters(recurse=False))
        for part in (psi_c, psi_p)
        for module in part.modules()
    )
    if how == "auto":
        if not settings.reset_state:
            return ["loop"]
        return ["rank-one", "stacked"] if simple else ["stacked"]
    if how not in ("rank-one", "stacked", "loop"):
        raise UsageError(suggest(str(how), ("auto", "rank-one", "stacked", "loop"), "way"))
    if not settings.reset_state and how != "loop":
        raise UsageError(f"correction: reset_state=False goes frame by frame, not {how}")
    if how == "rank-one" and not simple:
        raise UsageError(
            "correction: the rank-one form is for sgd and fully connected layers; use stacked"
        )
    return [how]


def _chunk(task: _Task, how: How) -> int:
    parts = task.parts if task.settings.update == "C+P" else task.parts[:1]
    weights = sum(p.numel() for part in parts for p in part.parameters())
    if how == "stacked":  # weights, gradients, an optimiser's two moments
        return max(1, 2**29 // (16 * max(weights, 1)))
    return 1024


@contextmanager
def _plain_tensors(psi_c: nn.Module, psi_p: nn.Module, device: str) -> Iterator[_Parts]:
    """Gradients on, inference mode and autocast off, modules in eval mode; undone at the end."""
    modes = [(module, module.training) for part in (psi_c, psi_p) for module in part.modules()]
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device, enabled=False),
    ):
        try:
            for module, _ in modes:
                module.training = False
            yield _Parts(_usable(psi_c), _usable(psi_p))
        finally:
            for module, mode in modes:
                module.training = mode


def _usable(part: nn.Module) -> nn.Module:
    """The module, or a copy if it was made under ``inference_mode`` and autograd may not see it."""
    tensors = [*part.parameters(), *part.buffers()]
    if not any(tensor.is_inference() for tensor in tensors):
        return part
    twin = copy.deepcopy(part)
    for module in twin.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().clone())
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = buffer.clone()
    return twin


# ---- on a model ----------------------------------------------------------------------------------


class CorrectionReport(NamedTuple):
    """What became of each frame of a batch; all (B, T).

    Attributes:
        before_px: 2D disagreement before the correction, root mean square over joints, px of the
            crop; NaN where no 2D joint is known.
        after_px: the same after it, whether it is kept or not.
        steps: int64 steps taken; 0 in the dead zone.
        moved_mm: mean displacement of the robust joints.
        kept: bool; false where the uncorrected pose is output.
    """

    before_px: Tensor
    after_px: Tensor
    steps: Tensor
    moved_mm: Tensor
    kept: Tensor


def correct(
    model: SelfCorrecting,
    batch: PoseBatch,
    settings: Correction | str = "on",
    *,
    how: How = "auto",
    chunk: int = 0,
    state: dict[str, Any] | None = None,
) -> tuple[Prediction, CorrectionReport]:
    """The model's prediction with each frame corrected, and what was done.

    Args:
        model: any model with Psi_C and Psi_P, see :class:`~zoo.projector.SelfCorrecting`; its
            weights are not changed.
        batch: what its ``forward`` reads.
        settings: see :meth:`Correction.parse`.
        how: see the module.
        chunk: frames at a time; 0 chooses.
        state: see :func:`correct_poses`.

    Raises:
        UsageError: the model cannot be corrected, or the settings are wrong.
    """
    check_correctable(model)
    with torch.no_grad():
        terms = model.correction_terms(batch)
    return correct_terms(model, terms, settings, how=how, chunk=chunk, state=state)


def correct_terms(
    model: SelfCorrecting,
    terms: CorrectionTerms,
    settings: Correction | str = "on",
    *,
    how: How = "auto",
    chunk: int = 0,
    state: dict[str, Any] | None = None,
) -> tuple[Prediction, CorrectionReport]:
    """The second half of :func:`correct`: from what the model's forward pass has given."""
    chosen = Correction.parse(settings)
    if chosen is None:
        raise UsageError("correction: the settings are off; call the model itself")
    skeleton = model.skeleton
    size = terms.pose.shape[:2]
    valid = terms.valid
    if chosen.masked:
        unknown = [joint for joint in chosen.masked if joint not in skeleton.joints]
        if unknown:
            raise UsageError("correction, masked: " + suggest(unknown[0], skeleton.joints, "joint"))
        seen = [joint not in chosen.masked for joint in skeleton.joints]
        valid = valid & torch.tensor(seen, device=valid.device)
    result = correct_poses(
        model.psi_c,
        model.psi_p,
        terms.pose.flatten(0, 1),
        terms.points.flatten(0, 1),
        to_mm=model.pose_to_mm,
        robust=[skeleton.index(joint) for joint in ROBUST_JOINTS],
        valid=valid.flatten(0, 1),
        bones=skeleton.bones,
        settings=chosen,
        how=how,
        chunk=chunk,
        state=state,
    )
    prediction = cast(Prediction, dict(terms.prediction))
    prediction["pred_3d"] = model.pose_to_mm(result.pose).reshape(*size, len(skeleton), 3)
    px = terms.points_px
    columns = (px * result.before, px * result.after, result.steps, result.moved_mm, result.kept)
    return prediction, CorrectionReport(*(column.reshape(size) for column in columns))


def check_correctable(model: Any) -> None:
    """Raises a ``UsageError`` where a model lacks what the correction needs."""
    if not isinstance(model, SelfCorrecting) or model.psi_c is None or model.psi_p is None:
        name = getattr(model, "zoo_name", "") or type(model).__name__
        raise UsageError(
            f"{name} has no 3D-to-2D projector to correct itself with; ssc has one (zoo list)"
        )


@contextmanager
def correcting(
    model: PoseModule,
    settings: Correction | str | None = None,
    report: Callable[[PoseBatch, CorrectionReport], None] | None = None,
) -> Iterator[None]:
    """Within the block ``model.estimate(batch)``, and with it ``stream``, is corrected.

    Args:
        model: any method; one that cannot be corrected is left alone unless ``settings`` ask for a
            correction.
        settings: see :meth:`Correction.parse`; None: the model's own (``model.correction``).
        report: called with each batch and what was done.

    Raises:
        UsageError: see :func:`correct`.
    """
    if settings is None:
        settings = getattr(model, "correction", "off")
    parsed = Correction.parse(settings)
    if parsed is None:
        yield
        return
    check_correctable(model)
    state: dict[str, Any] = {}

    def estimate(batch: PoseBatch, terms: CorrectionTerms | None) -> Prediction:
        """From the terms where the model has them already, as in a stream."""
        subject = cast(SelfCorrecting, model)
        if terms is None:
            prediction, done = correct(subject, batch, parsed, state=state)
        else:
            prediction, done = correct_terms(subject, terms, parsed, state=state)
        if report is not None:
            report(batch, done)
        return prediction

    before = model.corrector
    model.corrector = estimate
    try:
        yield
    finally:
        model.corrector = before


@dataclass(frozen=True)
class FrameCorrection:
    """What was done to one pose of ``predict``; see :class:`CorrectionReport`."""

    source: str
    frame: int
    person: int
    before_px: float
    after_px: float
    steps: int
    moved_mm: float
    kept: bool


def save_corrections(corrections: Sequence[FrameCorrection], path: str | Path) -> Path:
    """Writes one line a pose as CSV.

    Raises:
        zoo.errors.OutputError: the file cannot be written.
    """
    header = [field.name for field in fields(FrameCorrection)]
    return save_csv(header, [asdict(line).values() for line in corrections], path)


def save_csv(header: Sequence[str], lines: Iterable[Iterable[Any]], path: str | Path) -> Path:
    """Writes a CSV file: floats with four decimals, nothing for NaN, truth values as 0 and 1.

    Raises:
        zoo.errors.OutputError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in line] for line in lines)
    return write_atomically(Path(path), text.getvalue().encode())


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.4f}" if math.isfinite(value) else ""
    return int(value) if isinstance(value, bool) else value
