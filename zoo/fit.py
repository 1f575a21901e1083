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
import warnings
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.action_report import ActionReport
from callbacks.correction import SelfCorrection
from callbacks.paper_comparison import PaperComparison
from callbacks.phases import TrainingPhases
from callbacks.pose_figures import PoseFigures
from callbacks.time_left import CpuEstimate, TimeLeftBar
from zoo.base import PoseModule
from zoo.checkpoint import Stored, load_into, read_stored
from zoo.errors import UsageError
from zoo.processor import SLOW_BFLOAT16, runs_bfloat16
from zoo.registry import MethodRecord, dataset_class, get_method, resolve_class
from zoo.request import RUN_VARIABLE, Request, recipe_settings
from zoo.runs import (
    AppendingCSVLogger,
    check_writable,
    last_checkpoint,
    new_run,
    newest_run,
    one_line_disk_errors,
)

__all__ = ["ZooCLI", "check_gpus", "run"]


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


class ZooCLI(LightningCLI):
    """LightningCLI with classes, defaults and run folder taken from a :class:`Request`."""

    def __init__(self, request: Request, record: MethodRecord, run: Path, stored: Stored | None):
        self.request, self.record, self.run_folder, self.stored = request, record, run, stored
        self.dataset = request.dataset
        super().__init__(
            model_class=resolve_class(record),
            datamodule_class=dataset_class(self.dataset),
            save_config_callback=None if request.stage != "fit" else _save_config_class(),
            save_config_kwargs={"overwrite": True},
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
        ):
            parser.add_argument(f"--{name}", type=str, default=value, help=f"name of the {name}")

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
        self.trainer = self.instantiate_trainer(**self._late_trainer_arguments())
        reduced = str(self.trainer.precision).startswith("bf16")
        if reduced and self.trainer.strategy.root_device.type == "cpu" and not runs_bfloat16():
            rank_zero_warn(SLOW_BFLOAT16)

    def _late_trainer_arguments(self) -> dict[str, Any]:
        trainer = self.config_init["trainer"]
        arguments: dict[str, Any] = {}
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
        return self.trainer_class(**config)

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
        chosen += [TrainingPhases(), LearningRateMonitor()]
        if self.request.recipe == "paper" and "small" in self.record.recipes:
            chosen.append(CpuEstimate(self.record.name, self.request.recipe))
        if trainer.get("enable_checkpointing") is not False and not trainer.get("fast_dev_run"):
            chosen += _checkpoints(self.run_folder / "checkpoints")
        return chosen

    def _loggers(self) -> list[Logger]:
        loggers: list[Logger] = [AppendingCSVLogger(self.run_folder)]
        if self.request.logger == "wandb":
            loggers.append(_wandb_logger(self.run_folder, self.record.name, self.config.as_dict()))
        return loggers


def _checkpoints(folder: Path) -> list[ModelCheckpoint]:
    """``best.ckpt`` by validation, and ``last.ckpt`` after every epoch or at an interruption.

    Two callbacks, because one with ``save_last`` writes the last state only when it is the best one
    as well, and with ``save_on_exception`` puts the interrupted weights into the best one's file.
    """
    naming: dict[str, Any] = {"auto_insert_metric_name": False, "enable_version_counter": False}
    best = ModelCheckpoint(folder, "best", monitor="val/mpjpe_mm", **naming)
    last = ModelCheckpoint(folder, "last", save_on_exception=True, **naming)
    return [best, last]  # in this order: the last one's file then knows the best value


def _save_config_class() -> Any:
    from lightning.pytorch.cli import SaveConfigCallback

    return SaveConfigCallback


def _has_wandb_account() -> bool:
    """Whether an API key is at hand: in the environment, or where ``wandb login`` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return path.is_file() and "wandb" in path.read_text(errors="replace")


def _wandb_logger(run: Path, method: str, config: dict[str, Any]) -> Logger:
    try:
        import wandb  # noqa: F401
        from lightning.pytorch.loggers import WandbLogger
    except ImportError as error:
        raise UsageError("--logger wandb needs wandb: pip install 'pose-zoo[wandb]'") from error
    if not _has_wandb_account():
        # Without an account everything is still written, for a later `wandb sync`.
        os.environ.setdefault("WANDB_MODE", "offline")
    return WandbLogger(
        project=os.environ.get("WANDB_PROJECT", "zoo"),
        name=run.name,
        save_dir=str(run),
        tags=[method],
        config={k: config[k] for k in ("method", "recipe", "dataset", "model", "data")},
    )


def _locate(request: Request, record: MethodRecord) -> tuple[Path, Stored | None, str | None]:
    """(run folder, stored model or None, checkpoint for the trainer or None)."""
    root, stem = Path("runs"), f"{record.name}-{request.recipe}"
    run = Path(request.run) if request.run else None
    if request.stage == "fit":
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
        run = run or new_run(root, stem)
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
    check_writable(folder)
    with one_line_disk_errors(folder):
        if stage == "fit":
            cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint)
        else:
            getattr(cli.trainer, stage)(cli.model, datamodule=cli.datamodule, verbose=False)
    if cli.trainer.is_global_zero:
        print(f"run folder: {folder}")
    return 0
