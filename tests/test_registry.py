"""`registry.yaml`, the recipes, sweeps and weight files agree with the code and with each other."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

import zoo
from zoo import registry
from zoo.base import PoseModule
from zoo.errors import MethodError, UsageError
from zoo.registry import (
    MethodRecord,
    create,
    dataset_class,
    dataset_names,
    get_method,
    list_models,
    resolve_class,
    resource,
    split_weight_name,
)

ROOT = Path(__file__).resolve().parent.parent

# The only keys in which `small` may differ from `paper`: sizes and schedules, never the mechanism.
# A new method adds its line here, so that every exception is seen in review.
SMALL_MAY_CHANGE_IN_MODEL: dict[str, set[str]] = {
    "zoo.methods.park:Park": {
        "image_size", "crop_size", "channels", "strides", "fc", "grid",  # sizes
        "epochs", "lr", "lr_halve_every", "lambda_switch",  # schedule
        "dropout",  # narrow layers want less
    },
    "zoo.methods.latent:LatentPose": {
        "image_size", "crop_size", "channels", "fc", "hidden", "backbone", "frozen_levels",
        "extra_channels", "extra_fc", "recurrent_hidden", "temporal_fc",  # sizes
        "unit_mm",  # of the regression's targets: Adam's steps do not shrink with the width
        "backbone_pretrained",  # small needs no download
        "detect_epochs", "direct_epochs", "layer_epochs", "ae_epochs", "regress_epochs",
        "finetune_epochs", "temporal_epochs",  # schedule
        "dropout",  # narrow layers want less
    },
    "zoo.methods.latent:LatentKDE": {
        "image_size", "crop_size", "channels", "fc", "input_dim", "output_dim",  # sizes
        "unit_mm",
        "detect_epochs", "direct_epochs", "kde_epochs",  # schedule
        "dropout",
    },
    "zoo.methods.rpsm:RPSM": {
        "image_size", "channels", "special_channels", "adaption_kernels", "adaption_fc",
        "hidden",  # sizes
        "crop_scale",  # that of the small cpm, whose trunk it can start from
        "pretrain_epochs", "pretrain_optimizer", "pretrain_lr", "pretrain_decay", "epochs", "lr",
        "schedule",  # schedule
    },
    "zoo.methods.ssc:SSC": {
        "image_size", "channels", "special_channels", "adaption_kernels", "adaption_fc", "hidden",
        "projector_width", "hourglass_width", "hourglass_depth",  # sizes
        "crop_scale",  # that of the small cpm, whose trunk it can start from
        "joint_dropout",  # a short training wants less
        "pose2d_epochs", "lift_epochs", "project_epochs", "joint_epochs", "lr", "joint_lr",
        "schedule",  # schedule
    },
    "zoo.methods.tome:LiftingFromTheDeep": {
        "image_size", "crop_scale", "channels", "head", "stages", "width", "kernel", "basis",
        "rotations",  # sizes
        "epochs", "warmup_epochs", "optimizer", "lr", "schedule", "bias_lr", "stage_lr",
        "fusion_lr",  # schedule
    },
}  # fmt: skip
SMALL_MAY_CHANGE = {
    "data": {"batch_size", "train_samples", "val_samples", "test_samples"},
    "trainer": {
        "max_epochs",
        "check_val_every_n_epoch",
        "log_every_n_steps",
        "gradient_clip_val",
    },
}

WITHOUT_DOWNLOADS = {"backbone_pretrained": False}


def own_records() -> dict[str, MethodRecord]:
    return {n: r for n in list_models() if (r := get_method(n)).origin == "zoo"}


NAMES = list(own_records())
RECIPES = [(name, recipe) for name, r in own_records().items() for recipe in r.recipes]
WEIGHTS = [(name, w.tag) for name, r in own_records().items() for w in r.weights]
PRIORS = registry.section("priors")
SWEEPS = sorted(p.name for p in resource("zoo/sweeps").glob("*.yaml"))


@cache
def recipe(name: str, kind: str) -> dict[str, dict[str, Any]]:
    path = resource(get_method(name).recipes[kind])
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict), path
    return {section: values or {} for section, values in content.items()}


def classes(record: MethodRecord) -> dict[str, type]:
    return {
        "model": resolve_class(record), "data": dataset_class(record.data), "trainer": pl.Trainer
    }  # fmt: skip


def check_keys(settings: dict[str, dict[str, Any]], record: MethodRecord) -> None:
    known = classes(record)
    assert set(settings) - {"seed_everything"} <= set(known)
    for section, cls in known.items():
        unknown = set(settings.get(section, {})) - set(inspect.signature(cls).parameters)
        assert not unknown, f"{section} has no argument {unknown}"


# ---- methods -------------------------------------------------------------------------------------


def test_there_is_something_to_test() -> None:
    assert "park" in NAMES
    assert ("park", "small") in RECIPES


@pytest.mark.parametrize("name", NAMES)
def test_every_class_resolves_and_its_arguments_exist(name: str) -> None:
    record = get_method(name)
    cls = resolve_class(record)
    assert issubclass(cls, PoseModule)
    assert set(record.args) <= set(inspect.signature(cls).parameters)
    with torch.device("meta"):  # the paper's sizes, but nothing is allocated
        model = create(name)
    assert model.zoo_name == name
    assert {k: model.hparams[k] for k in record.args} == dict(record.args)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_kebab_and_entries_are_complete(name: str) -> None:
    record = get_method(name)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert record.description
    assert record.paper.title
    assert record.paper.venue
    assert re.match(r"https://", record.paper.url)
    assert record.data in dataset_names()
    assert {"paper", "small"} <= set(record.recipes)


def test_no_two_names_are_the_same_method() -> None:
    keys = [(r.class_path, repr(sorted(r.args.items()))) for r in own_records().values()]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", dataset_names())
def test_every_data_set_resolves(name: str) -> None:
    assert issubclass(dataset_class(name), pl.LightningDataModule)


# ---- recipes and sweeps --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), RECIPES)
def test_recipes_hold_known_arguments_of_the_right_type_and_build(name: str, kind: str) -> None:
    record, settings = get_method(name), recipe(name, kind)
    check_keys(settings, record)
    parser = ArgumentParser(exit_on_error=False)
    for section, cls in classes(record).items():
        skip = {"input_spec"} if section == "data" else set()
        parser.add_class_arguments(cls, section, skip=skip, fail_untyped=False)
    parser.parse_object({k: v for k, v in settings.items() if k != "seed_everything"})
    arguments = {**settings.get("model", {}), **WITHOUT_DOWNLOADS}
    known = inspect.signature(resolve_class(record)).parameters
    with torch.device("meta"):
        model = create(name, **{k: v for k, v in arguments.items() if k in known})
    assert model.total_epochs > 0
    data = dataset_class(record.data)(**settings.get("data", {}))
    assert data.batch_size == settings.get("data", {}).get("batch_size", data.batch_size)


def effective(name: str, kind: str, section: str) -> dict[str, Any]:
    """Constructor defaults, then the registry's arguments, then the recipe."""
    record = get_method(name)
    parameters = inspect.signature(classes(record)[section]).parameters.values()
    defaults = {p.name: p.default for p in parameters}
    args = dict(record.args) if section == "model" else {}
    return {**defaults, **args, **recipe(name, kind).get(section, {})}


