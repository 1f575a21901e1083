"""The tables of the papers as printed, with all their rows: ``zoo/papers_tables/*.yaml``.

A file holds the numbers exactly as the paper prints them, misprints included; what is wrong with a
number is declared beside it, and :func:`problems` finds what is not declared. Nothing here is a
measurement of the zoo: :func:`compare` sets measured numbers *beside* a table, each under its own
protocol.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from zoo.actions import canonical
from zoo.errors import DataError, UsageError, suggest

__all__ = [
    "Comparison",
    "Misprint",
    "PaperTable",
    "Row",
    "all_tables",
    "compare",
    "cross_problems",
    "get_table",
    "problems",
    "read_tables",
    "tables_for",
]

FOLDER = Path(__file__).parent / "papers_tables"


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: as printed, with the paper's reference number.
        values: one number a column, ``None`` where the paper prints a dash.
        source: key of the publication the numbers come from; rows with one key must agree in all
            tables.
        ours: a row of the paper's own authors.
        method: the name of this zoo's method that follows it, if there is one.
        alignment: where it differs from the table's protocol: what the row's own paper measured.
    """

    name: str
    values: tuple[float | None, ...]
    source: str = ""
    ours: bool = False
    method: str = ""
    alignment: str = ""


@dataclass(frozen=True)
class Misprint:
    """A number that is not what it should be.

    Attributes:
        row: name of the row.
        column: name of the column.
        printed: the number in the paper.
        why: how that is known.
        correct: what the cell should hold, where that is known.
        mean: for an average, what the row's entries give.
        elsewhere: what other papers print for the same row of the same publication.
    """

    row: str
    column: str
    printed: float
    why: str
    correct: float | None = None
    mean: float | None = None
    elsewhere: float | None = None


@dataclass(frozen=True)
class PaperTable:
    """One table of one paper.

    Attributes:
        id: such as ``tome2017-table1``.
        paper: id, title, authors, venue and url.
        where: the place in the paper.
        data: the data set.
        protocol: name of the zoo's protocol that measures the same, empty if there is none.
        metric: key of the zoo's metric.
        unit: of the numbers.
        columns: names as printed, in the printed order.
        summaries: column of averages -> the columns it averages.
        rows: all of them.
        misprints: what is wrong, declared.
        note: what a reader must know.
    """

    id: str
    paper: Mapping[str, str]
    where: str
    data: str
    protocol: str
    metric: str
    unit: str
    columns: tuple[str, ...]
    summaries: Mapping[str, tuple[str, ...]]
    rows: tuple[Row, ...]
    misprints: tuple[Misprint, ...] = ()
    note: str = ""

    @property
    def title(self) -> str:
        """Where the numbers stand."""
        paper = self.paper
        return f"{paper['authors']}, {paper['venue']}, {self.where}"

    def value(self, row: Row, column: str, corrected: bool = False) -> float | None:
        """The printed number, or with ``corrected`` the one that should stand there."""
        printed = row.values[self.columns.index(column)]
        if corrected:
            for m in self.misprints:
                if (m.row, m.column) == (row.name, column) and m.correct is not None:
                    return m.correct
        return printed


