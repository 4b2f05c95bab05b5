"""The methods by name: the paper's seven with their grids, and later ones.

Each says what it minimizes, where that is defined, what its pCVR really estimates and where it
fails. All have the same network: one table per field, sum pooling, concatenation, a tower of hidden
layers; and the same optimizer and data. In the formulas y is the click, z the conversion.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from .counterfactual import CounterfactualESMM
from .evaluation import Predictions
from .methods import Method, Network
from .model import ESMM
from .networks import ChainNetwork, CTCVRNetwork, CTRNetwork, CVRNetwork
from .samplers import (
    PROPENSITY_FLOOR,
    clicked,
    inverse_propensity,
    with_copies,
    with_unclicked,
)

_PAPER = "Ma et al., Entire Space Multi-Task Model, SIGIR 2018 (arXiv:1804.07931)"

RATES = (0.1, 0.2, 0.5, 1.0)
"""AMAN's grid in the paper: shares of all unclicked impressions."""
COPIES = (2, 3, 5, 10)
"""OVERSAMPLING's grid in the paper: how often a conversion occurs."""

_CTR = Network(CTRNetwork, shared="ctr")
_CTCVR = Network(CTCVRNetwork, shared="ctcvr")

CTR = Method(
    name="ctr",
    title="CTR network",
    formula="minimize BCE(y, pCTR) over all impressions",
    source=f"{_PAPER}, section 3.2",
    target="p(click | impression)",
    networks={"ctr": _CTR},
)
"""The separately trained network whose pCTR the protocol multiplies with every method's pCVR."""

BASE = Method(
    name="base",
    title="BASE",
    formula="minimize BCE(z, pCVR) over clicked impressions",
    source=f"{_PAPER}, sections 2.2 and 3.1",
    target=(
        "p(conversion | impression, click) as clicked impressions show it; it is used on all "
        "impressions, most of which are unlike those it was trained on (sample selection bias)"
    ),
    instability="few conversions: ids that no click has shown keep their initial rows",
    networks={"cvr": Network(CVRNetwork, clicked)},
)
"""The CVR network trained on clicked impressions alone."""


def aman(rate: float) -> Method:
    """Returns AMAN (all missing as negative) at one share of all unclicked impressions.

    Its pCVR estimates pCTCVR / (pCTR + rate (1 - pCTR)) of the true probabilities: the share of
    conversions among clicked and sampled unclicked impressions. At a rate of 1 that is pCTCVR
    itself: an under-estimate of pCVR by construction, and its ranking is that of pCTCVR.
    """
    whole = rate == 1
    network = _CTCVR if whole else Network(CVRNetwork, with_unclicked(rate))
    return Method(
        name=f"aman-{100 * rate:g}",
        family="aman",
        title="AMAN",
        setting=f"{100 * rate:g} %",
        formula=(
            f"minimize BCE(y and z, pCVR) over clicked impressions and {100 * rate:g} % of all "
            "unclicked ones, these as negatives"
        ),
        source=f"{_PAPER}, section 3.1; Pan et al., One-Class Collaborative Filtering, ICDM 2008",
        target=(
            "p(click and conversion) / (p(click) + rate * (1 - p(click))), far below p(conversion "
            "| click)" + ("; at 100 % it is pCTCVR" if whole else "")
        ),
        instability="the higher the rate, the more it ranks by pCTR instead of pCVR",
        networks={"cvr": network},
        combine=_as_pcvr if whole else _only,
    )


def oversampling(copies: int) -> Method:
    """Returns OVERSAMPLING with each conversion `copies` times in all.

    Its pCVR estimates k p / (1 + (k - 1) p) of the true p: the odds times k. The ranking of the
    truth is kept, the calibration is not.
    """
    return Method(
        name=f"oversampling-{copies}",
        family="oversampling",
        title="OVERSAMPLING",
        setting=f"{copies} times",
        formula=(
            f"minimize BCE(z, pCVR) over clicked impressions, each conversion among them {copies} "
            "times"
        ),
        source=f"{_PAPER}, section 3.1; Weiss, Mining with Rarity, SIGKDD Explorations 2004",
        target="k p / (1 + (k - 1) p) of p = p(conversion | click) on clicked impressions",
        instability="copies of the same conversions are fitted by heart at high k",
        networks={"cvr": Network(CVRNetwork, with_copies(copies))},
    )


