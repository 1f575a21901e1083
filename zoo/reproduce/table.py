"""A paper's table as data: rows, shared steps, the paper's numbers, claims.

A table is a file ``zoo/tables/NAME.yaml``; ``zoo reproduce NAME`` runs it (``zoo.reproduce``). This
module reads such files, decides claims from measured numbers and writes the Markdown page.

A claim "A has a lower error than B" is decided by the paired differences of the seeds: if the 95 %
t-interval of their mean excludes zero it holds or does not hold, else it is undecided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import UsageError, suggest
from zoo.registry import get_method, resource

__all__ = ["Claim", "Table", "Training", "read_table", "table_names"]


@dataclass(frozen=True)
class Training:
    """One training of a table: a row, or a step that several rows share.

    Attributes:
        name: short name of the row or step; part of file names and flags.
        label: what the paper calls it.
        method: registry name.
        recipe: the recipe that ``model``, ``data`` and ``trainer`` settings go on top of; the value
            ``{seed}`` stands for the seed.
        dataset: registry name of the data; empty = the method's own.
        epochs: length of the training, checked against the run; images an epoch follow from it.
        images: of a shared step, if it sees others than the rows: training images over all epochs.
        frames: images of a sample, for methods that are fed clips and predict all of their frames.
        weights: name of the shared step that this training starts from.
        test_of: a row that trains nothing: name of the shared step whose weights it tests, with its
            own ``model`` settings on top of what they were trained with. Its ``epochs`` are those
            of that step.
        command: a shared step that is no training: the words of a ``zoo`` command, in which
            ``{run}`` stands for the step's folder and ``{seed}`` for the seed.
        output: what a shared step hands on, from its run folder. Rows get it through ``weights`` or
            as ``{NAME}`` inside a value of ``model`` or ``data``.
        paper: the paper's numbers by metric; ``actions`` has MPJPE by action.
    """

    name: str
    method: str
    epochs: int
    images: int = 0
    frames: int = 1
    label: str = ""
    recipe: str = "small"
    dataset: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    test_of: str = ""
    command: tuple[str, ...] = ()
    output: str = "checkpoints/best.ckpt"
    paper: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the shared steps whose output this training reads."""
        values = [v for v in (*self.model.values(), *self.data.values()) if isinstance(v, str)]
        named = [v[1:-1] for v in values if v.startswith("{") and v.endswith("}")]
        names = [self.weights, self.test_of, *(name for name in named if name != "seed")]
        return tuple(dict.fromkeys(name for name in names if name))


@dataclass(frozen=True)
class Claim:
    """One comparison: ``better`` is said to have a lower ``metric`` than ``worse``.

    Claims with the same ``text`` are one claim of the paper, compared in several pairs of rows.
    """

    text: str
    better: str
    worse: str
    metric: str = "mpjpe_mm"


@dataclass(frozen=True)
class Table:
    """A paper's table.

    Attributes:
        images: training images that every row sees, over all its epochs.
        paper_data: what the paper's numbers were measured on.
        metrics: keys of the test report to show.
    """

    name: str
    title: str
    paper: str
    paper_data: str
    images: int
    rows: tuple[Training, ...]
    shared: tuple[Training, ...] = ()
    metrics: tuple[str, ...] = ("mpjpe_mm", "pa_mpjpe_mm", "n_mpjpe_mm")
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()

    def row(self, name: str) -> Training:
        """The row called ``name``.

        Raises:
            UsageError: there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise UsageError(suggest(name, [r.name for r in self.rows], f"row of {self.name}:"))


# ---- reading -------------------------------------------------------------------------------------


def table_names() -> list[str]:
    """Names that ``zoo reproduce`` takes."""
    return sorted(path.stem for path in resource("zoo/tables").glob("*.yaml"))


def read_table(name: str) -> Table:
    """Reads ``zoo/tables/NAME.yaml``, or the file ``name`` if it ends in ``.yaml``.

    Raises:
        UsageError: no such table, or a key, name or value in it is wrong.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in table_names():
            raise UsageError(suggest(name, table_names(), "table"))
        path = resource("zoo/tables") / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"table {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise UsageError(f"table {path} is not valid YAML: {line}") from error
    if not isinstance(content, dict):
        raise UsageError(f"table {path}: expected keys such as title:, base:, rows:")
    return _table(path, content)