def read_tables(path: Path) -> tuple[PaperTable, ...]:
    """The tables of one file.

    Raises:
        zoo.errors.DataError: it cannot be read, or does not have the fields of a table.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        paper, entries = document["paper"], document["tables"]
        return tuple(_table(entry, paper) for entry in entries)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: no table of a paper ({type(error).__name__}: {reason})"
        ) from error


def _table(entry: Mapping[str, Any], paper: Mapping[str, str]) -> PaperTable:
    columns = tuple(map(str, entry["columns"]))
    summaries = entry.get("summaries") or {}
    plain = tuple(c for c in columns if c not in summaries)
    rows = []
    for row in entry["rows"]:
        values = tuple(None if v is None else float(v) for v in row["values"])
        if len(values) != len(columns):
            raise ValueError(
                f"{entry['id']}: {row['name']!r} has {len(values)} values, {len(columns)} columns"
            )
        rows.append(Row(**{**row, "values": values}))
    return PaperTable(
        id=entry["id"],
        paper=dict(paper),
        where=entry["where"],
        data=entry["data"],
        protocol=entry.get("protocol", ""),
        metric=entry["metric"],
        unit=entry["unit"],
        columns=columns,
        summaries={k: plain if v == "all" else tuple(v) for k, v in summaries.items()},
        rows=tuple(rows),
        misprints=tuple(Misprint(**m) for m in entry.get("misprints") or ()),
        note=entry.get("note", ""),
    )


@lru_cache(maxsize=1)
def all_tables() -> dict[str, PaperTable]:
    """Every stored table by its id, paper by paper."""
    tables = [t for path in sorted(FOLDER.glob("*.yaml")) for t in read_tables(path)]
    return {table.id: table for table in tables}


def get_table(name: str) -> PaperTable:
    """The table called ``name``.

    Raises:
        zoo.errors.UsageError: there is none of that name.
    """
    if name not in all_tables():
        raise UsageError(suggest(name, all_tables(), "table of a paper"))
    return all_tables()[name]


def tables_for(method: str, protocol: str) -> tuple[PaperTable, ...]:
    """The tables to set beside a test; () if none fits.

    Those of the protocol with a row of the method; else all of the protocol; else (such as on
    synthetic data) those with a row of the method.

    Args:
        method: registry name.
        protocol: name of the protocol that was measured.
    """
    tables = list(all_tables().values())
    mine = [t for t in tables if any(r.method and r.method == method for r in t.rows)]
    same = [t for t in tables if t.protocol and t.protocol == protocol]
    return tuple([t for t in same if t in mine] or same or mine)


# ---- are they consistent -------------------------------------------------------------------------


def _step(printed: float) -> float:
    """One unit of the number's last digit; 61.2 for 61.20, so ask all numbers of a row."""
    return float(10.0 ** -len(repr(printed).partition(".")[2].rstrip("0")))


def problems(table: PaperTable) -> list[str]:
    """What is wrong with a table and not declared, and declared but not wrong; [] is good.

    Checks that every average is the mean of its columns to one unit of the row's finest digit
    (papers round and truncate), once the declared misprints are put right.
    """
    found = []
    declared = {(m.row, m.column): m for m in table.misprints}
    by_name = {row.name: row for row in table.rows}
    if len(by_name) != len(table.rows) or len(set(table.columns)) != len(table.columns):
        found.append(f"{table.id}: a row or a column stands twice")
    for m in table.misprints:
        if m.row not in by_name or m.column not in table.columns:
            found.append(f"{table.id}: a misprint of {m.row!r}, {m.column!r}, which is no cell")
        elif table.value(by_name[m.row], m.column) != m.printed:
            found.append(f"{table.id}: {m.row!r}, {m.column!r} is not the declared {m.printed}")
        elif (m.correct, m.mean, m.elsewhere) == (None, None, None):
            found.append(f"{table.id}: the misprint of {m.row!r}, {m.column!r} says nothing")
        elif m.printed in (m.correct, m.mean, m.elsewhere):
            found.append(f"{table.id}: {m.row!r}, {m.column!r} is declared wrong and is not")
    for row in table.rows:
        for summary, columns in table.summaries.items():
            entries = [table.value(row, c, corrected=True) for c in columns]
            printed = table.value(row, summary)
            if printed is None or any(v is None for v in entries):
                continue
            mean = fmean(v for v in entries if v is not None)
            step = min(_step(v) for v in row.values if v is not None)
            wrong = abs(mean - printed) > step * 1.0001
            known = declared.get((row.name, summary))
            if wrong and (known is None or known.mean is None):
                found.append(
                    f"{table.id}: {row.name!r}, {summary!r} prints {printed}, its entries give "
                    f"{mean:.2f}"
                )
            elif known is not None and known.mean is not None:
                if not wrong:
                    found.append(f"{table.id}: {row.name!r}, {summary!r} is the mean after all")
                elif abs(known.mean - mean) > 0.0051:
                    found.append(
                        f"{table.id}: {row.name!r}, {summary!r} is declared to give {known.mean}, "
                        f"its entries give {mean:.4f}"
                    )
    return found


def cross_problems(tables: Sequence[PaperTable]) -> list[str]:
    """Cells in which two tables print different numbers of one publication, undeclared; [] is good.

    Rows with the same ``source`` on the same data in the same metric must agree.
    """
    seen: dict[tuple[str, str, str, str], dict[float, list[str]]] = {}
    for table in tables:
        excused = {(m.row, m.column) for m in table.misprints if m.elsewhere is not None}
        for row in table.rows:
            if not row.source:
                continue
            for column in table.columns:
                value = table.value(row, column, corrected=True)
                if value is not None and (row.name, column) not in excused:
                    key = (row.source, table.data, table.metric, canonical(column))
                    seen.setdefault(key, {}).setdefault(value, []).append(table.id)
    return [
        f"{source}, {column}: " + ", ".join(f"{v} in {' '.join(t)}" for v, t in values.items())
        for (source, _, _, column), values in seen.items()
        if len(values) > 1
    ]