UNBIAS = Method(
    name="unbias",
    title="UNBIAS",
    formula=(
        "minimize sum w BCE(z, pCVR) / sum w over clicked impressions, w = 1 / max(pCTR, "
        f"{PROPENSITY_FLOOR:g} * CTR of the training set), pCTR of the repeat's CTR network; the "
        "sums are those of a batch"
    ),
    source=f"{_PAPER}, section 3.1; Zhang, Zhou, Wang et al., KDD 2016, on rejection sampling",
    target=(
        "p(conversion | impression, click) over the entire space, where pCTR is right and above "
        "the floor, and nothing that no feature carries drives both click and conversion"
    ),
    instability=(
        "clicks of a small pCTR weigh most: fewer effective impressions than clicks; dividing by "
        "the weights of the batch pulls small batches towards BASE"
    ),
    networks={
        "ctr": _CTR,
        "cvr": Network(CVRNetwork, inverse_propensity, needs={"ctr": clicked}),
    },
    combine=lambda networks: networks["cvr"],
)
"""BASE with clicked impressions weighted by the inverse of their pCTR."""

DIVISION = Method(
    name="division",
    title="DIVISION",
    formula=(
        "minimize BCE(y, pCTR) and, in another network, BCE(y and z, pCTCVR), both over all "
        "impressions; pCVR = pCTCVR / pCTR, not clipped (log loss clips it at 1)"
    ),
    source=f"{_PAPER}, section 3.1",
    target=(
        "p(conversion | impression, click) as a ratio of two estimates; with the protocol's CTR "
        "network, as here, its CTCVR ranking is the CTCVR network's own"
    ),
    instability="pCVR can exceed 1, and errors of a small pCTR are multiplied",
    networks={"ctr": _CTR, "ctcvr": _CTCVR},
    combine=lambda networks: divided(networks["ctr"], networks["ctcvr"]),
)
"""pCVR as the ratio of two separately trained networks."""

ESMM_NS = Method(
    name="esmm-ns",
    title="ESMM-NS",
    formula=(
        "minimize BCE(y, pCTR) + BCE(y and z, pCTR * pCVR) over all impressions; each tower has "
        "tables of its own"
    ),
    source=f"{_PAPER}, section 3.1 and Eq. 3",
    target="as ESMM",
    instability="the CVR tower's tables learn from conversions alone",
    networks={"esmm": Network(partial(ESMM, shared_tables=False))},
)
"""ESMM without shared tables."""

ESMM_METHOD = Method(
    name="esmm",
    title="ESMM",
    formula=(
        "minimize BCE(y, pCTR) + BCE(y and z, pCTR * pCVR) over all impressions; both towers share "
        "the tables"
    ),
    source=f"{_PAPER}, Eq. 3",
    target=(
        "p(conversion | impression, click), as the factor that turns pCTR into "
        "p(click and conversion | impression) over the entire space"
    ),
    instability=(
        "errors of pCTR pass into pCVR, which is too high on average where pCTR is too low (Wang "
        "et al., SIGIR 2022)"
    ),
    networks={"esmm": Network(ESMM)},
)
"""The entire-space model; it has a pCTR of its own."""

CHAIN = Method(
    name="chain",
    title="Entire-space chain",
    formula=(
        "minimize sum over k of BCE(t_k, p_1 * ... * p_k) over all impressions, t_k: label k and "
        "all before it; a tower for each label of the data, on shared tables"
    ),
    source=f"{_PAPER}, its outlook on more than two stages",
    target="p(label k | impression, all labels before it), for every k",
    instability="as ESMM: errors of a stage pass into the stages behind it",
    stages=True,
    networks={"chain": Network(ChainNetwork)},
)
"""ESMM for any number of ordered labels; with click and conversion it is ESMM."""


def _counterfactual(name: str, title: str, source: str, **options: Any) -> Method:
    terms = {
        "ips": "mean(y e / p)",
        "dr": "mean(e^ + y (e - e^) / p) + mean(y (e - e^)^2 / p)",
    }
    model = partial(CounterfactualESMM, **options)
    both = options["ctcvr_weight"]
    return Method(
        name=name,
        title=title,
        formula=(
            f"minimize BCE(y, pCTR) + {options['cvr_weight']:g} * [{terms[options['estimator']]}]"
            + (f" + {both:g} * BCE(y and z, pCTR * pCVR)" if both else "")
            + " over all impressions, e = BCE(z, pCVR), p = max(pCTR, 0.01) without gradient; "
            "shared tables"
        ),
        source=source,
        target=(
            "p(conversion | impression, click) over the entire space, where pCTR "
            + ("or the imputed error e^ " if options["estimator"] == "dr" else "")
            + "is right"
        ),
        instability="1 / p of a small pCTR; p is a guess early in training",
        networks={"esmm": Network(model)},
    )


_MULTI = "Zhang et al., WWW 2020 (arXiv:1910.09337)"
_ESCM2 = "Wang et al., SIGIR 2022 (arXiv:2204.05125); the weights of the terms are ours"

MULTI_IPW = _counterfactual(
    "multi-ipw", "Multi-IPW", _MULTI, estimator="ips", cvr_weight=1.0, ctcvr_weight=0.0
)
MULTI_DR = _counterfactual(
    "multi-dr", "Multi-DR", _MULTI, estimator="dr", cvr_weight=1.0, ctcvr_weight=0.0
)
ESCM2_IPS = _counterfactual(
    "escm2-ips", "ESCM2-IPS", _ESCM2, estimator="ips", cvr_weight=0.1, ctcvr_weight=1.0
)
ESCM2_DR = _counterfactual(
    "escm2-dr", "ESCM2-DR", _ESCM2, estimator="dr", cvr_weight=0.1, ctcvr_weight=1.0
)


