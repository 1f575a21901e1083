"""``zoo fit|validate|test``: a thin LightningCLI whose classes come from the registry.

Precedence: constructor defaults < registry arguments < recipe < what a checkpoint or weight file
stored < ``--config`` < flags. Lightning lets a checkpoint's hyper-parameters override explicit
flags; here the parser's *defaults* are set from them instead, so flags win.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.tuner.tuning import Tuner
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.action_report import ActionReport
from callbacks.averaging import AveragedWeights
from callbacks.correction import SelfCorrection
from callbacks.early_stopping import StopInLastPhase
from callbacks.keep_best import KeepBest
from callbacks.keep_last import KeepLast, Stopped
from callbacks.model_card import ModelCard
from callbacks.paper_comparison import PaperComparison
from callbacks.phases import TrainingPhases
from callbacks.pose_figures import PoseFigures
from callbacks.time_left import CpuEstimate, TimeLeftBar
from zoo.base import PoseModule
from zoo.checkpoint import Stored, load_into, read_stored
from zoo.errors import UsageError, suggest
from zoo.files import write_atomically
from zoo.processor import SLOW_BFLOAT16, runs_bfloat16
from zoo.registry import MethodRecord, dataset_class, get_method, resolve_class
from zoo.request import RUN_VARIABLE, Request, recipe_settings
from zoo.runs import (
    LAST,
    PREVIOUS,
    AppendingCSVLogger,
    WholeCheckpointIO,
    check_writable,
    last_checkpoint,
    new_run,
    newest_run,
    one_line_disk_errors,
)
from zoo.sync_norm import SyncNorm
from zoo.tracking import log_checkpoints, remember_run, sweep_trial, wandb_logger

__all__ = ["ZooCLI", "check_gpus", "compile_parts", "find_lr", "run"]


def check_gpus(gpus: int | None) -> dict[str, Any]:
    """Trainer arguments for ``--gpus N``.

    Raises:
        UsageError: the machine has fewer GPUs.
    """
    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus is None:
        return {"accelerator": "gpu" if have else "cpu", "devices": 1}
    if gpus > have:
        raise UsageError(f"--gpus {gpus}: this machine has {have} (use --gpus {have})")
    if gpus == 0:
        return {"accelerator": "cpu", "devices": 1}
    return {
        "accelerator": "gpu", "devices": gpus, "strategy": "ddp" if gpus > 1 else "auto"
    }  # fmt: skip


_FIT_FLAGS: dict[str, dict[str, Any]] = {
    "--checkpoint_minutes": {
        "type": float, "default": 15.0, "help": "minutes between two last.ckpt within an epoch",
    },
    "--ema": {
        "type": float | None, "default": None,
        "help": "evaluate and save an exponential moving average of the weights: its decay",
    },
    "--early_stopping": {
        "type": int | None, "default": None,
        "help": "stop after so many validations without a lower val/mpjpe_mm, in the last phase",
    },
    "--compile": {
        "type": str | None, "default": None, "nargs": "?", "const": "inductor",
        "help": "compile the networks with torch.compile; may name a backend",
    },
    "--lr_find": {
        "type": bool, "default": False, "nargs": "?", "const": True,
        "help": "find the learning rate by a range test of the first phase, and train with it",
    },
    "--artifacts": {
        "type": bool, "default": False, "nargs": "?", "const": True,
        "help": "with --logger wandb: upload best.ckpt and last.ckpt at the end",
    },
}  # fmt: skip


class _Parser(LightningArgumentParser):
    """Reports a wrong flag as a one-line ``UsageError``."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        text = " ".join(str(ex or message).split())
        unknown = [w for w in text.split() if w.startswith("--")]
        if "nrecognized arguments" in text and unknown:
            flag = unknown[0].split("=")[0]
            known = [o for a in self._actions for o in a.option_strings]
            near = difflib.get_close_matches(flag, known, n=2, cutoff=0.6)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; see --help"
            raise UsageError(f"unknown flag {flag}{hint}")
        raise UsageError(text[:400])


def compile_parts(model: PoseModule, backend: str) -> None:
    """``torch.compile`` for the networks inside the method, in place: names and weights stay.

    The parts are compiled rather than the whole, because losses, logging and fitted parts are
    Python that gains nothing.

    Raises:
        UsageError: there is no such backend.
    """
    known = torch._dynamo.list_backends()
    if backend not in (*known, "eager"):
        raise UsageError(suggest(backend, [*known, "eager"], "backend of --compile"))
    for part in model.children():
        if next(part.parameters(), None) is not None:
            part.compile(backend=backend)