def _table(path: Path, content: dict[str, Any]) -> Table:
    where = f"table {path.stem}"
    base = content.pop("base", None) or {}
    without = ("name", "label", "paper", "command", "images")
    _known(base, Training, f"{where}, base", without=without)
    trainings: dict[str, tuple[Training, ...]] = {}
    for group in ("shared", "rows"):
        entries = content.pop(group, None) or []
        trainings[group] = tuple(_training(base, entry, f"{where}, {group}") for entry in entries)
    claims = tuple(
        Claim(**_known(entry, Claim, f"{where}, claims"))
        for entry in content.pop("claims", None) or []
    )
    for key in ("metrics", "notes"):
        if key in content:
            content[key] = tuple(content[key])
    content.update(trainings, claims=claims, name=path.stem)
    table = Table(**_known(content, Table, where))
    _check(table, where)
    return table


def _training(base: Mapping[str, Any], entry: Any, where: str) -> Training:
    name = str(entry.get("name", "")) if isinstance(entry, dict) else ""
    merged = {**base, **_as_dict(entry, where)}
    for section in ("model", "data", "trainer"):
        merged[section] = {**(base.get(section) or {}), **(entry.get(section) or {})}
    merged["command"] = tuple(merged.get("command") or ())
    training = Training(**_known(merged, Training, f"{where} {name}".strip()))
    if not name or not all(c.isalnum() or c in "-_+." for c in name):
        raise UsageError(f"{where}: name {name!r} must be letters, digits and - _ + .")
    get_method(training.method)
    if training.epochs < 1:
        raise UsageError(f"{where} {name}: epochs must be at least 1, not {training.epochs}")
    if training.frames < 1:
        raise UsageError(f"{where} {name}: frames must be at least 1, not {training.frames}")
    return training


def _as_dict(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: expected keys and values, not {entry!r}")
    return entry


def _known(entry: Any, kind: Any, where: str, without: Sequence[str] = ()) -> dict[str, Any]:
    """``entry`` itself, once its keys are those of the dataclass ``kind``."""
    entry = _as_dict(entry, where)
    known = {f.name: f for f in fields(kind) if f.name not in without}
    for key in entry:
        if key not in known:
            raise UsageError(f"{where}: {suggest(str(key), known, 'key')}")
    if not without:
        for f in known.values():
            if f.default is MISSING and f.default_factory is MISSING and f.name not in entry:
                raise UsageError(f"{where}: the key {f.name!r} is missing")
    return entry


def _check(table: Table, where: str) -> None:
    """Names refer to something, and are not given twice."""
    if not table.rows:
        raise UsageError(f"{where}: no rows")
    for row in table.rows:
        if row.images:
            raise UsageError(
                f"{where}, rows {row.name}: rows see the same number of images, that of the table; "
                "'images' belongs to shared steps"
            )
    names = [t.name for t in (*table.shared, *table.rows)]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{where}: the name {name!r} is given twice")
    if table.images < 1:
        raise UsageError(f"{where}: images must be at least 1, not {table.images}")
    before: list[str] = []
    for training in (*table.shared, *table.rows):
        for need in training.needs:
            if need not in before:
                raise UsageError(
                    f"{where}, {training.name}: {suggest(need, before, 'shared step')}"
                )
        if training in table.shared:
            before.append(training.name)
        for other in table.shared:
            if other.name == training.test_of and other.epochs != training.epochs:
                raise UsageError(
                    f"{where}, {training.name}: epochs is {training.epochs}; it must be those of "
                    f"{other.name}, {other.epochs}"
                )
    for claim in table.claims:
        table.row(claim.better)
        table.row(claim.worse)
