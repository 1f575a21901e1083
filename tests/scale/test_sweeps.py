"""``zoo sweep``: every method has one that W&B's own schema, engine and agent take."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import wandb
import yaml
from wandb import wandb_agent

from tests.scale.small_runs import class_names, quicker, rows
from tests.test_contract import own_names, tiny_arguments
from zoo.cli import main
from zoo.errors import UsageError
from zoo.registry import resource
from zoo.tracking import read_sweep

# The schema of the open-source package `sweeps` 0.3.0 (MIT, its licence is beside it).
SCHEMA = json.loads((Path(__file__).parent / "wandb_sweep_schema.json").read_text())
NAMES = own_names()
Expand = Callable[[dict[str, Any], dict[str, Any]], list[str]]


def draw(sweep: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A configuration, as a random search draws it."""
    values = {}
    for name, parameter in sweep["parameters"].items():
        if "values" in parameter:
            values[name] = rng.choice(parameter["values"])
        elif "value" in parameter:
            values[name] = parameter["value"]
        else:
            low, high = parameter["min"], parameter["max"]
            values[name] = low * (high / low) ** rng.random()
    return values


@pytest.fixture
def expand(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Expand:
    """The words that W&B's agent runs for a configuration, made by the agent itself."""
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "s1")  # the agent sets them; afterwards they are gone again
    trials = 0

    def words(sweep: dict[str, Any], values: dict[str, Any]) -> list[str]:
        nonlocal trials
        trials += 1
        started: list[list[str]] = []

        class Process:
            def __init__(self, command: list[str], **options: Any) -> None:
                started.append(command)

        monkeypatch.setattr(wandb_agent, "AgentProcess", Process)
        agent = wandb_agent.Agent.__new__(wandb_agent.Agent)
        agent._in_jupyter = agent._function = agent._forward_signals = None
        agent._sweep_command = list(sweep["command"])
        agent._run_processes = {}
        args = {name: {"value": value} for name, value in values.items()}
        agent._command_run({"args": args, "run_id": f"trial{trials}", "program": "zoo"})
        (command,) = started
        assert command[0] == "zoo"
        return command[1:]

    return words


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The whole configuration of a command line."""
    with pytest.raises(SystemExit) as end:
        main([*words, "--print_config", "--gpus", "0"])
    assert not end.value.code
    return dict(yaml.safe_load(capsys.readouterr().out))


# ---- the files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_a_sweep_that_wandb_accepts(name: str) -> None:
    sweep = read_sweep(name)
    jsonschema.validate(sweep, SCHEMA)
    command = sweep["command"]
    assert command[command.index("--method") + 1] == name
    assert sweep["parameters"]
    for key, parameter in sweep["parameters"].items():
        assert isinstance(parameter, dict)
        section, argument = key.split(".")
        assert (section, argument) != ("model", "epochs")  # trials of one length can be compared
    if sweep["method"] == "grid":
        assert all("values" in p for p in sweep["parameters"].values())
    assert sweep["metric"] == {"name": "val/mpjpe_mm", "goal": "minimize"}


def test_every_sweep_file_is_the_one_of_some_name() -> None:
    used = {json.dumps(read_sweep(n)["parameters"]) for n in NAMES}
    for path in resource("zoo/sweeps").glob("*.yaml"):
        sweep = yaml.safe_load(path.read_text())
        assert json.dumps(sweep["parameters"]) in used, path


def test_the_schema_refuses_what_wandb_would() -> None:
    sweep = read_sweep("park")
    sweep["parameters"]["model.lr"] = {"min": "1e-5", "max": 0.1}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(sweep, SCHEMA)


# ---- the command --------------------------------------------------------------------------------


def test_lists_nulls_and_small_numbers_survive_the_agent(
    expand: Expand, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = read_sweep("latent-ae", extra=["--data.train_samples", "77"])
    values = {
        "model.hidden": [7, 9], "model.backbone": None, "model.lr": 1e-05, "model.noise": [3.5],
        "model.causal": True, "data.mocap": None,
    }  # fmt: skip
    config = printed(expand(sweep, values), capsys)
    model, data = config["model"], config["data"]
    assert (model["hidden"], model["backbone"], model["lr"]) == ([7, 9], None, 1e-05)
    assert (model["noise"], model["causal"]) == ([3.5], True)
    assert (data["mocap"], data["train_samples"]) == (None, 77)
    assert config["method"] == "latent-ae"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_drawn_configurations_are_arguments_of_the_method(
    name: str, expand: Expand, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = read_sweep(name)
    values = draw(sweep, random.Random(name))
    config = printed(expand(sweep, values), capsys)
    for key, value in values.items():
        section, argument = key.split(".")
        assert config[section][argument] == value


@pytest.mark.slow
@pytest.mark.parametrize("name", class_names())
def test_two_trials_of_two_epochs_log_the_metric(
    name: str, expand: Expand, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicker(monkeypatch)
    Path("tiny.json").write_text(json.dumps({"model": tiny_arguments(name)}))
    extra = (
        "--config tiny.json --data.train_samples 16 --data.batch_size 8 --data.val_samples 4 "
        "--data.bodies_per_subject 1 --gpus 0 --trainer.max_epochs 2 "
        "--trainer.enable_progress_bar false --trainer.enable_model_summary false"
    )
    sweep = read_sweep(name, extra=extra.split())
    rng = random.Random(3)
    for trial in (1, 2):
        values = {k: v for k, v in draw(sweep, rng).items() if "epochs" not in k}
        monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
        command = expand(sweep, values)
        wandb.teardown()  # what the agent has set is read when a process begins
        try:
            assert main(command) == 0
        finally:
            wandb.finish()
            wandb.teardown()  # forgets the trial
        run = Path("runs") / f"{name}-small-trial{trial}"  # agents side by side share no folder
        assert len(rows(run, sweep["metric"]["name"])) == 2
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert {k: config["model"][k.split(".")[1]] for k in values} == values
        assert list(run.glob(f"wandb/offline-run-*-trial{trial}"))


# ---- creating one -------------------------------------------------------------------------------


class FakeWandb:
    """Keeps what would have been sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    def sweep(self, sweep: dict[str, Any], project: str, entity: str | None) -> str:
        self.sent.append((sweep, project, entity))
        return "abc123"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    api = FakeWandb()
    monkeypatch.setattr(wandb, "sweep", api.sweep)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.delenv("WANDB_MODE")
    return api


