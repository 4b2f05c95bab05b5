"""compare: several methods on one training and one test set, by the protocol of the paper.

CVR task: AUC of pCVR over clicked test impressions. CTCVR task: AUC of pCTR * pCVR over all test
impressions, where pCTR comes, for every method, from one separately trained CTR network per repeat.
A model's own pCTR is reported apart. Source: arXiv:1804.07931, sections 3.1 to 3.3.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from .. import __version__
from ..catalogue import CTR, family_of, resolve
from ..config import Settings, settings_before
from ..data.dataset import Dataset
from ..data.facts import counts, dataset_identity
from ..evaluation import Truth
from ..machine import available_memory, machine, now
from ..methods import Method
from ..run.memory import training_memory
from ..samplers import share_of_groups, split_off_end
from ..schema import check_same_fields
from ..vocabulary import Vocabulary
from .records import VERSION, Guard, Records
from .results import DIFFERENCES, RESULTS, best_of, differences, label, summarize
from .runner import Runner, key_of

PROTOCOL = (
    "CVR: AUC of pCVR over clicked test impressions. CTCVR: AUC of pCTR * pCVR over all test "
    "impressions, pCTR from one separately trained CTR network per repeat, the same for every "
    "method. The vocabulary is made from the training set. From the paper: network, embedding "
    "dimension, Adam's betas and eps, the grids. The paper leaves open learning rate, batch size, "
    "epochs and initialization: those are ours (see the settings)."
)


def compare(
    train: Dataset,
    test: Dataset,
    methods: Sequence[str] = ("base", "esmm"),
    *,
    repeats: int = 10,
    settings: Settings | None = None,
    truth: Truth | None = None,
    out: str | Path | None = None,
    holdout: float = 0.0,
    select: str = "test",
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Returns the results of a comparison: what was run, every run's metrics, mean and deviation.

    Args:
        train: Training set; the vocabulary is made from it.
        test: Test set.
        methods: Names, families and "all", as `catalogue.resolve` takes them.
        repeats: Times that everything is trained anew, with the seeds `settings.seed + repeat`.
        settings: Of every network; None means the defaults.
        truth: The true probabilities of the test impressions, where they are known.
        out: Directory that keeps every finished run; a call with the same arguments (methods and
            repeats may be more) goes on where one was stopped. None: nothing is kept.
        holdout: Share of the training set, its last groups, that nothing is trained on and every
            run is evaluated on too (`valid`); 0 means none.
        select: Where the best setting of a grid is looked for, by the mean CVR AUC over repeats:
            "test", as the paper does it and too favourable to grids, or "valid", the held-out part.
        progress: Shows bars.
        say: Receives one line for each finished run, with the time left.

    Returns:
        A dict of plain values, as `results.write` saves it: `protocol`, `settings`, `data`,
        `repeats`, `ctr_network`, `methods.<name>.{title, setting, ..., runs, summary, differences,
        curves}`, `families.<family>.{title, members, best}` and `rows`, the methods that stand for
        their families. `summary` has for each metric its `mean`, `std` (n - 1; null for one run)
        and `runs`; `differences` are paired to BASE; `curves` are those of the first repeat.

    Raises:
        ValueError: For an unknown or repeated method, or sets of different fields.
        FileExistsError: `out` holds something else, a comparison of other arguments, or results of
            more methods or repeats; or another process is at work there.
    """
    settings = settings or Settings()
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    if select not in ("test", "valid") or (select == "valid" and not holdout):
        raise ValueError(
            f"select: expected 'test', or 'valid' with a holdout, got {select!r} and {holdout}"
        )
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout: expected a share from 0 to below 1, got {holdout}")
    chosen = resolve(methods)
    _check_not_fewer(out, [method.name for method in chosen], repeats)
    for name, each in (("train", train), ("test", test)):
        if not len(each):
            raise ValueError(f"{name}: expected impressions, got none in {each.path}")
    check_same_fields(train.schema, test.schema, train.path, test.path)
    if truth is not None:
        truth.check_covers(test)
    parts = {"test": test}
    if holdout:
        train, parts["valid"] = split_off_end(train, holdout)
    plan = _plan(train, test, settings, holdout, truth)
    with Records(out, plan, before=_plan_before(plan)) as records:
        if records.begun_by != __version__:
            say(
                f"begun by esmm_fast {records.begun_by}, goes on with {__version__}: each run says "
                "its version; the same seed may give other bits"
            )
        vocabulary = Vocabulary.from_dataset(
            train,
            settings.min_count,
            schema=train.schema.with_tables(rows=settings.rows),
            selected=train.selection is not None,
        )
        sized = vocabulary.sized(train.schema)
        networks = {id(n.model): n for m in (CTR, *chosen) for n in m.networks.values()}
        needed = [training_memory([n], sized, settings) for n in networks.values()]  # in turn
        most = max(needed, key=lambda each: each.total)
        say(most.lines(checkpoint=False)[0])
        most.check(available_memory(), checkpoint=False)
        runner = Runner(train, parts, chosen, settings, truth, vocabulary, records, progress)
        by_method = _run_all(runner, chosen, repeats, say)
    base = by_method.get("base", [])
    described = {m.name: _described(m, by_method[m.name], base) for m in chosen}
    families = _families(chosen, described)
    return {
        "format": "esmm_fast comparison",
        "version": 2,
        "esmm_fast": __version__,
        "made": now(),
        "machine": machine(),
        "protocol": PROTOCOL,
        "settings": msgspec.to_builtins(settings),
        "repeats": repeats,
        "holdout": holdout,
        "select": select,
        "data": {name: counts(d) for name, d in {"train": train, **parts}.items()},
        "truth_known": truth is not None,
        "ctr_network": {"runs": by_method[CTR.name], "summary": summarize(by_method[CTR.name])},
        "methods": described,
        "families": families,
        "rows": [f["best"][select] or f["members"][0] for f in families.values()],
    }