def at_entire_steps(method: Method) -> Method:
    """Returns a method of clicked impressions, trained for the steps of an entire-space method.

    In one epoch such a method takes as many fewer steps as there are fewer clicks than impressions;
    this one goes over its view again and again until it has taken as many.
    """
    networks = {
        name: network if network.shared else replace(network, entire_steps=True)
        for name, network in method.networks.items()
    }
    return replace(
        method,
        name=f"{method.name}-steps",
        family=f"{method.family or method.name}-steps",
        setting=", ".join(filter(None, (method.setting, "ESMM's steps"))),
        networks=networks,
        instability=f"{method.instability}; many epochs over the same clicks: overfits".lstrip(
            "; "
        ),
    )


def _only(networks: Mapping[str, Predictions]) -> Predictions:
    return next(iter(networks.values()))


def _as_pcvr(networks: Mapping[str, Predictions]) -> Predictions:
    """Returns what one network says of click and conversion as a pCVR (AMAN at 100 %)."""
    found = _only(networks)
    return replace(found, pcvr=found.pctcvr, pctcvr=None)


def divided(ctr: Predictions, ctcvr: Predictions) -> Predictions:
    """Returns the predictions of DIVISION: pcvr = pctcvr / pctr, which can exceed 1.

    A pCTR of 0 (a logit below about -104) gives inf, or 0 where pCTCVR is 0 too.
    """
    if ctr.pctr is None or ctcvr.pctcvr is None:
        raise ValueError("expected a pctr of the one and a pctcvr of the other network")
    with np.errstate(divide="ignore", invalid="ignore"):
        pcvr = np.where(ctcvr.pctcvr > 0, ctcvr.pctcvr / ctr.pctr, np.float32(0))
    return replace(ctcvr, pctr=ctr.pctr, pcvr=pcvr)


PAPER = ("base", "aman", "oversampling", "unbias", "division", "esmm-ns", "esmm")
"""The paper's seven, by family: what `--methods all` means."""

STEPS = ("base-steps", "oversampling-steps", "unbias-steps")
"""The methods of clicked impressions at ESMM's number of steps, by family: `--methods steps`."""

_CLICKED = (BASE, *(oversampling(k) for k in COPIES), UNBIAS)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        BASE,
        *(aman(rate) for rate in RATES),
        *(oversampling(k) for k in COPIES),
        UNBIAS,
        DIVISION,
        ESMM_NS,
        ESMM_METHOD,
        MULTI_IPW,
        MULTI_DR,
        ESCM2_IPS,
        ESCM2_DR,
        *(at_entire_steps(method) for method in _CLICKED),
    )
}
"""The methods of a comparison, by name; each setting of a grid is one."""

TRAINABLE: dict[str, Method] = {CTR.name: CTR, CHAIN.name: CHAIN, **METHODS}
"""What `esmm-fast train` can train, by name."""


def by_name(name: str, among: Mapping[str, Method] = METHODS) -> Method:
    """Returns the method of a name.

    Raises:
        ValueError: With the nearest name, and all there are.
    """
    if name not in among:
        raise ValueError(_unknown(name, among))
    return among[name]


def _unknown(name: str, known: Iterable[str]) -> str:
    """Returns what is said of an unknown name, the nearest one first."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"method: unknown name {name!r}; {hint}expected one of {', '.join(names)}"


def family_of(method: Method) -> str:
    """Returns the family of a method: its own name where it has no grid."""
    return method.family or method.name


def resolve(names: Sequence[str]) -> list[Method]:
    """Returns the methods of names, families ("aman": its whole grid), "all" (`PAPER`) and "steps"
    (`STEPS`).

    In the order of `METHODS` within a family, and of the names otherwise.

    Raises:
        ValueError: An unknown name, or one method twice.

    >>> [method.name for method in resolve(["base", "aman"])]
    ['base', 'aman-10', 'aman-20', 'aman-50', 'aman-100']
    """
    families: dict[str, list[Method]] = {}
    for method in METHODS.values():
        families.setdefault(family_of(method), []).append(method)
    found: list[Method] = []
    sets = {"all": PAPER, "steps": STEPS}
    for name in (n for given in names for n in sets.get(given, (given,))):
        if name not in families and name not in METHODS:
            known = dict.fromkeys([*families, *METHODS])
            raise ValueError(_unknown(name, (*sets, *known)))
        found += families.get(name) or [METHODS[name]]
    chosen = [method.name for method in found]
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"methods: expected some names, each once, got {list(names)}")
    return found
