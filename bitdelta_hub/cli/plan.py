"""`bdhub plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

import bitdelta_hub
from bitdelta_hub.cli.leaf import leaf
from bitdelta_hub.cli.options import Base, PairOptions, Tuned
from bitdelta_hub.cli.output import Output, Report, Table
from bitdelta_hub.cli.progress import progress
from bitdelta_hub.cli.values import Bytes, Ratio, shape_text
from bitdelta_hub.format.storage import decimal_size

if TYPE_CHECKING:
    from bitdelta_hub.plan import Plan


def add_to(app: typer.Typer) -> None:
    """Adds `plan` to `app`."""
    leaf(
        app,
        "bdhub plan ./tuned --base ./base",
        "bdhub plan ./tuned --base ./base --recipe delta-come --bits 2",
        "bdhub plan ./tuned --base ./base --keep '*.down_proj.weight' --json",
    )(plan)


def plan(output: Output, tuned: Tuned, base: Base, options: PairOptions) -> None:
    """Show what compress would store with the same flags."""
    with progress(output) as watch:
        result = bitdelta_hub.plan(tuned, base, progress=watch, **options.arguments())
    output.remarks(result.notes)
    output.show(report(result))


def report(plan: Plan) -> Report:
    """What `plan` says of its result."""
    ratio = Ratio(plan.tuned_bytes / max(1, plan.predicted_bytes))
    at_most = "at most " if plan.upper_bound else ""
    return Report(
        headline=f"Plan for {plan.tuned} against {plan.base}",
        fields={
            "size": f"{at_most}{decimal_size(plan.predicted_bytes)} "
            f"(is {decimal_size(plan.tuned_bytes)}, {ratio:.1f}x) and the manifest",
            "recipe": plan.recipe,
            "tensors": len(plan.tensors),
        },
        tables=(_tensors(plan), _groups(plan)),
        document=_document(plan, ratio),
        quiet=(Bytes(plan.predicted_bytes),),
        done=False,
    )


def _tensors(plan: Plan) -> Table:
    rows = [
        (t.name, t.dtype, shape_text(t.shape), t.kind, t.terms, _bytes(t.bytes), t.note)
        for t in plan.tensors
    ]
    return Table(("TENSOR", "DTYPE", "SHAPE", "KIND", "TERMS", "BYTES", "NOTE"), rows)


def _groups(plan: Plan) -> Table:
    rows = [
        (group, tensors, Bytes(tuned), Bytes(delta), Ratio(tuned / delta) if delta else None)
        for group, tensors, tuned, delta in plan.by_group()
    ]
    return Table(("GROUP", "TENSORS", "TUNED", "DELTA", "RATIO"), rows)


def _bytes(size: int | None) -> Bytes | None:
    return None if size is None else Bytes(size)


def _document(plan: Plan, ratio: float) -> dict[str, Any]:
    return {
        "tuned": plan.tuned,
        "base": plan.base,
        "recipe": plan.recipe,
        "tuned_bytes": plan.tuned_bytes,
        "predicted_bytes": plan.predicted_bytes,
        "upper_bound": plan.upper_bound,
        "ratio": round(ratio, 3),
        "groups": [
            {"group": group, "tensors": tensors, "tuned_bytes": tuned, "delta_bytes": delta}
            for group, tensors, tuned, delta in plan.by_group()
        ],
        "tensors": [
            {
                "name": tensor.name,
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "kind": tensor.kind,
                "terms": tensor.terms,
                "bytes": tensor.bytes,
                "note": tensor.note,
            }
            for tensor in plan.tensors
        ],
        "notes": [
            {"code": note.code, "name": note.name, "message": note.message} for note in plan.notes
        ],
    }