def test_it_is_created_and_the_agents_command_printed(
    fake: FakeWandb, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "park", "--project", "poses", "--entity", "lab", "--", "--data.flip", "0.5"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "wandb agent lab/poses/abc123"
    ((sweep, project, entity),) = fake.sent
    assert (project, entity) == ("poses", "lab")
    assert sweep == read_sweep("park", extra=["--data.flip", "0.5"])
    jsonschema.validate(sweep, SCHEMA)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["parc"], "park"),
        (["park", "--recipe", "big"], "recipe"),
        (["park", "--file", "none.yaml"], "No such file"),
        (["park", "--projct", "p"], "--projct"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], said: str, fake: FakeWandb, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not fake.sent


def test_offline_and_refused_are_one_line(
    fake: FakeWandb, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(wandb, "sweep", refuse)
    assert main(["sweep", "park"]) == 2
    assert "did not create the sweep: no route to host" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["sweep", "park"]) == 2
    error = capsys.readouterr().err
    assert "offline" in error
    assert "--print" in error
    assert main(["sweep", "park", "--print"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == read_sweep("park")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", "none")
    assert main(["sweep", "park"]) == 2
    assert "wandb login" in capsys.readouterr().err


def test_names_of_one_paper_share_a_file() -> None:
    whole, single = read_sweep("tome-mixture"), read_sweep("tome-single")
    assert "model.components" in whole["parameters"]
    assert "model.components" not in single["parameters"]  # it is what makes the name
    with pytest.raises(UsageError, match="did you mean"):
        read_sweep("tome-mixtur")


# ---- the engine ---------------------------------------------------------------------------------

ENGINE = """
import json, sys
from sweeps import SweepRun, next_run
from sweeps.config import schema_violations_from_proposed_config
for sweep in json.load(sys.stdin):
    bad = schema_violations_from_proposed_config(sweep)
    assert not bad, (sweep["name"], bad)
    runs = []
    for _ in range(3):
        run = next_run(sweep, runs)
        assert run is not None and run.config, sweep["name"]
        runs.append(SweepRun(config=run.config, state="finished",
                             summary_metrics={sweep["metric"]["name"]: 1.0}))
    drawn = [json.dumps(run.config, sort_keys=True) for run in runs]
    assert len(set(drawn)) > 1, sweep["name"]
print("ok")
"""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_open_source_engine_draws_configurations(tmp_path: Path) -> None:
    """In an environment of its own, since it needs NumPy 1.

    ``ZOO_SWEEPS_PYTHON`` may name a Python that has ``sweeps``; otherwise one is made with pip.
    """
    python = os.environ.get("ZOO_SWEEPS_PYTHON", "")
    if not python:
        python = str(tmp_path / "env" / "bin" / "python")
        subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "sweeps"]
        if subprocess.run(pip, check=False, capture_output=True, timeout=500).returncode:
            pytest.skip("sweeps cannot be installed: no package index")
    sweeps = json.dumps([read_sweep(name) for name in NAMES])
    done = subprocess.run(
        [python, "-c", ENGINE], input=sweeps, text=True, capture_output=True, check=False
    )
    assert done.stdout.strip() == "ok", done.stderr[-2000:]
