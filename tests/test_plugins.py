"""Methods of other packages: pip-installed, listed, created, trained, loaded; broken ones shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.xdist_group("plugins")  # installed once
PLUGINS = Path(__file__).parent / "plugins"
EXAMPLE = Path(__file__).parent.parent / "examples" / "residual_lifter"

# Distributions that only register names: a clash with the zoo, one with another plugin, and a class
# that is no method.
CLASHES = """\
[zoo.methods]
park = zoo_linear_lifter:LinearLifter
broken-method = zoo_linear_lifter:LinearLifter
no-method = collections:OrderedDict
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment in which all plugins, and a distribution that clashes, are installed."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    packages = [str(p) for p in (PLUGINS / "linear_lifter", PLUGINS / "broken", EXAMPLE)]
    done = subprocess.run(
        [*pip, *options, *packages], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    info = target / "zoo_clashes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zoo-clashes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(CLASHES)
    path = os.pathsep.join(p for p in (str(target), os.environ.get("PYTHONPATH", "")) if p)
    return {"PYTHONPATH": path}


def python(code: str, environment: Mapping[str, str], folder: Path) -> Any:
    """Runs ``code`` in a new process and returns the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, cwd=folder,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


INSPECT = """
import json, sys
import zoo
from zoo.errors import ZooError
from zoo.registry import get_method, method_names, records, resolve_class

facts = {"names": method_names(), "imported": "zoo_broken" in sys.modules}
facts["records"] = {n: [r.origin, r.error] for n, r in records().items()}
facts["usable"] = zoo.list_models()
model = zoo.create("linear-lifter", hidden=8)
facts["created"] = [type(model).__module__, model.zoo_name, model.hparams["hidden"]]
facts["own"] = resolve_class(get_method("park")).__module__
facts["recipes"] = list(get_method("linear-lifter").recipes)
facts["errors"] = {}
for name in ("broken-method", "linear-liter", "no-method"):
    try:
        zoo.create(name)
    except ZooError as error:
        facts["errors"][name] = [type(error).__name__, str(error)]
from zoo.testing import check_method
check_method(type(model))
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts(installed: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return python(INSPECT, installed, tmp_path_factory.mktemp("inspect"))


def test_names_are_known_before_any_plugin_is_imported(facts: Any) -> None:
    assert {"park", "linear-lifter", "residual-lifter", "broken-method"} <= set(facts["names"])
    assert facts["imported"] is False


def test_a_plugin_is_created_like_any_method_and_passes_the_kit(facts: Any) -> None:
    assert facts["created"] == ["zoo_linear_lifter", "linear-lifter", 8]
    assert facts["records"]["linear-lifter"] == ["zoo-linear-lifter", ""]
    assert facts["recipes"] == ["paper", "small"]
    assert "linear-lifter" in facts["usable"]


def test_a_plugin_that_raises_on_import_is_listed_with_its_error_and_breaks_nothing(
    facts: Any,
) -> None:
    assert facts["records"]["broken-method"] == [
        "zoo-broken", "RuntimeError: zoo_broken was built for another machine",
    ]  # fmt: skip
    assert "broken-method" not in facts["usable"]
    kind, text = facts["errors"]["broken-method"]
    assert kind == "MethodError"
    assert "zoo-broken" in text
    assert "built for another machine" in text


def test_a_name_clash_is_an_error_entry_and_the_first_owner_keeps_the_name(facts: Any) -> None:
    assert facts["own"] == "zoo.methods.park"
    assert facts["records"]["park@zoo-clashes"] == [
        "zoo-clashes", "the name 'park' is already registered by zoo",
    ]  # fmt: skip
    # Between plugins the order of the distributions' names decides, not that of the file system.
    assert facts["records"]["broken-method"][0] == "zoo-broken"
    assert facts["records"]["broken-method@zoo-clashes"] == [
        "zoo-clashes", "the name 'broken-method' is already registered by zoo-broken",
    ]  # fmt: skip
    assert not {n for n in facts["usable"] if "@" in n}


def test_a_misspelt_plugin_name_suggests_it(facts: Any) -> None:
    kind, text = facts["errors"]["linear-liter"]
    assert kind == "UsageError"
    assert "did you mean linear-lifter" in text


def test_an_entry_point_that_is_no_method_says_so(facts: Any) -> None:
    kind, text = facts["errors"]["no-method"]
    assert kind == "MethodError"
    assert "not a zoo.PoseModule" in text
    assert "no-method" not in facts["usable"]


def test_zoo_list_shows_the_plugin_and_the_error(
    installed: Mapping[str, str], zoo_cli: Callable[..., Any]
) -> None:
    done = zoo_cli("list", env=installed)
    assert done.returncode == 0, done.stderr
    assert "linear-lifter" in done.stdout
    shown = " ".join(done.stdout.split())  # a narrow terminal folds lines
    assert "RuntimeError: zoo_broken was built for another machine" in shown
    assert "Traceback" not in done.stdout + done.stderr


LOAD = """
import json, sys
import torch, zoo
from zoo.testing import random_batch
model = zoo.load(sys.argv[1] if len(sys.argv) > 1 else "run/checkpoints/last.ckpt")
with torch.no_grad():
    pose = model(random_batch(model.input_spec, model.skeleton))["pred_3d"]
print(json.dumps({
    "class": type(model).__name__, "name": model.zoo_name, "training": model.training,
    "hidden": model.hparams["hidden"], "fitted": bool(model.statistics_fitted),
    "finite": bool(pose.isfinite().all()), "scale": float(model.scale_mm),
}))
"""


@pytest.mark.slow
def test_a_plugin_is_trained_by_the_command_line_and_loaded(
    installed: Mapping[str, str], zoo_cli: Callable[..., Any], tmp_path: Path
) -> None:
    done = zoo_cli(
        "fit", "--method", "linear-lifter", "--recipe", "small", "--data", "synthetic",
        "--gpus", "0", "--run", "run", "--model.hidden", "24", "--trainer.limit_train_batches", "3",
        "--trainer.limit_val_batches", "1", "--trainer.max_epochs", "1", "--data.batch_size", "8",
        env=installed, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    facts = python(LOAD, installed, tmp_path)
    assert facts["class"] == "LinearLifter"
    assert facts["name"] == "linear-lifter"
    assert facts["training"] is False
    assert facts["hidden"] == 24
    assert facts["fitted"]
    assert facts["finite"]
    assert 50 < facts["scale"] < 1000  # mm: fitted from the data's poses, not the first value
    assert facts["scale"] != 500.0


LEARNT = """
import json, sys
import torch, zoo
from datamodules.synthetic import SyntheticDataModule, render_batch
model = zoo.load("run/checkpoints/best.ckpt")
data = SyntheticDataModule(val_samples=200, input_spec=model.input_spec)
batch = render_batch(data.val_set.__getitems__(range(200)), model.input_spec)
def error(pose):
    return float((pose - batch["joints_3d"]).norm(dim=-1).mean())
with torch.no_grad():
    print(json.dumps({"model": error(model(batch)["pred_3d"]), "mean": error(model.mean_mm)}))
"""


@pytest.mark.slow
def test_the_example_learns_in_a_minute(
    installed: Mapping[str, str], zoo_cli: Callable[..., Any], tmp_path: Path
) -> None:
    done = zoo_cli(
        "fit", "--method", "residual-lifter", "--recipe", "small", "--gpus", "0", "--run", "run",
        "--model.hidden", "128", "--trainer.max_epochs", "3", "--data.train_samples", "4000",
        "--data.val_samples", "200", "--data.batch_size", "64",
        env=installed, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = python(LEARNT, installed, tmp_path)
    assert found["model"] < 0.6 * found["mean"]
