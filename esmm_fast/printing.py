"""What the esmm-fast command prints: JSON, facts by name, metrics, slices."""

from __future__ import annotations

from typing import Any

import click


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


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def echo_metrics(result: dict[str, Any]) -> None:
    """Prints the metrics of each task, one line each, with the space it is over."""
    click.echo(
        f"{result['impressions']:,} impressions, {result['clicks']:,} clicks, "
        f"{result['conversions']:,} conversions"
    )
    rows = [
        (
            task.upper() + (", own pCTR" if task == "ctcvr" else ""),
            result[task]["space"],
            result[task],
        )
        for task in ("ctr", "cvr", "ctcvr")
        if task in result
    ]
    for space, metrics in result.get("truth", {}).get("cvr", {}).items():
        rows.append(("pCVR against truth", f"{space} impressions", metrics))
    click.echo(f"{'':20}{'':24}{'AUC %':>9}{'log loss':>10}{'obs/exp':>9}")
    for name, space, metrics in rows:
        click.echo(
            f"{name:20}{space:24}{100 * metrics['auc']:9.2f}{metrics['log_loss']:10.4f}"
            f"{metrics['calibration']:9.3f}"
        )


def echo_slices(field: str, tasks: dict[str, Any], top: int) -> None:
    """Prints the calibration in the largest slices of a field, for each task."""
    for task, slices in tasks.items():
        shown = slices[:top]
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
