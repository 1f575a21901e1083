"""Verdicts on a paper's claims, and the Markdown page that sets our numbers beside the paper's.

A claim "A has a lower error than B" is decided by the paired differences of the seeds: if the 95 %
t-interval of their mean excludes zero it holds or does not hold, else it is undecided.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.reproduce.table import Table, Training

__all__ = ["Verdict", "decide", "markdown", "overall"]

METRIC_NAMES = {
    "mpjpe_mm": "MPJPE, mm",
    "pa_mpjpe_mm": "PA-MPJPE, mm",
    "n_mpjpe_mm": "N-MPJPE, mm",
    "error_2d_px": "2D error, px",
}

# ---- verdicts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What the seeds say about one comparison.

    Attributes:
        differences: ``worse`` minus ``better`` by seed; positive = as claimed.
        mean: of the differences; NaN without any.
        half_width: of the 95 % t-interval of the mean; NaN with fewer than two seeds.
        text: ``holds``, ``does not hold``, ``undecided``, ``undecided (one seed)``, ``no result``.
    """

    differences: Mapping[int, float]
    mean: float
    half_width: float
    text: str


def decide(better: Mapping[int, float], worse: Mapping[int, float]) -> Verdict:
    """Compares two rows by the seeds that both have.

    Args:
        better: error by seed of the row that is said to have the lower one.
        worse: the same of the other row.
    """
    seeds = sorted(better.keys() & worse.keys())
    differences = {seed: worse[seed] - better[seed] for seed in seeds}
    values = list(differences.values())
    if not values:
        return Verdict(differences, math.nan, math.nan, "no result")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Verdict(differences, mean, math.nan, "undecided (one seed)")
    from scipy.stats import t

    error = statistics.stdev(values) / math.sqrt(len(values))
    half_width = float(t.ppf(0.975, len(values) - 1)) * error
    if mean - half_width > 0:
        text = "holds"
    elif mean + half_width < 0:
        text = "does not hold"
    else:
        text = "undecided"
    return Verdict(differences, mean, half_width, text)


def overall(verdicts: Sequence[Verdict]) -> str:
    """One verdict on a claim that was compared in several pairs of rows."""
    texts = [v.text for v in verdicts]
    if all(text == "no result" for text in texts):
        return "no result"
    if "does not hold" in texts and "holds" in texts:
        return "holds in one comparison and fails in another"
    if "does not hold" in texts:
        return "does not hold"
    if all(text == "holds" for text in texts):
        return "holds"
    if "holds" in texts:
        return f"holds in {texts.count('holds')} of {len(texts)} comparisons, else undecided"
    return "undecided"


