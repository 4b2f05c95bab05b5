"""What the esmm-fast command prints: JSON, facts by name, metrics, slices."""

from __future__ import annotations

import math
from typing import Any

import click

_OCCURRENCES = 8  # of a bag that are printed


def echo_json(value: Any) -> None:
    """Prints indented JSON; nan is null."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=1).decode())


def echo_mapping(value: dict[str, Any], indent: str = "") -> None:
    """Prints nested facts, one a line; the innermost mapping on one line."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            flat = inner and not any(isinstance(v, dict) for v in inner.values())
            if flat and indent:
                click.echo(
                    f"{indent}{key}: " + ", ".join(f"{k} {_shown(v)}" for k, v in inner.items())
                )
            else:
                click.echo(f"{indent}{key}:" + ("" if inner else " none"))
                echo_mapping(inner, indent + "  ")
        else:
            click.echo(f"{indent}{key}: {_shown(inner)}")


def echo_impression(impression: dict[str, Any]) -> None:
    """Prints an impression as `Dataset.head` gives it, the first occurrences of each bag."""
    fields = impression.pop("fields")
    click.echo("  ".join(f"{name} {value}" for name, value in impression.items()))
    for name, occurrences in fields.items():
        shown = " ".join(
            f"{feature_id}" if value == 1 else f"{feature_id}:{value:g}"
            for feature_id, value in occurrences[:_OCCURRENCES]
        )
        more = len(occurrences) - _OCCURRENCES
        click.echo(f"  {name:8}{shown}{f' ... {more} more' if more > 0 else ''}")


def echo_rejected(half: str, rejected: dict[str, Any]) -> None:
    """Prints what `prepare` left out, on standard error: a line for each reason."""
    for reason, found in rejected.items():
        text = f"{found['count']:,} x {reason} skipped, first {found['first']}: {found['message']}"
        click.echo(f"{half}: {text}" if half else text, err=True)


def echo_published(published: dict[str, Any]) -> None:
    """Prints how a dataset compares with the public file it is named like."""
    here, totals = published["here"], published["published"]
    different = {n: total for n, total in totals.items() if here[n] != total}
    click.echo(
        f"public {published['half']} file: "
        f"{len(totals) - len(different)} of {len(totals)} published totals are equal"
    )
    for name, total in different.items():
        click.echo(f"  {name}: {here[name]:,} here, {total:,} published")


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def echo_metrics(result: dict[str, Any]) -> None:
    """Prints the metrics of each task, one line each, with the space it is over."""
    stages = result.get("stages", {})
    counts = {"clicks": result["clicks"], "conversions": result["conversions"]}
    if stages:
        counts = {n: int(m["positives"]) for n, m in stages.items() if not n.endswith(".all")}
    counts = {"impressions": result["impressions"], **counts}
    click.echo(", ".join(f"{count:,} {name}" for name, count in counts.items()))
    rows = [
        (
            task.upper() + (", own pCTR" if task == "ctcvr" else ""),
            result[task]["space"],
            result[task],
        )
        for task in ("ctr", "cvr", "ctcvr")
        if task in result
    ]
    rows += [(name.upper(), metrics["space"], metrics) for name, metrics in stages.items()]
    for space, metrics in result.get("truth", {}).get("cvr", {}).items():
        rows.append(("pCVR against truth", f"{space} impressions", metrics))
    click.echo(f"{'':20}{'':24}{'AUC %':>9}{'log loss':>10}{'obs/exp':>9}")
    for name, space, metrics in rows:
        click.echo(
            f"{name:20}{space:24}{100 * metrics['auc']:9.2f}{metrics['log_loss']:10.4f}"
            f"{metrics['calibration']:9.3f}"
        )
    for name, space, metrics in rows:
        if math.isnan(metrics["auc"]):
            count, positives = metrics["impressions"], metrics["positives"]
            click.echo(
                f"{name}: no AUC, one class only: {positives:,.0f} positive of {count:,} ({space})"
            )


def echo_slices(field: str, tasks: dict[str, Any]) -> None:
    """Prints the calibration in the largest slices of a field, for each task."""
    for task, shown in tasks.items():
        click.echo(f"\n{task.upper()} by field {field}: the {len(shown)} largest slices")
        click.echo(
            f"{'feature id':>14}{'impressions':>13}{'observed':>10}{'expected':>10}"
            f"{'obs/exp':>9}{'std devs':>10}"
        )
        for part in shown:
            ratio, off = (
                "-" if part[name] is None else f"{part[name]:{form}}"
                for name, form in (("calibration", ".3f"), ("deviations", "+.1f"))
            )
            click.echo(
                f"{part['feature_id']:>14}{part['impressions']:>13,}{part['observed']:>10.4f}"
                f"{part['expected']:>10.4f}{ratio:>9}{off:>10}"
            )