def find_lr(cli: ZooCLI) -> float:
    """Lightning's range test on the first phase; the method and its config get the rate.

    Raises:
        UsageError: the method has no argument ``lr``, or the loss shows no rate.
    """
    if "lr" not in cli.model.hparams:
        raise UsageError(f"--lr_find: {cli.record.name} has no argument lr")
    config = {k: v for k, v in cli.config_init["trainer"].items() if k != "fast_dev_run"}
    config |= {
        "callbacks": [TrainingPhases()], "logger": False, "enable_checkpointing": False,
        "enable_model_summary": False, "enable_progress_bar": False, "max_epochs": -1,
        "num_sanity_val_steps": 0,
    }  # fmt: skip
    trainer = cli.trainer_class(**config)
    tuner = Tuner(trainer)
    finder = tuner.lr_find(cli.model, datamodule=cli.datamodule, update_attr=False)
    rate = finder.suggestion() if finder is not None else None
    if rate is None:
        raise UsageError("--lr_find: the loss of the range test points at no rate; give --model.lr")
    cli.model.hparams["lr"] = rate
    cli.config["model"]["lr"] = rate
    cli.config["lr_find"] = False  # a resumed training has it already
    return float(rate)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


class ZooCLI(LightningCLI):
    """LightningCLI with classes, defaults and run folder taken from a :class:`Request`."""

    def __init__(self, request: Request, record: MethodRecord, run: Path, stored: Stored | None):
        self.request, self.record, self.run_folder, self.stored = request, record, run, stored
        self.dataset = request.dataset
        super().__init__(
            model_class=resolve_class(record),
            datamodule_class=dataset_class(self.dataset),
            save_config_callback=None if request.stage != "fit" else _SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=self._trainer_defaults(),
            seed_everything_default=0,
            parser_class=_Parser,
            args=[*request.rest, *self._protocol_flag()],
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def _protocol_flag(self) -> list[str]:
        """``--protocol NAME`` as the argument of the data module that chooses by it.

        Raises:
            UsageError: the data set has no protocol of that name.
        """
        name = self.request.protocol
        if not name:
            return []
        datamodule = dataset_class(self.dataset)
        if "protocol" not in inspect.signature(datamodule.__init__).parameters:
            raise UsageError(f"--data {self.dataset} has no protocols to choose from")
        return [f"--data.protocol={name}"]

    def _trainer_defaults(self) -> dict[str, Any]:
        defaults = check_gpus(self.request.gpus)
        defaults["default_root_dir"] = str(self.run_folder)
        return defaults

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """The parser, named after the subcommand."""
        return super().init_parser(prog=f"zoo {self.request.stage}", **kwargs)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds constructor arguments, then the defaults of registry, recipe and stored weights."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.add_class_arguments(self._model_class, "model", fail_untyped=False)
        parser.add_class_arguments(
            self._datamodule_class, "data", fail_untyped=False, skip={"input_spec"}
        )
        recipe = recipe_settings(self.record, self.request.recipe)
        layers = [
            {"trainer": {k: v for k, v in self.trainer_defaults.items() if k != "callbacks"}},
            {"model": dict(self.record.args)},
            recipe,
        ]
        if self.stored is not None:
            layers.append({"model": self.stored.args})
        for layer in layers:
            self._set_defaults(parser, layer)

    def _set_defaults(self, parser: LightningArgumentParser, settings: dict[str, Any]) -> None:
        for section, values in settings.items():
            if section == "seed_everything":
                parser.set_defaults({section: values})
                continue
            for key, value in (values or {}).items():
                if not any(a.dest == f"{section}.{key}" for a in parser._actions):
                    raise UsageError(
                        f"{self.record.name}, recipe {self.request.recipe}: "
                        f"{section} has no argument {key!r}"
                    )
                parser.set_defaults({f"{section}.{key}": value})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Records the names that select the classes, so that a saved config alone repeats a run."""
        for name, value in (
            ("method", self.record.name),
            ("recipe", self.request.recipe),
            ("dataset", self.dataset),
            ("logger", self.request.logger),
        ):
            parser.add_argument(f"--{name}", type=str, default=value, help=f"name of the {name}")
        if self.request.stage == "fit":
            for flag, options in _FIT_FLAGS.items():
                parser.add_argument(flag, **options)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses ``args``; errors are one line."""
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            parser.error(str(error), error)

    def instantiate_classes(self) -> None:
        """Model first; its ``input_spec`` tells the datamodule what to feed."""
        self.config_init = self.parser.instantiate_classes(self.config)
        self.model: PoseModule = self.config_init["model"]
        self.model.zoo_name = self.record.name
        self.datamodule = self.config_init["data"]
        self.datamodule.input_spec = self.model.input_spec
        if self.stored is not None:
            load_into(self.model, self.stored)
        if self.config.get("compile"):
            compile_parts(self.model, self.config["compile"])
        self.trainer = self.instantiate_trainer(**self._late_trainer_arguments())
        reduced = str(self.trainer.precision).startswith("bf16")
        if reduced and self.trainer.strategy.root_device.type == "cpu" and not runs_bfloat16():
            rank_zero_warn(SLOW_BFLOAT16)

    def _late_trainer_arguments(self) -> dict[str, Any]:
        trainer = self.config_init["trainer"]
        arguments: dict[str, Any] = {}
        if self.request.resume:  # the folder may have moved since
            arguments["default_root_dir"] = str(self.run_folder)
        if trainer.get("logger") in (None, True):
            arguments["logger"] = self._loggers()
        if trainer.get("max_epochs") is None and trainer.get("max_steps", -1) == -1:
            arguments["max_epochs"] = self.model.total_epochs
        arguments["callbacks"] = [*(trainer.get("callbacks") or []), *self._callbacks()]
        if not trainer.get("fast_dev_run") and self.save_config_callback is not None:
            saver = self.save_config_callback(self.parser, self.config, **self.save_config_kwargs)
            arguments["callbacks"].append(saver)
        return arguments

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Any:
        config["callbacks"] = [*config["callbacks"], *callbacks]
        config["plugins"] = [*_as_list(config.get("plugins")), WholeCheckpointIO()]
        if config.get("sync_batchnorm"):  # Lightning's own knows GPUs only
            config["sync_batchnorm"] = False
            config["plugins"].append(SyncNorm())
        try:
            return self.trainer_class(**config)
        except MisconfigurationException as error:  # such as devices that are not there
            raise UsageError(" ".join(str(error).split())) from error

    def _callbacks(self) -> list[Any]:
        trainer = self.config_init["trainer"]
        chosen: list[Any] = [ActionReport(json_path=self.request.json or None), PoseFigures()]
        if self.request.compare is not None:
            chosen.append(PaperComparison(self.record.name, self.request.compare))
        if trainer.get("enable_progress_bar") is not False:
            chosen.append(TimeLeftBar())
        if self.request.stage != "fit":
            # The method's own settings of a correction at test time (--model.correction).
            return [*chosen, SelfCorrection()] if hasattr(self.model, "correction") else chosen
        chosen += [TrainingPhases(), LearningRateMonitor(), ModelCard(self._facts())]
        if self.config["ema"] is not None:
            chosen.append(AveragedWeights(self.config["ema"]))
        if self.config["early_stopping"] is not None:
            chosen.append(StopInLastPhase(self.config["early_stopping"]))
        if self.request.recipe == "paper" and "small" in self.record.recipes:
            chosen.append(CpuEstimate(self.record.name, self.request.recipe))
        if trainer.get("enable_checkpointing") is not False and not trainer.get("fast_dev_run"):
            folder = self.run_folder / "checkpoints"
            chosen += _checkpoints(folder, self.config["checkpoint_minutes"])
        return chosen

    def _facts(self) -> dict[str, str]:
        paper = self.record.paper
        return {
            "paper": f"{paper.title} ({paper.authors}, {paper.venue}) {paper.url}",
            "recipe": self.request.recipe,
            "settings": "`config.yaml` beside this file repeats the run",
        }

    def _loggers(self) -> list[Logger]:
        loggers: list[Logger] = [AppendingCSVLogger(self.run_folder)]
        if self.request.logger == "wandb":
            loggers.append(wandb_logger(self.run_folder, self.record.name, self.config.as_dict()))
        return loggers


def _checkpoints(folder: Path, minutes: float) -> list[Checkpoint]:
    """``best.ckpt`` by validation, and ``last.ckpt`` to go on from."""
    best = KeepBest(folder)
    return [best, KeepLast(folder, minutes)]  # in this order: last.ckpt then knows the best value


class _SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` whole or not at all, and anew when a training is resumed."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with warnings.catch_warnings():  # a newer jsonargparse calls it skip_unset
            warnings.simplefilter("ignore")
            text = self.parser.dump(self.config, skip_none=False)  # nulls are settings, too
        write_atomically(Path(trainer.default_root_dir) / "config.yaml", text.encode())


def _locate(request: Request, record: MethodRecord) -> tuple[Path, Stored | None, str | None]:
    """(run folder, stored model or None, checkpoint for the trainer or None)."""
    root, stem = Path("runs"), f"{record.name}-{request.recipe}"
    run = Path(request.run) if request.run else None
    if request.stage == "fit":
        if request.resume:
            assert run is not None
            return _resumed(run, record)
        if request.ckpt_path:
            if request.ckpt_path == "last":
                run = run or newest_run(root, stem)
                path = last_checkpoint(run)
            else:
                path = Path(request.ckpt_path)
                run = run or path.resolve().parent.parent
            if request.weights:
                raise UsageError("--weights starts anew and --ckpt_path resumes: give one of them")
            return run, _of_method(read_stored(path), record), str(path)
        if run is not None and (run / "checkpoints" / "last.ckpt").exists():
            raise UsageError(
                f"{run} already holds a run; resume it with --ckpt_path last or name another --run"
            )
        run = run or sweep_trial(root, stem) or new_run(root, stem)
        return (
            run,
            (_of_method(read_stored(request.weights), record) if request.weights else None),
            None,
        )
    run = run or new_run(root, f"{record.name}-{request.stage}")
    source: str | Path = request.weights or request.ckpt_path
    if source == "last":
        run = Path(request.run) if request.run else newest_run(root, stem)
        source = last_checkpoint(run)
    if not source:
        record.weight(None)  # raises with the command that trains
        source = record.name
    return run, _of_method(read_stored(source), record), None


def _resumed(run: Path, record: MethodRecord) -> tuple[Path, Stored | None, str | None]:
    """``--resume RUN``; a run that was stopped before its first checkpoint begins anew."""
    folder = run / "checkpoints"
    if not any((folder / name).is_file() for name in (LAST, PREVIOUS)):
        return run, None, None
    path = last_checkpoint(run)
    return run, _of_method(read_stored(path), record), str(path)


def _of_method(stored: Stored, record: MethodRecord) -> Stored:
    from zoo.registry import get_method as method

    if method(stored.method).class_path != record.class_path:
        raise UsageError(
            f"{stored.path} holds {stored.method!r}, not {record.name!r}; "
            f"use --method {stored.method}"
        )
    return stored


# What Lightning says about itself at every start; a wrong flag should not drown in it.
_CHATTER = (
    "Seed set to",
    "GPU available",
    "TPU available",
    "HPU available",
    "`weights_only` was not set",  # the reader of zoo.runs sets it
    "\N{ELECTRIC LIGHT BULB} Tip",
)


def _quiet() -> None:
    """Drops Lightning's start-up notices and two warnings that no user can act on."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("lightning") and isinstance(logger, logging.Logger):
            logger.addFilter(lambda record: not record.getMessage().startswith(_CHATTER))
    # Lightning's own use of a deprecated torch function.
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")
    # Samples are rendered on the training device; workers would have next to nothing to do.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # It holds the run that is resumed.
    warnings.filterwarnings("ignore", ".*checkpoints exists and is not empty.*")


def _stopped(trainer: Trainer, stop: Stopped, folder: Path) -> int:
    """Says how to go on; the exit status is a shell's for that signal, or 0 for a helper."""
    if not trainer.is_global_zero:
        return 0  # a launcher takes anything else for a crash, and kills the first process
    print(f"{stop}; continue with: zoo fit --resume {folder}", file=sys.stderr)
    return 128 + stop.signum


def run(request: Request) -> int:
    """Runs ``zoo fit``, ``zoo validate`` or ``zoo test``; returns the exit status.

    Raises:
        ZooError: wrong input; nothing has been written then.
    """
    _quiet()
    stage, record = request.stage, get_method(request.method)
    check_gpus(request.gpus)
    helping = any(w in ("-h", "--help") or w.startswith("--print_config") for w in request.rest)
    if helping:
        folder, stored, checkpoint = Path("runs") / record.name, None, None
    else:
        # Lightning starts the other local ranks by running this command again: same folder there.
        if "LOCAL_RANK" in os.environ:
            request.run = request.run or os.environ.get(RUN_VARIABLE, "")
        folder, stored, checkpoint = _locate(request, record)
        os.environ[RUN_VARIABLE] = str(folder)
    cli = ZooCLI(request, record, folder, stored)
    cli.datamodule.prepare_data()  # checks the data's files before anything is written
    if cli.trainer.is_global_zero:
        check_writable(folder)
    with one_line_disk_errors(folder):
        remember_run(cli.trainer.loggers, folder)
        if stage == "fit":
            if cli.config["lr_find"] and checkpoint is None:
                rate = find_lr(cli)
                if cli.trainer.is_global_zero:
                    print(f"--lr_find: --model.lr {rate:.3g}")
            try:
                cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint)
            except Stopped as stop:
                return _stopped(cli.trainer, stop, folder)
            if cli.config["artifacts"]:
                log_checkpoints(cli.trainer.loggers, folder)
        else:
            getattr(cli.trainer, stage)(cli.model, datamodule=cli.datamodule, verbose=False)
    if cli.trainer.is_global_zero:
        print(f"run folder: {folder}")
    return 0
