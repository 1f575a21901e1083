"""``registry.yaml`` as frozen records; names to classes; third-party methods by entry point.

``registry.yaml`` is the only list of the zoo's own names. Methods of other packages arrive through
the entry-point group ``zoo.methods`` and end in the same records; one that cannot be imported is
listed with its error and breaks nothing else. A class is imported when its name is resolved, not
before.
"""

from __future__ import annotations

import fnmatch
import importlib
import importlib.metadata
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from zoo.errors import MethodError, UsageError, suggest

if TYPE_CHECKING:
    from zoo.base import PoseModule

__all__ = [
    "ENTRY_POINT_GROUP",
    "MethodRecord",
    "Paper",
    "WeightRecord",
    "create",
    "dataset_class",
    "dataset_names",
    "get_method",
    "list_models",
    "method_names",
    "records",
    "resolve_class",
    "resource",
    "section",
    "split_weight_name",
]

ENTRY_POINT_GROUP = "zoo.methods"


@dataclass(frozen=True)
class Paper:
    """The publication behind a method."""

    title: str = ""
    authors: str = ""
    venue: str = ""
    url: str = ""


@dataclass(frozen=True)
class WeightRecord:
    """One shipped weight file: where it is, what it was trained on, what it measured."""

    tag: str
    file: str
    sha256: str
    trained_on: str
    command: str = ""
    license: str = ""
    results: tuple[Mapping[str, Any], ...] = ()
    notes: str = ""


@dataclass(frozen=True)
class MethodRecord:
    """One registered name.

    Attributes:
        error: why the name cannot be used (a plugin that fails to import); empty otherwise.
        origin: ``zoo``, or the distribution that registered the name.
    """

    name: str
    class_path: str
    args: Mapping[str, Any] = field(default_factory=dict)
    data: str = "synthetic"
    recipes: Mapping[str, str] = field(default_factory=dict)
    paper: Paper = field(default_factory=Paper)
    input: str = "image"
    output: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[WeightRecord, ...] = ()
    description: str = ""
    origin: str = "zoo"
    error: str = ""

    def weight(self, tag: str | None) -> WeightRecord:
        """The weights tagged ``tag``, or the first ones.

        Raises:
            UsageError: there are none of that tag.
        """
        if tag is None:
            if not self.weights:
                raise UsageError(
                    f"{self.name} has no registered weights; train it with "
                    f"`zoo fit --method {self.name} --recipe small`, then use --ckpt_path"
                )
            return self.weights[0]
        for weight in self.weights:
            if weight.tag == tag:
                return weight
        raise UsageError(suggest(tag, [w.tag for w in self.weights], f"{self.name} weights tagged"))


def resource(relative: str) -> Path:
    """Path of a file that ships with the zoo: inside the package (wheel), else the repository root.

    Args:
        relative: path as ``registry.yaml`` writes it, from the repository root.
    """
    package = Path(__file__).resolve().parent
    inside = relative.removeprefix("zoo/")
    for candidate in (package / inside, package.parent / relative):
        if candidate.exists():
            return candidate
    return package.parent / relative


@lru_cache(maxsize=1)
def _document() -> dict[str, Any]:
    path = resource("registry.yaml")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MethodError(f"registry.yaml is missing ({path}); reinstall the zoo") from error
    except yaml.YAMLError as error:
        raise MethodError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise MethodError(f"{path}: expected the sections methods: and datasets:")
    return document


def section(name: str) -> dict[str, Any]:
    """A section of ``registry.yaml``, such as ``priors``; empty when there is none."""
    return dict(_document().get(name) or {})


def _record(name: str, entry: Mapping[str, Any], origin: str) -> MethodRecord:
    weights = tuple(
        WeightRecord(**{**w, "results": tuple(w.get("results", ()))})
        for w in entry.get("weights") or ()
    )
    known = {"data", "recipes", "input", "output", "description"}
    return MethodRecord(
        name=name,
        class_path=entry["class"],
        args=dict(entry.get("args") or {}),
        paper=Paper(**(entry.get("paper") or {})),
        weights=weights,
        origin=origin,
        **{k: v for k, v in entry.items() if k in known and v is not None},
    )


