"""Staged training: runs the phases that a method declares, one after the other.

Lightning's order of a fit is: callbacks' ``setup``, the checkpoint's weights and callback states,
the strategy (which wraps the model and builds the optimisers), ``on_fit_start``, the checkpoint's
optimiser states. So the right phase is entered in ``setup`` and again in ``load_state_dict``: the
freeze pattern is then in place before the optimisers are built, and their states fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo.base import Phase, PoseModule
from zoo.errors import CheckpointError, UsageError, suggest

__all__ = ["TrainingPhases", "freeze_parameters", "set_modes"]


class TrainingPhases(pl.Callback):
    """Executes ``pl_module.phases()``.

    At the start of a phase: the best weights of the phase before are loaded (if it has a
    ``monitor``; lower is better), ``pl_module.phase`` is set, all parameters but those that the
    phase names are frozen (no gradient, their modules in eval mode, so that batch norm's statistics
    stand still), and optimisers and schedules are built anew by ``configure_optimizers``, with the
    phase's learning rate if it has one. With DDP the model is wrapped anew, so that exactly the
    parameters of the phase are synchronised.

    The phase, its best value and its best weights are part of the checkpoint: a resumed training
    continues as if it had not stopped. A phase of 0 epochs is left out. With ``max_epochs=-1`` the
    training ends with the last phase; beyond that, the last phase goes on.

    A method with one phase only gets ``phase`` set and the phase's learning rate.
    """

    def __init__(self) -> None:
        self._module: PoseModule | None = None
        self._phases: tuple[Phase, ...] = ()
        self._trainable: frozenset[str] = frozenset()
        self._index = 0
        self._best_value: float | None = None
        self._best_weights: dict[str, Tensor] = {}

    @property
    def phase(self) -> Phase:
        """The phase that is running, or ran last."""
        return self._phases[self._index]

    @property
    def best_value(self) -> float | None:
        """Lowest value of the running phase's ``monitor`` so far."""
        return self._best_value

    # ---- entering a phase -----------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Checks the phases and enters the first one."""
        if stage != "fit":
            return
        assert isinstance(pl_module, PoseModule)
        self._phases = tuple(phase for phase in pl_module.phases() if phase.epochs > 0)
        # What the method itself froze (constants kept as parameters) no phase sets free.
        self._trainable = frozenset(n for n, p in pl_module.named_parameters() if p.requires_grad)
        _check_phases(pl_module, self._phases, self._trainable)
        if len(self._phases) > 1 and not isinstance(
            trainer.strategy, DDPStrategy | SingleDeviceStrategy
        ):
            name = type(trainer.strategy).__name__
            raise UsageError(f"staged training runs on one device or with ddp, not with {name}")
        self._module = pl_module
        self._index = 0
        self._best_value, self._best_weights = None, {}
        self._enter()
        total = sum(phase.epochs for phase in self._phases)
        if trainer.max_epochs == -1 and trainer.max_steps == -1:
            trainer.fit_loop.max_epochs = total
        elif trainer.max_epochs is not None and trainer.max_epochs > total:
            rank_zero_info(
                f"the training phases have {total} epochs; {self._phases[-1].name!r} goes on until "
                f"epoch {trainer.max_epochs} (--trainer.max_epochs -1 stops with the phases)"
            )

    def _enter(self) -> None:
        """Sets ``phase`` and what has gradients; the modes follow when training starts."""
        module = self._module_in_fit()
        module.phase = self.phase
        freeze_parameters(module, self.phase.train, self._trainable)
        module.train()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives the first optimisers the phase's rate; a checkpoint then restores its own."""
        _set_learning_rate(trainer, self.phase.lr)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts frozen modules into eval mode, also when training resumes amid an epoch."""
        set_modes(self._module_in_fit(), self.phase.train)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Moves on to the phase of this epoch and logs its number (from 0)."""
        index = self._index_of(trainer.current_epoch)
        if index != self._index:
            self._load_best()
            self._index = index
            self._best_value, self._best_weights = None, {}
            self._enter()
            _wrap_again(trainer)
            trainer.strategy.setup_optimizers(trainer)
            _set_learning_rate(trainer, self.phase.lr)
            self._announce()
        elif trainer.current_epoch == 0 and len(self._phases) > 1:
            self._announce()
        # Whoever called train() since the phase began has woken batch norm and dropout.
        set_modes(self._module_in_fit(), self.phase.train)
        if len(self._phases) > 1:
            pl_module.log("phase", float(self._index), on_step=False, on_epoch=True, batch_size=1)

    def _module_in_fit(self) -> PoseModule:
        assert self._module is not None, "TrainingPhases.setup has not run"
        return self._module

    def _index_of(self, epoch: int) -> int:
        end = 0
        for index, phase in enumerate(self._phases):
            end += phase.epochs
            if epoch < end:
                return index
        return len(self._phases) - 1

    def _announce(self) -> None:
        parameters = list(self._module_in_fit().parameters())
        training = sum(p.numel() for p in parameters if p.requires_grad)
        every = sum(p.numel() for p in parameters)
        rank_zero_info(
            f"phase {self._index + 1}/{len(self._phases)} {self.phase.name!r}: {self.phase.epochs} "
            f"epochs, {training / 1e6:.2f} of {every / 1e6:.2f} million parameters train"
        )

    # ---- the best weights of a phase ------------------------------------------------------------

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps the weights if they are the best of the phase."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            monitor = self.phase.monitor or ""
            if not monitor.startswith("train/"):
                self._keep_if_best(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps the weights by a training key; such a key has no validation to wait for."""
        if (self.phase.monitor or "").startswith("train/"):
            self._keep_if_best(trainer)

    def _keep_if_best(self, trainer: pl.Trainer) -> None:
        """The last phase feeds none, so that its best weights are the checkpoint callback's job."""
        monitor = self.phase.monitor
        if monitor is None or self._index == len(self._phases) - 1:
            return
        if monitor not in trainer.callback_metrics:
            known = list(trainer.callback_metrics)
            raise UsageError(
                f"phase {self.phase.name!r} monitors: {suggest(monitor, known, 'logged key')}"
            )
        value = float(trainer.callback_metrics[monitor])
        # One decision for all processes, even where a key was logged without synchronisation.
        value = trainer.strategy.broadcast(value)
        if value < (float("inf") if self._best_value is None else self._best_value):
            module = self._module_in_fit()
            self._best_value = value
            frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
            # What is frozen cannot have changed; buffers (batch norm's statistics) can.
            self._best_weights = {
                name: tensor.detach().to("cpu", copy=True)
                for name, tensor in module.state_dict().items()
                if name not in frozen
            }

    def _load_best(self) -> None:
        if self.phase.monitor is None:
            return
        if self._best_value is None:
            rank_zero_warn(
                f"phase {self.phase.name!r}: {self.phase.monitor} was never measured; the next "
                "phase starts from its last weights"
            )
            return
        self._module_in_fit().load_state_dict(self._best_weights, strict=False)

    # ---- checkpoint -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the training stands, as numbers, names and tensors."""
        return {
            "names": [phase.name for phase in self._phases],
            "index": self._index,
            "best_value": self._best_value,
            "best_weights": self._best_weights,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Enters the phase that the checkpoint was written in.

        Raises:
            zoo.errors.CheckpointError: the method has other phases now.
        """
        if self._module is None:  # a test or validation: nothing is trained
            return
        names = [phase.name for phase in self._phases]
        if list(state_dict["names"]) != names:
            raise CheckpointError(
                f"the checkpoint was trained in the phases {', '.join(state_dict['names'])}, but "
                f"the method now has {', '.join(names)}; resume with the settings it was made with"
            )
        self._index = int(state_dict["index"])
        self._best_value = state_dict["best_value"]
        self._best_weights = dict(state_dict["best_weights"])
        self._enter()

    # ---- afterwards -----------------------------------------------------------------------------

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Sets free what the phase had frozen."""
        self._release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Sets free what the phase had frozen, so that the module can be trained again."""
        self._release()

    def _release(self) -> None:
        if self._module is not None:
            for name, parameter in self._module.named_parameters():
                parameter.requires_grad_(name in self._trainable)
            self._module = None


# ---- freezing -----------------------------------------------------------------------------------


def freeze_parameters(
    module: nn.Module, train: tuple[str, ...], allowed: frozenset[str] | None = None
) -> None:
    """Lets the parameters train whose name starts with one of ``train``; freezes the others.

    Args:
        module: changed in place.
        train: prefixes of parameter names; ``("",)`` is everything.
        allowed: names that may train at all; None allows all.
    """
    for name, parameter in module.named_parameters():
        trains = name.startswith(train) and (allowed is None or name in allowed)
        parameter.requires_grad_(trains)
        if not trains:
            parameter.grad = None


def set_modes(module: nn.Module, train: tuple[str, ...]) -> None:
    """Puts the module into train mode, and the parts that ``train`` does not name into eval mode.

    A part stays in train mode if it lies inside a prefix or contains something that does. One that
    owns neither parameters nor buffers (dropout, an activation) follows the module it stands in.
    """
    module.train()
    for frozen in _frozen(module, "", train):
        frozen.training = False


def _frozen(module: nn.Module, path: str, train: tuple[str, ...]) -> Iterator[nn.Module]:
    inside = path.startswith(train)
    around = any(prefix.startswith(path) for prefix in train)
    stateless = next(module.parameters(), None) is None and next(module.buffers(), None) is None
    if inside or stateless:
        return
    if around:
        for name, child in module.named_children():
            yield from _frozen(child, f"{path}{name}.", train)
    else:
        yield from module.modules()


def _check_phases(module: PoseModule, phases: tuple[Phase, ...], trainable: frozenset[str]) -> None:
    name = type(module).__name__
    if not phases:
        raise UsageError(f"{name} has no training phase with epochs; give one at least 1 epoch")
    for phase in phases:
        if not phase.train:
            raise UsageError(f"phase {phase.name!r} of {name} trains nothing")
        for prefix in phase.train:
            if not any(parameter.startswith(prefix) for parameter in trainable):
                known = {parameter.split(".")[0] for parameter in trainable}
                reason = suggest(prefix, known, "trainable parameter that starts with")
                raise UsageError(f"phase {phase.name!r} of {name}: {reason}")
    if len({phase.name for phase in phases}) < len(phases):
        raise UsageError(f"two phases of {name} have the same name")


# ---- optimisers ---------------------------------------------------------------------------------


def _set_learning_rate(trainer: pl.Trainer, lr: float | None) -> None:
    """Gives each optimiser's first group the rate ``lr``; other groups keep their ratio to it.

    A warm-up that the schedule has already applied, and the schedule's base rates, scale along.
    """
    if lr is None:
        return
    for optimizer in trainer.optimizers:
        first = optimizer.param_groups[0]
        base = float(first.get("initial_lr", first["lr"]))
        if base == lr:
            continue
        if base == 0:
            raise UsageError("a phase sets a learning rate, but the optimiser's own one is 0")
        _scale_rates(optimizer, lr / base)
        if "initial_lr" in first:
            first["initial_lr"] = lr
        else:
            first["lr"] = lr  # not lr / base * base, which may round
        for config in trainer.lr_scheduler_configs:
            if config.scheduler.optimizer is optimizer:
                _scale_schedule(config.scheduler, lr / base)


def _scale_rates(optimizer: Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        for key in ("lr", "initial_lr", "max_lr", "min_lr"):  # the last two: OneCycleLR
            if isinstance(group.get(key), float | int):
                group[key] *= factor
            elif isinstance(group.get(key), Tensor):  # a rate kept as a tensor, for torch.compile
                cast(Tensor, group[key]).mul_(factor)


def _scale_schedule(schedule: Any, factor: float) -> None:
    for key in ("base_lrs", "_last_lr"):
        if hasattr(schedule, key):
            setattr(schedule, key, [rate * factor for rate in getattr(schedule, key)])
    for part in getattr(schedule, "_schedulers", ()):  # SequentialLR, ChainedScheduler
        _scale_schedule(part, factor)


def _wrap_again(trainer: pl.Trainer) -> None:
    """A new DDP wrapper: it hooks the parameters that train when it is made, and no others."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and isinstance(
        strategy.model, nn.parallel.DistributedDataParallel
    ):
        assert strategy.lightning_module is not None
        # The old wrapper's hooks go with it, before the new ones are registered.
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()