@pytest.mark.parametrize("section", ["model", "data", "trainer"])
@pytest.mark.parametrize("name", NAMES)
def test_small_differs_from_paper_in_sizes_and_schedule_only(name: str, section: str) -> None:
    if section == "model":
        path = get_method(name).class_path
        assert path in SMALL_MAY_CHANGE_IN_MODEL, f"say in this file what small may change: {path}"
        allowed = SMALL_MAY_CHANGE_IN_MODEL[path]
    else:
        allowed = SMALL_MAY_CHANGE[section]
    paper, small = effective(name, "paper", section), effective(name, "small", section)
    differ = {k for k in paper.keys() | small.keys() if paper.get(k) != small.get(k)}
    assert differ <= allowed


@pytest.mark.parametrize("path", SMALL_MAY_CHANGE_IN_MODEL)
def test_the_list_of_exceptions_is_no_longer_than_needed(path: str) -> None:
    names = [n for n in NAMES if get_method(n).class_path == path]
    assert names, "no method has this class any more"
    known = set(inspect.signature(resolve_class(get_method(names[0]))).parameters)
    assert SMALL_MAY_CHANGE_IN_MODEL[path] <= known


def test_every_recipe_file_belongs_to_a_name() -> None:
    used = {resource(get_method(n).recipes[k]) for n, k in RECIPES}
    assert set(resource("zoo/recipes").rglob("*.yaml")) == used


@pytest.mark.parametrize("file", SWEEPS)
def test_sweeps_turn_known_arguments_of_a_registered_method(file: str) -> None:
    sweep = yaml.safe_load((resource("zoo/sweeps") / file).read_text(encoding="utf-8"))
    words = sweep["command"]
    record = get_method(words[words.index("--method") + 1])
    if "--recipe" in words:
        assert words[words.index("--recipe") + 1] in record.recipes
    settings: dict[str, dict[str, Any]] = {}
    for key in sweep["parameters"]:
        section, _, argument = key.partition(".")
        settings.setdefault(section, {})[argument] = None
    check_keys(settings, record)
    assert re.fullmatch(r"val/\w+", sweep["metric"]["name"])


