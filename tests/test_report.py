"""report: one page without outside resources, with every section its results allow."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.dom import minidom

import msgspec
import numpy as np
import pytest

from esmm_fast.catalogue import METHODS
from esmm_fast.comparison import experiment, plots, report, runner
from esmm_fast.comparison import results as tables
from esmm_fast.config import Settings
from esmm_fast.evaluation import Predictions, Truth, task_metrics


def results_of(
    repeats: int = 1,
    truth: bool = True,
    clicks: bool = True,
    names: tuple[str, ...] = ("base", "esmm"),
) -> dict[str, Any]:
    """Results of a comparison, of invented predictions."""
    random = np.random.default_rng(0)
    n = 2_000
    true = Truth(np.arange(n), random.beta(2, 8, n), random.beta(2, 6, n))
    if not clicks:
        true = replace(true, pctr=np.full(n, 1e-6))
    click = (random.random(n) < true.pctr) & clicks
    labels = np.stack([click, click & (random.random(n) < true.pcvr)], 1).astype(np.float32)
    known = true if truth else None

    def network(steps: int) -> dict[str, Any]:
        curve = {"impressions": [n // 2, n], "loss": [0.7, 0.5]}
        facts = {"steps": steps, "impressions": n, "seconds": 1.5, "loss_curve": curve}
        return {**facts, "impressions_per_second": n / 1.5}

    ctr = {
        "repeat": 0,
        "seed": 0,
        "networks": {"ctr": network(8)},
        "metrics": task_metrics(Predictions(labels, pctr=true.pctr)),
    }
    by_method: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        runs = []
        for repeat in range(repeats):
            noise = random.normal(0, 0.02 * (1 + repeat), n)
            pcvr = np.clip(true.pcvr + noise, 0.01, 1).astype(np.float32)
            found = Predictions(labels, true.sample_id, true.pctr, pcvr, true.pctr * pcvr)
            run = {"repeat": repeat, "seed": repeat, "networks": {name: network(8)}}
            run |= {"metrics": task_metrics(found, known), "valid": {"cvr": {"auc": 0.5}}}
            run["pcvr_above_1"] = {"all": 0.25, "clicked": 0.5} if name == "division" else {}
            error = {"auc_error": 0.0123, "minus_base_error": 0.01}
            run["intervals"] = {"cvr": error, "ctcvr": error}
            if name == "esmm":
                run["own_pctr"] = {k: v for k, v in run["metrics"].items() if k in ("ctr", "ctcvr")}
            if repeat == 0:
                run["curves"] = runner.curves_of(found, known)
            runs.append(run)
        by_method[name] = runs
    chosen = [METHODS[name] for name in names]
    base = by_method.get("base", [])
    methods = {m.name: experiment._described(m, by_method[m.name], base) for m in chosen}
    families = experiment._families(chosen, methods)
    counts = {"path": "data", "impressions": n, "common_rows": 9, "conversions": 50}
    counts["clicks"] = int(click.sum())
    return {
        "esmm_fast": "0.1.0",
        "made": "2026-01-02T03:04:05+00:00",
        "machine": {"processor": "a <b> processor"},
        "protocol": experiment.PROTOCOL,
        "settings": msgspec.to_builtins(Settings()),
        "repeats": repeats,
        "select": "test",
        "families": families,
        "rows": [family["best"]["test"] or family["members"][0] for family in families.values()],
        "data": {"train": counts, "test": counts},
        "truth_known": truth,
        "synthetic": {"ctr": 0.1, "cvr": 0.1} if truth else None,
        "ctr_network": {"runs": [ctr], "summary": tables.summarize([ctr])},
        "methods": methods,
    }


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.+?)</h2>", page)


def test_all_sections_of_a_synthetic_comparison(tmp_path: Path) -> None:
    path = report.write(results_of(), tmp_path / "report.html")
    page = path.read_text()
    assert headings(page)[2:] == [
        "Against the labels",
        "Differences to BASE",
        "Beside the paper's Table 2",
        "Against the true pCVR",
        "Sample selection bias",
        "Calibration",
        "How pCVR is distributed",
        "ROC curves",
        "Training",
        "Which number is over which space",
        "How it was made",
    ]
    assert "The rates of this log are raised: asked for were CTR 10 % and CVR 10 %" in page
    assert "BASE and ESMM on a synthetic log" in page
    assert "2026-01-02 03:04" in page


def test_the_page_needs_nothing_from_outside() -> None:
    page = report.render(results_of())
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', page)
    assert "<script" not in page and "@import" not in page and "url(http" not in page
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(svgs) == 6
    for svg in svgs:
        minidom.parseString(svg)  # well-formed
        assert not re.match(r'<svg[^>]* (width|height)="', svg)


def test_text_from_outside_is_escaped() -> None:
    page = report.render(results_of())
    assert "a &lt;b&gt; processor" in page and "a <b> processor" not in page


def test_a_real_log_has_no_truth() -> None:
    page = report.render(results_of(truth=False))
    assert "Sample selection bias" not in headings(page)
    assert "Against the true pCVR" not in headings(page)
    assert "The rates of this log are raised" not in page
    assert "BASE and ESMM on your log" in page


def test_repeats_are_drawn_as_dots() -> None:
    one, three = (report.render(results_of(repeats)) for repeats in (1, 3))
    assert "Every run (pale)" in three and "Every run (pale)" not in one
    assert "3 repeats, mean ± standard deviation" in three

    def labels_section(page: str) -> str:
        return page[page.index("Against the labels") : page.index("Differences to BASE")]

    assert re.search(r"\d\d\.\d\d ± \d\.\d\d", labels_section(three))
    assert not re.search(r"\d ± \d", labels_section(one))


def test_a_test_set_without_clicks_still_gives_a_page() -> None:
    page = report.render(results_of(clicks=False))
    assert "nan" not in re.sub(r"<svg.*?</svg>|<style.*?</style>", "", page, flags=re.DOTALL)


def test_unequal_numbers_of_steps_are_said() -> None:
    results = results_of()
    assert "Optimizer steps:" not in report.render(results)
    results["methods"]["base"]["runs"][0]["networks"]["base"]["steps"] = 2
    assert report.render(results).count("Optimizer steps: BASE 2, ESMM 8.") == 2  # at the bias too


def test_methods_at_the_steps_of_esmm_stand_below_themselves() -> None:
    results = results_of(names=("base", "base-steps", "oversampling-3", "unbias-steps", "esmm"))
    results["methods"]["base"]["runs"][0]["networks"]["base"] |= {"steps": 2, "impressions": 500}
    results["methods"]["esmm"]["summary"]["metrics.cvr.auc"] = {"mean": 0.61, "std": None}
    page = report.render(results)
    assert "ESMM&#39;s number of steps" in page or "At ESMM's number of steps" in headings(page)
    rows = tables.steps_table(results)["rows"]
    assert [row["name"] for row in rows] == ["base", "base-steps", "esmm", "unbias-steps"]
    assert rows[0]["cells"][:2] == ["2", "500"] and rows[1]["cells"][:2] == ["8", "2,000"]
    assert "| BASE ESMM's steps | 8 | 2,000 | " in tables.markdown(results)
    assert "| ESMM | 8 | 2,000 | 61.00 | " in tables.markdown(results)


def test_steps_without_such_methods_are_a_short_table() -> None:
    text = tables.markdown(results_of())
    assert "| training | optimizer steps | impressions trained on |" in text
    assert "| ESMM | 8 | 2,000 |" in text


def test_means_of_one_training_are_called_one_draw() -> None:
    results = results_of()
    assert "one training is one draw" in report.render(results)
    results["repeats"] = 3
    assert "one training is one draw" not in report.render(results)


def test_rates_as_published_are_not_called_raised() -> None:
    results = results_of()
    results["synthetic"] = {"ctr": 0.0389, "cvr": 0.00535}
    assert "are raised" not in report.render(results)


def test_the_best_value_of_a_column_is_marked() -> None:
    results = results_of()
    for name, value in (("base", 0.6), ("esmm", 0.7)):
        results["methods"][name]["summary"]["metrics.cvr.auc"]["mean"] = value
    page = report.render(results)
    assert re.search(r'<td class="first best">70\.00</td>', page)
    assert re.search(r'<td class="first ">60\.00</td>', page)


def test_a_run_has_a_page_of_its_own() -> None:
    comparison = results_of()
    labels = np.array([[1, 1], [0, 0], [1, 0]], np.float32)
    p = np.array([0.5, 0.2, 0.4], np.float32)
    results = {
        "esmm_fast": "0.1.0",
        "made": comparison["made"],
        "machine": {},
        "method": "esmm",
        "title": "ESMM",
        "config": {"train": "data/train", "valid": None, "settings": {"lr": 0.001}},
        "data": {"train": comparison["data"]["train"]},
        "networks": comparison["methods"]["esmm"]["runs"][0]["networks"],
    }
    page = report.render(results)
    assert headings(page)[1:] == ["Training", "How it was made"]
    results["valid"] = task_metrics(Predictions(labels, None, p, p, p * p))
    page = report.render(results)
    assert headings(page)[1:] == ["Validation", "Training", "How it was made"]
    assert "settings.lr" in page and "A run of ESMM" in page


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    results = results_of()
    tables.write(results, tmp_path)
    page = report.render(json.loads((tmp_path / "results.json").read_text()))
    assert page == report.render(results)


def test_figures_are_the_same_each_time() -> None:
    methods = results_of()["methods"]
    assert plots.calibration(methods) == plots.calibration(methods)
    with pytest.raises(KeyError):
        plots.roc({"base": {"title": "BASE", "curves": {}}})


SEVEN = ("base", "aman-10", "aman-100", "oversampling-2", "unbias", "division", "esmm-ns", "esmm")


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<svg.*?</svg>|<[^>]+>", " ", page, flags=re.DOTALL))


def test_seven_methods_with_a_grid() -> None:
    results = results_of(3, names=SEVEN)
    for name, value in (("aman-10", 0.61), ("aman-100", 0.62)):
        results["methods"][name]["summary"]["metrics.cvr.auc"]["mean"] = value
    results["rows"] = [n for n in SEVEN if n != "aman-10"]
    results["families"]["aman"]["best"] = {"test": "aman-100", "valid": "aman-10"}
    results["command"] = "esmm-fast compare --methods all <x>"
    page = report.render(results)
    text = text_of(page)
    assert "7 methods on a synthetic log" in text and "--methods all &lt;x&gt;" in page
    assert "The whole grids" in headings(page)
    grid = text[text.index("The whole grids") : text.index("Against the true pCVR")]
    assert re.search(r"AMAN 10 % 61\.00 .* best on the held-out end", grid)
    assert re.search(r"AMAN 100 % 62\.00 .* best on the test set", grid)
    # The main tables have one row a family.
    main = text[text.index("Against the labels") : text.index("Differences to BASE")]
    assert "AMAN 100 %" in main and "AMAN 10 %" not in main
    assert "DIVISION, 25 % of all and 50 % of clicked test impressions." in main
    assert "of about 1.2 points (DeLong" in main
    assert "BASE 60" not in grid
    paper = text[text.index("Beside the paper") : text.index("The whole grids")]
    assert "ESMM " in paper and "68.56 ± 0.37 +2.56" in paper and "65.32 ± 0.49 +3.25" in paper
    assert len(plots.colours(results["methods"])) == len(SEVEN)
    assert len(set(plots.colours(results["methods"]).values())) == len(SEVEN)


def test_differences_are_shown_with_their_intervals() -> None:
    results = results_of(3)
    found = results["methods"]["esmm"]["differences"]
    for task, mean in (("cvr", 0.02), ("ctcvr", -0.01)):
        found[task] |= {"mean": mean, "low": mean - 0.005, "high": mean + 0.005}
    text = text_of(report.render(results))
    assert "+2.00 [+1.50, +2.50]" in text and "-1.00 [-1.50, -0.50]" in text


def test_shares_of_the_training_set() -> None:
    results = results_of(2)
    summary = {"mean": 0.6, "std": 0.01, "runs": 2}
    of = {"title": "ESMM", "cvr": summary, "ctcvr": summary, "truth": None}
    results["shares"] = [
        {"percent": share, "impressions": 10 * share, "methods": {"esmm": of}} for share in (1, 100)
    ]
    page = report.render(results)
    assert "Less training data" in headings(page) and "Shares are of groups" in page


def test_a_page_stays_small() -> None:
    assert len(report.render(results_of(3, names=SEVEN)).encode()) < 1_500_000
