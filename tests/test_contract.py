"""Every registered name keeps the contract of ``PoseModule``: the kit of ``zoo.testing``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import timm

import zoo.testing
from zoo.base import PoseModule
from zoo.registry import get_method, list_models, resolve_class
from zoo.testing.files import check_fit
from zoo.testing.loss import check_learns

TRAINING = (check_fit, check_learns)


def own_names() -> list[str]:
    """The names of this package; what else is installed here is not ours to test."""
    return [name for name in list_models() if get_method(name).origin == "zoo"]


@cache
def tiny_arguments(name: str) -> dict[str, Any]:
    """The arguments of ``tiny()``, and over them what makes this name differ from its siblings."""
    record = get_method(name)
    args = dict(record.args)
    if args.get("backbone"):  # the same code path without 25 million parameters
        args["backbone"] = "test_resnet" if timm.is_model("test_resnet") else "resnet10t"
    return {**resolve_class(record).tiny().hparams, **args}


def factory(name: str) -> Callable[[], PoseModule]:
    cls = resolve_class(get_method(name))
    arguments = tiny_arguments(name)  # here, because tiny() draws random numbers
    return lambda: cls(**arguments)


def cases() -> list[Any]:
    """Names times checks; whole trainings once a class, and for the other names marked."""
    seen: set[str] = set()
    found = []
    for name in own_names():
        path = get_method(name).class_path
        for check in zoo.testing.CHECKS:
            again = path in seen and check in TRAINING
            marks = [pytest.mark.slow, pytest.mark.exhaustive] if again else []
            found.append(pytest.param(name, check, id=f"{name}-{check.__name__}", marks=marks))
        seen.add(path)
    return found


@pytest.mark.parametrize(("name", "check"), cases())
def test_method_keeps_the_contract(name: str, check: Callable[[zoo.testing.Factory], None]) -> None:
    check(factory(name))


@pytest.mark.parametrize("name", own_names())
def test_registry_says_what_the_method_wants_and_gives(name: str) -> None:
    record, model = get_method(name), factory(name)()
    spec = model.input_spec
    kinds = {spec.kind} | ({"clip"} if spec.frames > 1 else set())
    assert record.input in kinds
    assert record.output == {
        "skeleton": model.skeleton_name, "frame": "camera", "root": model.skeleton.root,
        "unit": "mm",
    }  # fmt: skip
