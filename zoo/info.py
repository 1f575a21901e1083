"""What ``zoo list`` and ``zoo info`` tell: sizes, costs, papers, weights and measured errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.errors import MethodError
from zoo.registry import MethodRecord, create, get_method, list_models, records

__all__ = ["best_result", "count_cost", "describe", "overview"]


def count_cost(name: str, **args: Any) -> tuple[int, int]:
    """(trainable parameters, multiply-adds of one forward pass of one sample).

    Both are counted on the meta device: nothing is allocated and nothing computed.

    Args:
        name: registry name.
        **args: constructor arguments over those of the registry.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = create(name, **args).eval()
        spec = model.input_spec
        joints = len(model.skeleton)
        shape = (1, spec.frames)
        batch: dict[str, Any] = {
            "joints_2d": torch.empty(*shape, joints, 2),
            "scores_2d": torch.empty(*shape, joints),
            "valid_2d": torch.empty(*shape, joints, dtype=torch.bool),
            "intrinsics": torch.empty(*shape, 3, 3),
            "world_to_camera": torch.empty(1, 3, 3),
        }
        if spec.kind == "image":
            batch["image"] = torch.empty(*shape, 3, spec.image_size, spec.image_size)
        parameters = sum(p.numel() for p in model.parameters())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(batch)
    return parameters, counter.get_total_flops() // 2


def best_result(record: MethodRecord, metric: str = "mpjpe_mm") -> Mapping[str, Any] | None:
    """The first measured result of the first weights with that metric."""
    for weight in record.weights:
        for result in weight.results:
            if result.get("metric") == metric and result.get("measured") is not None:
                return result
    return None


def _number(value: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def overview(pattern: str = "*", pretrained: bool = False) -> list[dict[str, Any]]:
    """One record per name for ``zoo list``; plugins that cannot be imported have ``error``."""
    rows: list[dict[str, Any]] = []
    names = set(list_models(pattern, pretrained))
    for name, record in records().items():
        if record.error and pattern == "*" and not pretrained:
            rows.append({"name": name, "origin": record.origin, "error": record.error})
        if name not in names:
            continue
        result = best_result(record)
        rows.append(
            {
                "name": name,
                "description": record.description,
                "paper": f"{record.paper.authors}, {record.paper.venue}".strip(", "),
                "input": record.input,
                "weights": [w.tag for w in record.weights],
                "trained_on": record.weights[0].trained_on if record.weights else None,
                "mpjpe_mm": result["measured"] if result else None,
                "measured_on": result["data"] if result else None,
                "origin": record.origin,
                "error": None,
            }
        )
    return rows


def describe(name: str) -> dict[str, Any]:
    """Everything ``zoo info`` prints about a name, as plain values.

    Raises:
        UsageError: unknown name.
        MethodError: a plugin that cannot be used.
    """
    record = get_method(name)
    sizes: dict[str, Any] = {}
    try:
        parameters, multiply_adds = count_cost(name)
        sizes["paper"] = {"parameters": parameters, "multiply_adds": multiply_adds}
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise MethodError(f"{name}: cost cannot be counted: {reason}") from error
    weights = []
    for weight in record.weights:
        from zoo.checkpoint import read_stored

        stored = read_stored(f"{name}.{weight.tag}")
        parameters, multiply_adds = count_cost(name, **stored.args)
        weights.append(
            {
                "name": f"{name}.{weight.tag}",
                "file": weight.file,
                "sha256": weight.sha256,
                "parameters": parameters,
                "multiply_adds": multiply_adds,
                "trained_on": weight.trained_on,
                "license": weight.license,
                "command": weight.command,
                "notes": weight.notes,
                "results": [dict(result) for result in weight.results],
            }
        )
    return {
        "name": name,
        "description": record.description,
        "paper": vars(record.paper),
        "class": record.class_path,
        "args": dict(record.args),
        "input": record.input,
        "output": dict(record.output),
        "recipes": list(record.recipes),
        "origin": record.origin,
        "code_license": "Apache-2.0" if record.origin == "zoo" else "see the plugin",
        "size": sizes,
        "weights": weights,
    }


def human_size(size: Mapping[str, int]) -> str:
    """``121.8 M parameters, 523 M multiply-adds``."""
    return (
        f"{_number(size['parameters'])} parameters, {_number(size['multiply_adds'])} multiply-adds"
    )


def registry_table() -> str:
    """The README's table: each name, and what its shipped weights measured beside the paper.

    ``measured`` and the paper's number are on different data; the columns say which.
    """
    lines = [
        "| name | paper | input | weights | measured on synthetic test | paper's own data |",
        "|---|---|---|---|---|---|",
    ]
    for name, record in records().items():
        if record.origin != "zoo":
            continue
        result = best_result(record)
        measured = reported = "-"
        if result is not None:
            measured = f"{result['measured']:.1f} mm ({result['protocol']})"
        for weight in record.weights[:1]:
            for entry in weight.results:
                if entry.get("reported") is not None:
                    unit = "px in 2D" if entry["metric"].endswith("_px") else "mm"
                    reported = f"{entry['reported']} {unit} ({entry.get('where', '')})"
                    break
        tags = ", ".join(f"`{name}.{w.tag}`" for w in record.weights) or "train it"
        paper = f"{record.paper.authors}, {record.paper.venue}"
        lines.append(f"| `{name}` | {paper} | {record.input} | {tags} | {measured} | {reported} |")
    return "\n".join(lines)