def _plugin_records(own: Mapping[str, MethodRecord]) -> dict[str, MethodRecord]:
    """Records of the entry points; a broken or clashing plugin gets ``error`` set."""
    records: dict[str, MethodRecord] = {}
    seen: set[tuple[str, str]] = set()
    # By distribution, so that who owns a disputed name does not depend on the file system.
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    for point in sorted(points, key=lambda p: (p.dist.name if p.dist else "", p.name)):
        if (point.name, point.value) in seen:  # the same distribution found twice on sys.path
            continue
        seen.add((point.name, point.value))
        origin = point.dist.name if point.dist is not None else "unknown distribution"
        if point.name in own or point.name in records:
            other = own.get(point.name) or records[point.name]
            name = f"{point.name}@{origin}"
            error = f"the name {point.name!r} is already registered by {other.origin}"
            records[name] = MethodRecord(name, point.value, origin=origin, error=error)
            continue
        try:
            cls = point.load()
            card = dict(getattr(cls, "zoo_card", None) or {})
            card["class"] = point.value
            record = _record(point.name, card, origin)
            resolve_class(record)
            records[point.name] = record
        except (Exception, SystemExit) as error:  # a plugin may raise anything; it is shown
            reason = str(error).strip().splitlines()
            text = f"{type(error).__name__}: {reason[0] if reason else 'no message'}"
            records[point.name] = MethodRecord(point.name, point.value, origin=origin, error=text)
    return records


@lru_cache(maxsize=1)
def _own() -> dict[str, MethodRecord]:
    records = {}
    for name, entry in (_document().get("methods") or {}).items():
        try:
            records[name] = _record(name, entry, "zoo")
        except (KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise MethodError(
                f"registry.yaml: the entry {name!r} is malformed ({reason})"
            ) from error
    return records


@lru_cache(maxsize=1)
def _methods() -> dict[str, MethodRecord]:
    return {**_own(), **_plugin_records(_own())}


def records() -> dict[str, MethodRecord]:
    """All records by name, those with an error too, in registry order; imports the plugins."""
    return dict(_methods())


def method_names() -> list[str]:
    """All registered names, in registry order, without importing any plugin."""
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return list(dict.fromkeys([*_own(), *(point.name for point in points)]))


def get_method(name: str) -> MethodRecord:
    """The record called ``name``.

    Raises:
        UsageError: unknown name (the message has the nearest ones).
        MethodError: the name belongs to a plugin that cannot be imported.
    """
    if name in _own():  # no plugin is imported for the zoo's own methods
        return _own()[name]
    if name not in method_names():
        raise UsageError(suggest(name, method_names(), "method"))
    record = _methods()[name]
    if record.error:
        raise MethodError(f"method {name!r} (from {record.origin}) cannot be used: {record.error}")
    return record


def split_weight_name(name: str) -> tuple[str, str | None]:
    """``NAME`` or ``NAME.TAG`` as (name, tag or None)."""
    if name in method_names():
        return name, None
    base, dot, tag = name.rpartition(".")
    return (base, tag) if dot and base in method_names() else (name, None)


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Names that match a shell pattern.

    Args:
        pattern: such as ``"tome*"``.
        pretrained: only names with registered weights.
    """
    return [
        name
        for name, record in _methods().items()
        if fnmatch.fnmatch(name, pattern)
        and not record.error
        and (record.weights or not pretrained)
    ]


def _import(class_path: str, what: str) -> Any:
    module, _, attribute = class_path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise MethodError(f"{what}: cannot import {class_path}: {error}") from error


def resolve_class(record: MethodRecord) -> type[PoseModule]:
    """Imports the class of a record.

    Raises:
        MethodError: the class cannot be imported or is no ``PoseModule``.
    """
    from zoo.base import PoseModule

    cls = _import(record.class_path, f"method {record.name!r}")
    if not (inspect.isclass(cls) and issubclass(cls, PoseModule)):
        raise MethodError(f"method {record.name!r}: {record.class_path} is not a zoo.PoseModule")
    return cls


def create(name: str, **args: Any) -> PoseModule:
    """An untrained model.

    Args:
        name: registry name.
        **args: constructor arguments over those of the registry.

    Raises:
        UsageError: unknown name or argument.
    """
    record = get_method(name)
    cls = resolve_class(record)
    known = inspect.signature(cls).parameters
    for key in args:
        if key not in known:
            raise UsageError(suggest(key, known, f"argument of {name}:"))
    model = cls(**{**record.args, **args})
    model.zoo_name = name
    return model


def dataset_names() -> list[str]:
    """Names that ``--data`` takes."""
    return list(_document().get("datasets") or {})


def dataset_class(name: str) -> Any:
    """The datamodule class registered as ``name``.

    Raises:
        UsageError: unknown name.
    """
    datasets = _document().get("datasets") or {}
    if name not in datasets:
        raise UsageError(suggest(name, datasets, "data set"))
    return _import(datasets[name], f"data set {name!r}")