# ---- the page ------------------------------------------------------------------------------------

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Row name -> seed -> the JSON of that run."""


def markdown(
    table: Table, results: Results, command: str, planned: int, baseline: Mapping[int, Any]
) -> str:
    """The page that sets our numbers beside the paper's.

    Args:
        table: what was run.
        results: finished runs.
        command: the command that makes this page.
        planned: number of runs of the whole table; the page says how many are missing.
        baseline: metrics of the mean training pose by seed; may be empty.
    """
    runs = [run for seeds in results.values() for run in seeds.values()]
    lines = [f"# {table.title}", "", f"{table.paper}.", "", "```", command, "```", ""]
    if planned > len(runs):
        lines += [f"**Incomplete: {planned - len(runs)} of {planned} runs are missing.**", ""]
    if runs:
        lines += [*_setting(table, runs), ""]
    lines += [*_main_table(table, results, baseline), ""]
    if table.claims:
        lines += ["## What the paper claims", "", *_claims(table, results), ""]
    if any(row.paper.get("actions") for row in table.rows):
        lines += ["## By action", "", *_action_table(table, results), ""]
    lines += ["## Every run", "", *_run_table(table, results)]
    return "\n".join(lines).rstrip() + "\n"


def _setting(table: Table, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    def distinct(key: str) -> str:
        return ", ".join(dict.fromkeys(str(run.get(key) or "not recorded") for run in runs))

    seconds = statistics.fmean(float(run["fit_seconds"]) for run in runs)
    equal = ", the same for every row" if len({run["images_seen"] for run in runs}) == 1 else ""
    lines = [
        f"- Data: {distinct('data')}.",
        f"- Protocol: {distinct('protocol_definition')}",
        f"- Budget: {distinct('images_seen')} training images a run{equal}; "
        f"{seconds / 60:.1f} minutes of training on average ({distinct('device')}).",
        "- Each row and seed: the checkpoint with the lowest validation error, tested once.",
        f"- The paper's numbers were measured on {table.paper_data} and cannot be compared with "
        "ours by size, only by order.",
    ]
    return lines + [f"- {note}" for note in table.notes]


def _name(metric: str) -> str:
    return METRIC_NAMES.get(metric, metric)


def _label(row: Training) -> str:
    return row.label or row.name


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f} (n = 1)"
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} (n = {len(values)})"


def _values(runs: Mapping[int, Mapping[str, Any]], metric: str) -> dict[int, float]:
    found = {seed: run["metrics"].get(metric) for seed, run in sorted(runs.items())}
    return {seed: float(value) for seed, value in found.items() if value is not None}


def _grid(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *body)]


def _main_table(table: Table, results: Results, baseline: Mapping[int, Any]) -> list[str]:
    paper = [m for m in table.metrics if any(m in row.paper for row in table.rows)]
    head = [
        "",
        *map(_name, table.metrics),
        *(f"paper, {table.paper_data}: {_name(m)}" for m in paper),
    ]
    body = []
    if baseline:
        cells = []
        for metric in table.metrics:
            values = [float(b[metric]) for b in baseline.values() if b.get(metric) is not None]
            # The same test people for every seed: a spread here would only be the training draw's.
            cells.append(f"{statistics.fmean(values):.2f}" if values else "-")
        body.append(["mean training pose", *cells, *["-"] * len(paper)])
    for row in table.rows:
        ours = [_spread([*_values(results.get(row.name, {}), m).values()]) for m in table.metrics]
        theirs = [f"{row.paper[m]:.2f}" if m in row.paper else "-" for m in paper]
        body.append([_label(row), *ours, *theirs])
    note = "Mean ± standard deviation over n seeds, test split."
    return [*_grid(head, body), "", note]


def _claims(table: Table, results: Results) -> list[str]:
    groups: dict[str, list[Verdict]] = {}
    body = []
    for claim in table.claims:
        better, worse = table.row(claim.better), table.row(claim.worse)
        verdict = decide(
            _values(results.get(better.name, {}), claim.metric),
            _values(results.get(worse.name, {}), claim.metric),
        )
        groups.setdefault(claim.text, []).append(verdict)
        theirs = "-"
        if claim.metric in better.paper and claim.metric in worse.paper:
            theirs = f"{worse.paper[claim.metric] - better.paper[claim.metric]:+.2f}"
        interval = "-" if math.isnan(verdict.mean) else f"{verdict.mean:+.2f}"
        if not math.isnan(verdict.half_width):
            low, high = verdict.mean - verdict.half_width, verdict.mean + verdict.half_width
            interval += f" [{low:+.2f}, {high:+.2f}]"
        seeds = ", ".join(f"{v:+.2f}" for v in verdict.differences.values()) or "-"
        body.append(
            [claim.text, f"{_label(better)} < {_label(worse)}", _name(claim.metric), interval,
             seeds, theirs, f"**{verdict.text}**"]
        )  # fmt: skip
    head = ["claim", "comparison", "metric", "gain, mean [95 % interval]", "gain by seed",
            "paper's gain", "verdict"]  # fmt: skip
    summary = [f"- {text}: **{overall(verdicts)}**." for text, verdicts in groups.items()]
    note = (
        "Gain: error of the right row minus error of the left row, paired by seed; positive is as "
        "claimed. A comparison is decided when the 95 % t-interval of the mean gain excludes zero; "
        "each is judged on its own."
    )
    return [*summary, "", *_grid(head, body), "", note]


def _action_table(table: Table, results: Results) -> list[str]:
    """MPJPE by action, the paper's beside ours."""
    rows = [row for row in table.rows if row.paper.get("actions")]
    runs = [run for seeds in results.values() for run in seeds.values()]
    named = [run.get("actions", {}) for run in runs] + [row.paper["actions"] for row in rows]
    # Actions of our data in their order, then the paper's that ours lack; means last.
    actions = sorted(dict.fromkeys(a for names in named for a in names), key=_is_mean)
    body = []
    for action in actions:
        cells = []
        for row in table.rows:
            found = [
                run["actions"][action]["mpjpe_mm"]
                for run in results.get(row.name, {}).values()
                if run.get("actions", {}).get(action, {}).get("mpjpe_mm") is not None
            ]
            cells.append(_spread(found))
        theirs = [row.paper["actions"].get(action) for row in rows]
        body.append([action, *cells, *("-" if v is None else f"{v:.2f}" for v in theirs)])
    head = ["MPJPE, mm", *map(_label, table.rows), *(f"paper: {_label(row)}" for row in rows)]
    return [*_grid(head, body), "", f"paper: {table.paper_data}."]


def _is_mean(action: str) -> bool:
    return action.startswith("mean ")


def _run_table(table: Table, results: Results) -> list[str]:
    body = [
        [
            _label(row), str(seed), *(f"{values:.2f}" if values is not None else "-"
            for values in (run["metrics"].get(m) for m in table.metrics)),
            str(run["images_seen"]), f"{run['fit_seconds'] / 60:.1f}",
            str(run["interruptions"]), str(run["torch"]),
        ]
        for row in table.rows
        for seed, run in sorted(results.get(row.name, {}).items())
    ]  # fmt: skip
    head = ["", "seed", *map(_name, table.metrics), "images", "minutes", "resumed", "torch"]
    return _grid(head, body)
