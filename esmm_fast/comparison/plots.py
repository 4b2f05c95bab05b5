"""The figures of the report, drawn by matplotlib as SVG text that stands inside the page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLOURS = {
    "base": "#d9822b",
    "aman": "#8a5a3c",
    "oversampling": "#c2a000",
    "unbias": "#d1487f",
    "division": "#6b7a1e",
    "esmm-ns": "#1f9d76",
    "esmm": "#2f6fde",
}
"""The paper's methods, by family, have the same colour on every page."""
OTHER_COLOURS = ("#9b51c4", "#0f8fa8", "#b5493b", "#4b5c6b", "#e07bb0", "#7fae3f")
TRUTH = "#7b8794"
_MOST_BESIDE = 4
"""Panels in one row of a figure."""
INK, FAINT, GRID = "#1f2933", "#52606d", "#e4e7eb"

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "esmm_fast",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": "#cbd2d9",
    "axes.labelcolor": FAINT,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

Methods = Mapping[str, Mapping[str, Any]]


def colours(methods: Methods) -> dict[str, str]:
    """Returns a colour for each method by name: that of its family, or one of its own."""
    found: dict[str, str] = {}
    for name, method in methods.items():
        known = COLOURS.get(method.get("family", name))
        free = known is not None and known not in found.values()
        others = len([c for c in found.values() if c in OTHER_COLOURS])
        found[name] = str(known) if free else OTHER_COLOURS[others % len(OTHER_COLOURS)]
    return found


def selection_bias(methods: Methods) -> str:
    """Returns true against predicted pCVR, clicked and unclicked impressions side by side."""
    panels = {
        space: {
            name: (
                m["curves"]["truth"][space]["predicted"],
                m["curves"]["truth"][space]["observed"],
            )
            for name, m in methods.items()
            if space in m["curves"].get("truth", {})
        }
        for space in ("clicked", "unclicked")
    }
    return _calibration_panels(
        methods,
        {
            "Clicked impressions: what training labels show": panels["clicked"],
            "Unclicked impressions: nobody's labels": panels["unclicked"],
        },
        "true pCVR, mean of the bin",
    )


def calibration(methods: Methods) -> str:
    """Returns observed rate against prediction: pCVR on clicked, pCTCVR on all impressions."""
    titles = {"cvr": "pCVR, clicked impressions", "ctcvr": "pCTCVR, all impressions"}
    return _calibration_panels(
        methods,
        {
            title: {
                name: (
                    m["curves"]["calibration"][task]["predicted"],
                    m["curves"]["calibration"][task]["observed"],
                )
                for name, m in methods.items()
            }
            for task, title in titles.items()
        },
        "observed rate of the bin",
    )


def roc(methods: Methods) -> str:
    """Returns the ROC curves of both tasks."""
    titles = {"cvr": "CVR: clicked impressions", "ctcvr": "CTCVR: all impressions"}
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(len(titles), 4.7)
        for axis, (task, title) in zip(axes, titles.items(), strict=True):
            axis.plot([0, 1], [0, 1], color=TRUTH, linewidth=1, dashes=(4, 3))
            for name, colour in colours(methods).items():
                curve = methods[name]["curves"]["roc"][task]
                axis.plot(
                    curve["false_positive_rate"],
                    curve["true_positive_rate"],
                    color=colour,
                    label=titled(methods[name]),
                )
            axis.set(title=title, xlabel="false positive rate", ylabel="true positive rate")
            axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
            _legend(axis, "lower right")
        return _svg(figure)


