"""What the user asked ``zoo fit|validate|test`` for, before anything heavy is imported.

Names, recipes and configuration files are checked here, so that a typing error is answered at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import UsageError, suggest
from zoo.protocols import get_protocol
from zoo.registry import MethodRecord, dataset_names, get_method, resource

__all__ = ["RUN_VARIABLE", "Request", "flags_help", "parse_request", "recipe_settings"]

LOGGERS = ("csv", "wandb")
RUN_VARIABLE = "ZOO_RUN_FOLDER"


@dataclass
class Request:
    """The zoo's own flags, taken off the command line before LightningCLI sees the rest."""

    stage: str
    method: str = ""
    recipe: str = "paper"
    dataset: str = ""
    gpus: int | None = None
    weights: str = ""
    logger: str = "csv"
    run: str = ""
    resume: bool = False
    ckpt_path: str = ""
    json: str = ""
    protocol: str = ""
    compare: str | None = None
    rest: list[str] = field(default_factory=list)


_OWN = {
    "--method": "method", "--recipe": "recipe", "--data": "dataset", "--dataset": "dataset",
    "--gpus": "gpus", "--weights": "weights", "--logger": "logger", "--run": "run",
    "--resume": "run", "--ckpt_path": "ckpt_path", "--json": "json", "--protocol": "protocol",
    "--compare": "compare",
}  # fmt: skip

_HELP: dict[str, tuple[str, tuple[str, ...]]] = {
    "--method NAME": ("a name of `zoo list`", ()),
    "--recipe NAME": ("paper (default), small, or another of the method's", ()),
    "--data NAME": ("the data set; default: synthetic", ()),
    "--gpus N": ("0 = CPU; default: one if there is one", ()),
    "--weights NAME|FILE": ("start from these weights, or measure them", ()),
    "--ckpt_path last|FILE": ("go on from, or measure, a run's checkpoint", ()),
    "--resume RUN": ("go on with the run in this folder, its settings included", ("fit",)),
    "--run DIR": ("folder of the run; default: a new one under runs/", ()),
    "--logger csv|wandb": ("wandb: W&B as well, offline without an account", ()),
    "--protocol NAME": ("what is measured, see docs/protocols.md", ("validate", "test")),
    "--compare [TABLE]": ("print the papers' table beside the result", ("test",)),
    "--json FILE": ("write the report as JSON, too", ("validate", "test")),
}


def flags_help(stage: str) -> str:
    """The zoo's own flags of ``zoo fit|validate|test``, one a line."""
    rows = {flag: text for flag, (text, only) in _HELP.items() if not only or stage in only}
    width = max(map(len, rows))
    lines = [f"  {flag:<{width}}  {text}" for flag, text in rows.items()]
    return (
        f"usage: zoo {stage} --method NAME ...\n\n" + "\n".join(lines) + "\n\n"
        f"Every argument of the method, the data set and the trainer is a flag as well\n"
        f"(--model.lr, --data.batch_size, --trainer.precision): zoo {stage} --method NAME --help"
    )


def parse_request(stage: str, argv: Sequence[str]) -> Request:
    """Splits the zoo's own flags from those of the constructors.

    ``method``, ``recipe`` and ``dataset`` may also stand in a ``--config`` file.

    Raises:
        UsageError: a flag has no value or a value of the wrong kind; a name is unknown.
        MethodError: the method is a plugin that cannot be used.
    """
    request, given = Request(stage), set()
    words = list(argv)
    configs: list[str] = []
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if flag not in _OWN:
            request.rest.append(word)
            if flag in ("-c", "--config"):
                configs.append(value if equals else (words[0] if words else ""))
            continue
        if not equals:
            bare = not words or words[0].startswith("--")
            if bare and flag != "--compare":  # which may stand alone: the tables that fit
                raise UsageError(f"{flag} needs a value")
            value = "" if bare else words.pop(0)
        given.add(_OWN[flag])
        if flag == "--gpus":
            if not value.isdigit():
                raise UsageError(f"--gpus takes a number of GPUs (0 = CPU), not {value!r}")
            request.gpus = int(value)
        else:
            setattr(request, _OWN[flag], value)
        request.resume = request.resume or flag == "--resume"
    if request.resume:
        configs.insert(0, _config_of_run(request, given))
    for path in reversed(configs):  # the last file that says something wins
        content = read_yaml(path)
        for key in ("method", "recipe", "dataset", "logger"):
            if key in content and key not in given:
                setattr(request, key, str(content[key] or ""))
                given.add(key)
    if request.logger not in LOGGERS:
        raise UsageError(suggest(request.logger, LOGGERS, "logger"))
    _check_evaluation(request)
    if not request.method:
        raise UsageError(f"zoo {stage} needs --method NAME; `zoo list` shows the names")
    record = get_method(request.method)
    recipe_settings(record, request.recipe)
    request.dataset = request.dataset or record.data
    if request.dataset not in dataset_names():
        raise UsageError(suggest(request.dataset, dataset_names(), "data set"))
    return request


def _check_evaluation(request: Request) -> None:
    """``--protocol`` and ``--compare`` name what exists, where they mean something."""
    if request.protocol:
        if request.stage == "fit":
            raise UsageError(
                "--protocol belongs to zoo validate and zoo test; training takes its subjects from "
                "--data.protocol, where the data set has one"
            )
        get_protocol(request.protocol)
    if request.compare is None:
        return
    if request.stage != "test":
        raise UsageError("--compare belongs to zoo test: it sets the result beside a paper's table")
    if request.compare:
        from zoo.paper_tables import get_table

        get_table(request.compare)


def _config_of_run(request: Request, given: set[str]) -> str:
    """``--resume RUN``: the run's own configuration, below all flags of this command.

    Raises:
        UsageError: RUN is no run folder, or another flag says where to begin, too.
    """
    if request.stage != "fit":
        raise UsageError(f"zoo {request.stage} takes --ckpt_path FILE; --resume continues a fit")
    for flag in ("weights", "ckpt_path"):
        if flag in given:
            raise UsageError(f"--resume says where to go on, and so does --{flag}: give one")
    path = Path(request.run) / "config.yaml"
    if not path.is_file():
        raise UsageError(
            f"--resume {request.run}: no run there ({path} is missing); give the folder that "
            "`zoo fit` printed, such as runs/park-small"
        )
    request.rest[:0] = ["--config", str(path)]
    return str(path)


def read_yaml(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = str(error).replace("\n", " ")
        raise UsageError(f"--config {path} is not valid YAML: {line}") from error
    if not isinstance(content, dict):
        raise UsageError(f"--config {path}: expected keys such as model:, data:, trainer:")
    return content


def recipe_settings(record: MethodRecord, recipe: str) -> dict[str, Any]:
    """The recipe's ``model``, ``data`` and ``trainer`` sections.

    Raises:
        UsageError: the method has no recipe of that name.
    """
    if not record.recipes and recipe == "paper":
        return {}
    if recipe not in record.recipes:
        raise UsageError(suggest(recipe, record.recipes, f"{record.name} recipe"))
    return read_yaml(str(resource(record.recipes[recipe])))