# ---- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tag"), WEIGHTS)
def test_weight_files_are_what_the_registry_says(name: str, tag: str) -> None:
    from zoo.checkpoint import read_stored

    weight = get_method(name).weight(tag)
    path = resource(weight.file)
    assert path.is_file()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == weight.sha256
    assert path.name == f"{name}.{tag}-{weight.sha256[:8]}.safetensors"
    assert weight.trained_on
    assert weight.license
    assert weight.command.startswith("zoo fit ")
    stored = read_stored(f"{name}.{tag}")
    assert stored.method == name
    model = zoo.load(f"{name}.{tag}")
    assert not model.training
    assert bool(model.statistics_fitted)
    sizes = SMALL_MAY_CHANGE_IN_MODEL[get_method(name).class_path]
    meant = {k: v for k, v in get_method(name).args.items() if k not in sizes}
    assert {k: model.hparams[k] for k in meant} == meant
    for result in weight.results:
        assert {"data", "protocol", "metric", "measured"} <= set(result)
        assert result["measured"] is None or result["measured"] > 0
    first = weight.results[0] if weight.results else None
    assert first is None or "synthetic" in first["data"] or "Human3.6M" in first["data"]


@pytest.mark.parametrize("name", PRIORS)
def test_prior_files_are_what_the_registry_says(name: str) -> None:
    entry = PRIORS[name]
    path = resource(entry["file"])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
    assert path.name == f"prior.{name}-{entry['sha256'][:8]}.safetensors"
    assert entry["trained_on"]
    assert entry["command"].startswith("zoo prior fit ")


def test_every_weight_file_belongs_to_a_name() -> None:
    used = {resource(get_method(n).weight(t).file) for n, t in WEIGHTS}
    used |= {resource(entry["file"]) for entry in PRIORS.values()}
    assert set(resource("checkpoints").glob("*.safetensors")) == used


# ---- wrong input ---------------------------------------------------------------------------------


def test_a_misspelt_method_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="no method 'prak'; did you mean park"):
        create("prak")


def test_a_misspelt_argument_suggests_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"no argument of park: 'lambda2d'; did you mean .*lambda_2d"
    ):
        create("park", lambda2d=0.1)


def test_a_misspelt_data_set_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="no data set 'syntetic'; did you mean synthetic"):
        dataset_class("syntetic")


def test_a_name_far_from_all_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"no method 'qqqqqq'; known: .*park"):
        get_method("qqqqqq")


def test_a_weight_tag_is_split_off_at_the_last_dot_only_after_a_name() -> None:
    assert split_weight_name("park") == ("park", None)
    assert split_weight_name("park.small") == ("park", "small")
    assert split_weight_name("prak.small") == ("prak.small", None)


def test_missing_weights_say_how_to_train() -> None:
    record = MethodRecord("new", "a:B")
    with pytest.raises(UsageError, match="zoo fit --method new --recipe small"):
        record.weight(None)
    with pytest.raises(UsageError, match="no new weights tagged 'tiny'"):
        record.weight("tiny")


def test_patterns_select_names() -> None:
    assert "park" in list_models("p*k")
    assert list_models("no-such-*") == []
    assert set(list_models(pretrained=True)) <= set(list_models())
    assert all(get_method(n).weights for n in list_models(pretrained=True))


@pytest.fixture
def planted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str | None], None]]:
    """Puts another text in the place of `registry.yaml`; None: the file is missing."""

    def forget() -> None:
        for cached in (registry._document, registry._own, registry._methods):
            cached.cache_clear()

    def plant(text: str | None) -> None:
        path = tmp_path / "registry.yaml"
        if text is not None:
            path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(registry, "resource", lambda relative: path)
        forget()

    yield plant
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: {park: [", "not valid YAML"),
        ("methods:\n\tpark: 1", "not valid YAML"),
        ("- park", "expected the sections"),
        ("", "expected the sections"),
        (None, "missing"),
        ("methods: {park: {description: no class}}", "entry 'park' is malformed"),
        ("methods: {park: {class: a:B, paper: {doi: 1}}}", "entry 'park' is malformed"),
        ("methods: {park: {class: a:B, weights: [{tag: x}]}}", "entry 'park' is malformed"),
        ("methods: {park: zoo.methods.park}", "entry 'park' is malformed"),
    ],
)
def test_a_broken_registry_is_one_line(
    planted: Callable[[str | None], None], text: str | None, message: str
) -> None:
    planted(text)
    with pytest.raises(MethodError, match=message) as caught:
        get_method("park")
    assert "registry.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("zoo.methods.gone:Park", "cannot import zoo.methods.gone:Park"),
        ("zoo.methods.park:Gone", "cannot import zoo.methods.park:Gone"),
        ("zoo.methods.park:ROOTS", "is not a zoo.PoseModule"),
        ("zoo.skeleton:Skeleton", "is not a zoo.PoseModule"),
        ("zoo.methods.park", "cannot import zoo.methods.park"),
    ],
)
def test_a_class_that_is_not_there_is_named(path: str, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        resolve_class(MethodRecord("new", path))