def dots(methods: Methods, places: Mapping[str, str]) -> str:
    """Returns one panel per metric: a dot for each run, and mean with deviation of each method.

    Args:
        methods: With `runs` and `summary`.
        places: Title of the panel -> place of the metric in a run, an AUC.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(len(places), 1.1 + 0.42 * len(methods), sharey=True)
        for axis, (title, place) in zip(axes, places.items(), strict=True):
            for y, (name, colour) in enumerate(colours(methods).items()):
                values = [v * 100 for v in values_at(methods[name]["runs"], place)]
                axis.plot(values, [y] * len(values), "o", color=colour, alpha=0.35, markersize=5)
                summary = methods[name]["summary"].get(place, {})
                if summary.get("mean") is not None:
                    axis.errorbar(
                        summary["mean"] * 100,
                        y,
                        xerr=(summary["std"] or 0) * 100,
                        fmt="o",
                        color=colour,
                        markersize=8,
                        markeredgecolor="white",
                        elinewidth=2,
                    )
            axis.set(title=title, xlabel="AUC, %", ylim=(len(methods) - 0.4, -0.6))
            axis.set_yticks(range(len(methods)), [titled(m) for m in methods.values()])
            axis.grid(axis="y", visible=False)
            axis.margins(x=0.15)
        return _svg(figure)


def distribution(methods: Methods) -> str:
    """Returns how predicted and true pCVR are distributed, clicked and unclicked side by side."""
    first = next(iter(methods.values()))["curves"]
    edges = 10 ** np.asarray(first["distribution"]["log10_edges"])
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(2, 3.3, sharey=True)
        low, high = 1.0, 1e-6
        for axis, space in zip(axes, ("clicked", "unclicked"), strict=True):
            if space in first.get("truth", {}):
                shares = first["truth"][space]["shares_true"]
                axis.stairs(shares, edges, fill=True, color=TRUTH, alpha=0.28, label="true pCVR")
            for name, colour in colours(methods).items():
                shares = np.asarray(methods[name]["curves"]["distribution"][space])
                axis.stairs(shares, edges, color=colour, linewidth=2, label=titled(methods[name]))
                used = np.flatnonzero(shares > 1e-4)
                if len(used):
                    low, high = min(low, edges[used[0]]), max(high, edges[used[-1] + 1])
            axis.set(title=f"{space.capitalize()} impressions", xscale="log", xlabel="pCVR")
            axis.set_ylim(bottom=0)
            axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0%}"))
            _legend(axis, "upper left")
        for axis in axes:
            axis.set_xlim(low / 1.5, min(high * 1.5, 1))
            _plain_log(axis.xaxis)
        axes[0].set_ylabel("share of impressions")
        return _svg(figure)


def losses(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Returns the training loss of each network over the impressions it has seen, a panel each.

    Args:
        curves: Title -> {"impressions": [...], "loss": [...]}.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(len(curves), 2.7)
        for axis, (title, curve) in zip(axes, curves.items(), strict=True):
            axis.plot(curve["impressions"], curve["loss"], color=INK, linewidth=1.5)
            axis.set(title=title, xlabel="impressions seen")
            axis.set_xlim(left=0)
            axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
            axis.locator_params(nbins=4)
        axes[0].set_ylabel("loss, mean per impression")
        return _svg(figure)


def differences(methods: Methods, titles: Mapping[str, str]) -> str:
    """Returns one panel per task: each method's paired difference to BASE with its interval.

    Args:
        methods: With `differences`; those without are left out.
        titles: Task -> title of the panel.
    """
    known = {name: m for name, m in methods.items() if m.get("differences")}
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(len(titles), 1.1 + 0.42 * len(known), sharey=True)
        for axis, (task, title) in zip(axes, titles.items(), strict=True):
            axis.axvline(0, color=TRUTH, linewidth=1, dashes=(4, 3))
            for y, name in enumerate(known):
                found = known[name]["differences"].get(task)
                if found is None or found["low"] is None:
                    continue
                mean, low, high = (100 * found[key] for key in ("mean", "low", "high"))
                axis.errorbar(
                    mean,
                    y,
                    xerr=[[mean - low], [high - mean]],
                    fmt="o",
                    color=colours(methods)[name],
                    markersize=8,
                    markeredgecolor="white",
                    elinewidth=2,
                )
            axis.set(title=title, xlabel="AUC points minus BASE", ylim=(len(known) - 0.4, -0.6))
            axis.set_yticks(range(len(known)), [titled(m) for m in known.values()])
            axis.grid(axis="y", visible=False)
        return _svg(figure)


def shares(results: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """Returns one panel per task: mean AUC with its deviation over the share trained on.

    Args:
        results: For each share `percent` and `methods`, as `experiment.compare_shares` gives them.
        titles: Task -> title of the panel.
    """
    families: dict[str, Any] = {family: {} for family in results[-1]["methods"]}
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(len(titles), 3.6)
        for axis, (task, title) in zip(axes, titles.items(), strict=True):
            for family, colour in colours(families).items():
                points = [
                    (r["percent"], r["methods"][family][task])
                    for r in results
                    if r["methods"][family].get(task) and r["methods"][family][task]["mean"]
                ]
                axis.errorbar(
                    [x for x, _ in points],
                    [100 * y["mean"] for _, y in points],
                    yerr=[100 * (y["std"] or 0) for _, y in points],
                    fmt="o-",
                    color=colour,
                    markersize=4.5,
                    elinewidth=1.2,
                    label=results[-1]["methods"][family]["title"],
                )
            axis.set(title=title, xlabel="share of the training groups, %", ylabel="AUC, %")
        _legend(axes[0], "lower right")
        return _svg(figure)


def titled(method: Mapping[str, Any]) -> str:
    """Returns a method's title with its setting, if it has one."""
    return " ".join(filter(None, (method["title"], method.get("setting"))))