# ---- beside ours ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """A table with a row of measured numbers.

    Attributes:
        table: the paper's.
        measured: one number a column, ``None`` where nothing was measured.
        definition: of the measured numbers.
        same_protocol: whether they were measured under the table's protocol and metric.
        unmatched: measured groups that the table has no column for.
    """

    table: PaperTable
    measured: tuple[float | None, ...]
    definition: str
    same_protocol: bool
    unmatched: tuple[str, ...] = ()

    @property
    def warning(self) -> str:
        """Why the numbers do not compare; empty if nothing speaks against it."""
        if self.same_protocol:
            return ""
        paper = self.table.protocol or "none of the zoo's protocols"
        return (
            f"not comparable: ours are not measured on {self.table.data} under the paper's "
            f"protocol ({paper})"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        table = self.table
        return {
            "table": table.id,
            "paper": dict(table.paper),
            "where": table.where,
            "data": table.data,
            "protocol": table.protocol,
            "metric": table.metric,
            "unit": table.unit,
            "note": table.note,
            "columns": list(table.columns),
            "measured": list(self.measured),
            "measured_definition": self.definition,
            "same_protocol": self.same_protocol,
            "warning": self.warning,
            "unmatched": list(self.unmatched),
            "rows": [
                {"name": r.name, "values": list(r.values), "ours": r.ours, "method": r.method,
                 "alignment": r.alignment}
                for r in table.rows
            ],
            "misprints": [
                {k: v for k, v in vars(m).items() if v is not None} for m in table.misprints
            ],
        }  # fmt: skip


def compare(
    table: PaperTable,
    report: Mapping[str, Mapping[str, float]],
    overall: Mapping[str, float],
    protocol: str,
    definition: str,
    data: str = "",
) -> Comparison:
    """Sets measured numbers under the columns of a table.

    Args:
        table: the paper's.
        report: group (action, or action and subject) -> metric -> value, as
            ``PoseMetrics.per_action`` gives it.
        overall: metric -> value over everything, aggregated as the protocol says.
        protocol: name of the protocol that was measured.
        definition: of the measured numbers.
        data: the data set that was measured; empty = the protocol's own.
    """
    groups = {canonical(name): values for name, values in report.items()}
    measured: list[float | None] = []
    matched = set()
    for column in table.columns:
        key = canonical(column)
        value: float | None = None
        if table.metric == "pcp_50":
            part = "pcp_50" if key == "average" else f"pcp_50_{key.replace(' ', '_')}"
            value = overall.get(part)
        elif column in table.summaries or key == "average":
            value = _average(table, column, groups, overall)
        else:
            # A table of one action has the subjects alone in its columns.
            found = [g for g in groups if g == key or g.endswith(f" {key}")]
            if len(found) == 1:
                value = groups[found[0]].get(table.metric)
                matched.add(found[0])
        measured.append(value if value is not None and math.isfinite(value) else None)
    extra = ("average", "all frames", "mean over subjects and actions")
    unmatched = [n for n in report if canonical(n) not in matched and canonical(n) not in extra]
    same = protocol == table.protocol != "" and data in ("", table.data)
    # A folder that lacks subjects or samples says so in its definition.
    same = same and "not the protocol's number" not in definition
    return Comparison(table, tuple(measured), definition, same, tuple(unmatched))


def _average(
    table: PaperTable,
    column: str,
    groups: Mapping[str, Mapping[str, float]],
    overall: Mapping[str, float],
) -> float | None:
    """A summary column: the mean of the measured entries it averages, or the overall number."""
    columns = table.summaries.get(column, ())
    everything = [c for c in table.columns if c not in table.summaries]
    if not columns or list(columns) == everything:
        return overall.get(table.metric)
    values = [groups.get(canonical(c), {}).get(table.metric) for c in columns]
    known = [v for v in values if v is not None and math.isfinite(v)]
    return fmean(known) if len(known) == len(values) else None