def compare_shares(
    train: Dataset,
    test: Dataset,
    methods: Sequence[str],
    shares: Sequence[float],
    *,
    out: str | Path | None = None,
    settings: Settings | None = None,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> dict[str, Any]:
    """Returns the results on the largest share of the training set, with `shares` of all of them.

    The protocol of the paper's Figure 3: the training set is subsampled, the test set is not.
    Shares are of **groups**: a share of the common rows, drawn at random and nested, with all of
    their impressions; that keeps the log's form. The vocabulary is made from the share alone. The
    draw is by `settings.seed` and the same for every repeat.

    Args:
        shares: In percent, each once.
        out: Directory; each share is kept below it. More shares may be added to it.
        options: As in `compare`.

    Raises:
        FileExistsError: As in `compare`; also where `out` holds a comparison on one training set.
    """
    if not shares or len(set(shares)) != len(shares):
        raise ValueError(f"train_shares: expected some shares, each once, got {list(shares)}")
    settings = settings or Settings()
    chosen = [method.name for method in resolve(methods)]
    _check_not_fewer(out, chosen, options.get("repeats", 10), shares)
    holdout, truth = options.get("holdout", 0.0), options.get("truth")
    plan = _plan(train, test, settings, holdout, truth) | {"train_shares": True}
    found = {}
    with Guard(out, plan, before=_plan_before(plan), below="share-*"):
        for share in sorted(shares):
            say(f"{share:g} % of the training groups")
            found[share] = compare(
                share_of_groups(train, share / 100, settings.seed),
                test,
                methods,
                out=None if out is None else Path(out) / f"share-{share:g}",
                settings=settings,
                say=say,
                **options,
            )
    results = found[max(found)]
    results["shares"] = [
        {
            "percent": share,
            **{k: v for k, v in r["data"]["train"].items() if k != "path"},
            "methods": {
                family: {
                    "name": name,
                    "title": label(r["methods"][name]),
                    **{t: r["methods"][name]["summary"].get(p) for t, p in DIFFERENCES.items()},
                }
                for family, name in zip(r["families"], r["rows"], strict=True)
            },
        }
        for share, r in found.items()
    ]
    return results


def _plan(
    train: Dataset, test: Dataset, settings: Settings, holdout: float, truth: Truth | None
) -> dict[str, Any]:
    """Returns all that the numbers of a comparison depend on."""
    return {
        VERSION: __version__,
        "settings": settings,
        "holdout": holdout,
        "truth": truth is not None,
        "truth_crc32": None if truth is None else truth.crc32(),
        "train": dataset_identity(train),
        "test": dataset_identity(test),
    }


def _plan_before(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what counts for a plan of an earlier version where it lacks a key.

    A truth whose checksum that version did not keep is taken for the one that is given now.
    """
    return {"settings": settings_before(), "truth_crc32": plan["truth_crc32"]}


def _check_not_fewer(
    out: str | Path | None,
    methods: Sequence[str],
    repeats: int,
    shares: Sequence[float] = (),
) -> None:
    """Raises FileExistsError where `out` holds results that this comparison would make fewer."""
    path = None if out is None else Path(out) / RESULTS
    if path is None or not path.is_file():
        return
    found = msgspec.json.decode(path.read_bytes())
    missing = [f"method {name}" for name in found["methods"] if name not in methods]
    missing += [f"repeat {n + 1}" for n in range(repeats, found["repeats"])]
    of_shares = [share["percent"] for share in found.get("shares", ())]
    missing += [f"share {share:g}" for share in of_shares if share not in shares]
    if missing:
        raise FileExistsError(
            f"{out}: holds results with {missing[0]}, which is not asked for now: what there is "
            "may grow and does not shrink; ask for it too, or give another directory"
        )


def _run_all(
    runner: Runner, chosen: Sequence[Method], repeats: int, say: Callable[[str], None]
) -> dict[str, list[dict[str, Any]]]:
    """Returns every run, by method: those that are kept, and the others run now."""
    in_order = [CTR, *sorted(chosen, key=lambda m: m.name != "base")]  # BASE first: others need it
    with_base = any(m.name == "base" for m in chosen)
    todo = [
        (repeat, m)
        for repeat in range(repeats)
        for m in in_order
        if not runner.is_done(repeat, m, with_base)
    ]
    total = repeats * len(in_order)
    if len(todo) < total:
        say(f"{total - len(todo)} of {total} runs are there already")
    seconds: dict[str, float] = {}
    for at, (repeat, method) in enumerate(todo):
        started = time.perf_counter()
        record = runner.run(repeat, method)
        runner.records.save(key_of(repeat, method.name), record)
        seconds[method.name] = time.perf_counter() - started
        mean = sum(seconds.values()) / len(seconds)
        left = sum(seconds.get(m.name, mean) for _, m in todo[at + 1 :])
        networks = record["networks"].values()
        seen = sum(n["impressions"] for n in networks)
        spent = sum(n["seconds"] for n in networks)
        title = " ".join(filter(None, (method.title, method.setting)))
        say(
            f"run {total - len(todo) + at + 1}/{total}, repeat {repeat + 1}/{repeats}, {title}: "
            f"{sum(n['steps'] for n in networks):,} steps, {seen:,} impressions in {spent:.1f} s "
            f"({seen / max(spent, 1e-9):,.0f}/s); {_time_left(left)}"
        )
    for repeat, method in itertools.product(range(repeats), chosen if with_base else ()):
        runner.pair_with_base(repeat, method)
    return {
        m.name: [runner.records.record(key_of(repeat, m.name)) for repeat in range(repeats)]
        for m in in_order
    }


def _described(method: Method, runs: Sequence[dict[str, Any]], base: Any) -> dict[str, Any]:
    curves = runs[0]["curves"]
    plain = [{k: v for k, v in run.items() if k != "curves"} for run in runs]
    return {
        "title": method.title,
        "family": family_of(method),
        "setting": method.setting,
        "formula": method.formula,
        "source": method.source,
        "target": method.target,
        "instability": method.instability,
        "runs": plain,
        "summary": summarize(plain),
        "differences": {} if method.name == "base" else differences(plain, base),
        "curves": curves,
    }


def _families(chosen: Sequence[Method], described: Mapping[str, Any]) -> dict[str, Any]:
    members: dict[str, list[str]] = {}
    for method in chosen:
        members.setdefault(family_of(method), []).append(method.name)
    return {
        family: {
            "title": described[names[0]]["title"],
            "members": names,
            "best": {
                "test": best_of(names, described, "metrics.cvr.auc"),
                "valid": best_of(names, described, "valid.cvr.auc"),
            },
        }
        for family, names in members.items()
    }


def _time_left(seconds: float) -> str:
    if seconds <= 0:
        return "done"
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    return (
        f"about {seconds / 60:.0f} min left"
        if seconds < 5400
        else f"about {seconds / 3600:.1f} h left"
    )


def synthetic_parameters(truth: str | Path | None) -> dict[str, Any] | None:
    """Returns the parameters of the synthetic log whose truth this is, if they lie beside it."""
    if truth is None:
        return None
    path = Path(truth).parent / "synth.json"
    if not path.is_file():
        return {}
    parameters: dict[str, Any] = msgspec.json.decode(path.read_bytes()).get("parameters", {})
    return parameters