def short(value: float) -> str:
    """Returns a large number in few characters.

    >>> short(950), short(42_300_135), short(200_000)
    ('950', '42.3M', '200k')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"


def values_at(runs: Sequence[Mapping[str, Any]], place: str) -> list[float]:
    """Returns the numbers at a dotted place of each run that has one there."""
    found = []
    for run in runs:
        value: Any = run
        for key in place.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            found.append(float(value))
    return found


def _calibration_panels(
    methods: Methods, panels: Mapping[str, Mapping[str, Any]], ylabel: str
) -> str:
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(len(panels), 4.7)
        for axis, (title, curves) in zip(axes, panels.items(), strict=True):
            drawn = []
            for name, colour in colours(methods).items():
                if name not in curves:
                    continue
                x, y = (np.asarray(values, float) for values in curves[name])
                kept = (x > 0) & (y > 0)
                axis.plot(
                    x[kept],
                    y[kept],
                    "o-",
                    color=colour,
                    markersize=4.5,
                    markeredgecolor="white",
                    markeredgewidth=0.7,
                    label=titled(methods[name]),
                )
                drawn += [x[kept], y[kept]]
            values = np.concatenate(drawn) if drawn else np.array([0.01, 1])
            values = values if len(values) else np.array([0.01, 1])
            low, high = values.min() / 1.4, values.max() * 1.4
            axis.plot([low, high], [low, high], color=TRUTH, linewidth=1, dashes=(4, 3), zorder=1)
            axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
            axis.set(title=title, xlabel="prediction, mean of the bin", ylabel=ylabel)
            axis.set_aspect("equal")
            axis.annotate(
                "prediction too high",
                (0.97, 0.03),
                xycoords="axes fraction",
                ha="right",
                color=TRUTH,
                fontsize=8.5,
            )
            _legend(axis, "upper left")
            _plain_log(axis.xaxis)
            _plain_log(axis.yaxis)
        return _svg(figure)


def _legend(axis: Axes, place: Any) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc=place)


def _plain_log(axis: Any) -> None:
    """Labels a logarithmic axis 0.01, 0.1 and, where there is room, between them."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    axis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,))
    )
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def _figure(panels: int, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    rows = -(-panels // _MOST_BESIDE)
    columns = -(-panels // rows)
    figure = Figure(figsize=(9.6, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    figure.get_layout_engine().set(w_pad=0.12, wspace=0.03)  # type: ignore[union-attr, call-arg]
    for empty in axes[panels:]:
        empty.set_visible(False)
    return figure, axes[:panels]


def _svg(figure: Figure) -> str:
    """Returns the figure as an <svg> element that scales with its place."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(
        r'<svg([^>]*?) width="[^"]*pt"',
        r"<svg\1",
        re.sub(r' height="[\d.]+pt"', "", svg, count=1),
        count=1,
    )
