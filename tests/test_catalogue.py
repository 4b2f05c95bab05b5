"""catalogue: what each method minimizes, samples and predicts, against NumPy; names, families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from esmm_fast import Vocabulary
from esmm_fast.catalogue import (
    COPIES,
    CTR,
    METHODS,
    PAPER,
    RATES,
    TRAINABLE,
    aman,
    divided,
    family_of,
    resolve,
)
from esmm_fast.config import Settings
from esmm_fast.evaluation import Predictions
from esmm_fast.methods import build_networks, fit_method, view_facts
from esmm_fast.samplers import Context, clicked

if TYPE_CHECKING:
    from synthetic_log import SyntheticLog

pytest_plugins = ("synthetic_log",)

SETTINGS = Settings(dim=3, hidden=(8,), batch_size=256, init_std=0.5)


def bce(label: np.ndarray, p: np.ndarray) -> np.ndarray:
    return -label * np.log(p) - (1 - label) * np.log(1 - p)


def literal_loss(network: str, method: str, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each impression's loss as the method's formula says it."""
    p = 1 / (1 + np.exp(-logits))
    y, both = labels.T
    if network == "ctr":
        return bce(y, p[:, 0])
    if network in ("cvr", "ctcvr"):
        return bce(both, p[:, 0])  # AMAN, OVERSAMPLING, UNBIAS and BASE differ by view and weight
    entire = bce(y, p[:, 0]) + bce(both, p[:, 0] * p[:, 1])
    if method in ("esmm", "esmm-ns", "chain"):
        return entire
    propensity = np.maximum(p[:, 0], 0.01)
    error = bce(both, p[:, 1])
    if method.endswith("ips") or method.endswith("ipw"):
        cvr = y * error / propensity
    else:
        imputed = np.log1p(np.exp(logits[:, 2]))
        cvr = imputed + y * ((error - imputed) + (error - imputed) ** 2) / propensity
    return entire + 0.1 * cvr if method.startswith("escm2") else bce(y, p[:, 0]) + cvr


@pytest.mark.parametrize("name", TRAINABLE)
def test_the_loss_is_that_of_the_formula(name: str, synthetic_log: SyntheticLog) -> None:
    train, method = synthetic_log.train, TRAINABLE[name]
    vocabulary = Vocabulary.from_dataset(train)
    pctr = np.random.default_rng(0).uniform(0.001, 0.6, int(train.labels()[:, 0].sum()))
    known = {"ctr": Predictions(clicked(train, Context(0)).labels(), pctr=pctr.astype(np.float32))}
    for network, model in build_networks(method, train.schema, vocabulary, SETTINGS, 3).items():
        view = method.networks[network].view(train, Context(3, known))
        batch = next(iter(view.batches(256, vocabulary=vocabulary)))
        out: Any = model(batch)
        found = float(model.loss(out, batch).detach())  # type: ignore[operator]
        each = literal_loss(
            network, name, out.logits.detach().double().numpy(), batch.labels.double().numpy()
        )
        weights = None
        if family_of(method).startswith("unbias") and network == "cvr":
            rows = np.searchsorted(
                train.impressions["sample_id"].to_numpy(), batch.sample_id.numpy()
            )
            of_click = np.cumsum(train.labels()[:, 0] == 1)[rows] - 1
            weights = 1 / np.maximum(pctr[of_click], 0.1 * train.labels()[:, 0].mean())
        assert found == pytest.approx(float(np.average(each, weights=weights)), rel=2e-5)


def test_what_each_method_trains_on(synthetic_log: SyntheticLog) -> None:
    train = synthetic_log.train
    labels = train.labels()
    n, clicks, both = len(train), int(labels[:, 0].sum()), int(labels[:, 1].sum())
    known = {"ctr": Predictions(labels[:clicks], pctr=np.full(clicks, 0.2, np.float32))}
    sizes = {
        name: {
            network: view_facts(method.networks[network].view(train, Context(1, known)))
            for network in method.networks
        }
        for name, method in METHODS.items()
    }

    def of(impressions: int, conversions: int = both) -> dict[str, int]:
        extra = conversions - both
        return {
            "impressions": impressions,
            "clicks": clicks + extra,
            "conversions": conversions,
        }

    assert sizes["base"] == {"cvr": of(clicks)}
    for rate in RATES:
        expected = of(clicks + round(rate * (n - clicks)))
        assert sizes[f"aman-{100 * rate:g}"] == {"cvr": expected}
    for k in COPIES:
        assert sizes[f"oversampling-{k}"] == {"cvr": of(clicks + (k - 1) * both, k * both)}
    assert sizes["division"] == {"ctr": of(n), "ctcvr": of(n)}
    for name in ("esmm", "esmm-ns", "multi-ipw", "multi-dr", "escm2-ips", "escm2-dr"):
        assert sizes[name] == {"esmm": of(n)}
    weighted = sizes["unbias"]["cvr"]
    assert weighted["greatest_weight"] == pytest.approx(1)  # all pCTR are equal here
    assert weighted["effective_impressions"] == pytest.approx(clicks)


def test_effective_impressions() -> None:
    class View:
        impression_weights = np.array([1, 1, 2], np.float32)

        def labels(self, kind: str) -> np.ndarray:
            return np.ones((3, 2))

        def __len__(self) -> int:
            return 3

    facts = view_facts(View())  # type: ignore[arg-type]
    assert facts["effective_impressions"] == pytest.approx(16 / 6)
    assert facts["greatest_weight"] == pytest.approx(1.5)


def test_aman_at_100_percent_is_the_ctcvr_network(synthetic_log: SyntheticLog) -> None:
    train = synthetic_log.train
    vocabulary = Vocabulary.from_dataset(train)
    whole = fit_method(METHODS["aman-100"], train, vocabulary, SETTINGS)
    found = whole.predict(train, vocabulary, SETTINGS)
    division = fit_method(METHODS["division"], train, vocabulary, SETTINGS)
    ratio = division.predict(train, vocabulary, SETTINGS)
    assert found.pctcvr is None and found.pctr is None
    # The same network, so its score is what DIVISION divides by pCTR.
    ctr = fit_method(CTR, train, vocabulary, SETTINGS).predict(train, vocabulary, SETTINGS)
    np.testing.assert_allclose(ratio.pcvr, found.pcvr / ctr.pctr, rtol=1e-6)
    # As a view and network of its own it is the same training.
    assert METHODS["aman-100"].networks["cvr"] == METHODS["division"].networks["ctcvr"]
    assert len(aman(0.999).networks["cvr"].view(train, Context(0))) == pytest.approx(2000, abs=2)


def test_division_is_a_raw_ratio() -> None:
    labels = np.zeros((4, 2), np.float32)
    pctr = np.array([0.5, 0.1, 0.0, 0.0], np.float32)
    pctcvr = np.array([0.1, 0.4, 0.2, 0.0], np.float32)
    found = divided(Predictions(labels, pctr=pctr), Predictions(labels, pctcvr=pctcvr))
    assert found.pcvr.tolist() == [pytest.approx(0.2), pytest.approx(4.0), np.inf, 0.0]
    assert found.pctr is pctr  # what corrects pCTCVR after a down-sampling
    with pytest.raises(ValueError, match="expected a pctr of the one and a pctcvr of the other"):
        divided(Predictions(labels), Predictions(labels, pctcvr=pctcvr))


def test_unbias_weighs_by_its_own_ctr_network(synthetic_log: SyntheticLog) -> None:
    """Without a comparison around it, the method trains the CTR network itself."""
    train = synthetic_log.train
    vocabulary = Vocabulary.from_dataset(train)
    alone = fit_method(METHODS["unbias"], train, vocabulary, SETTINGS, seed=2)
    assert list(alone.networks) == ["ctr", "cvr"]
    ctr = fit_method(CTR, train, vocabulary, SETTINGS, seed=2)
    view = clicked(train, Context(2))
    given = {"ctr": ctr.predict(view, vocabulary, SETTINGS)}
    other = fit_method(METHODS["unbias"], train, vocabulary, SETTINGS, seed=2, predictions=given)
    a, b = (t.predict(train, vocabulary, SETTINGS).pcvr for t in (alone, other))
    np.testing.assert_array_equal(a, b)
    assert alone.views["cvr"]["effective_impressions"] < len(view)


def test_entire_steps_are_esmms(synthetic_log: SyntheticLog) -> None:
    train = synthetic_log.train
    vocabulary = Vocabulary.from_dataset(train)
    settings = Settings(dim=2, hidden=(4,), batch_size=100, epochs=2)
    esmm = fit_method(METHODS["esmm"], train, vocabulary, settings)
    for name in ("base-steps", "oversampling-3-steps"):
        longer = fit_method(METHODS[name], train, vocabulary, settings)
        short = fit_method(METHODS[name.removesuffix("-steps")], train, vocabulary, settings)
        assert longer.steps == esmm.steps == 40 > short.steps
        assert longer.views == short.views
    unbias = METHODS["unbias-steps"].networks
    assert unbias["cvr"].entire_steps and not unbias["ctr"].entire_steps


def test_names_families_and_all() -> None:
    grids = [f"aman-{r}" for r in (10, 20, 50, 100)], [f"oversampling-{k}" for k in COPIES]
    expected = ["base", *grids[0], *grids[1], "unbias", "division", "esmm-ns", "esmm"]
    assert [m.name for m in resolve(["all"])] == expected
    assert [m.name for m in resolve(["esmm", "aman-20", "base"])] == ["esmm", "aman-20", "base"]
    families = {family_of(m) for m in METHODS.values()}
    assert set(PAPER) <= families and len({m.title for m in METHODS.values()}) >= len(PAPER)
    named = [m for m in METHODS.values() if m.family not in ("", m.name) and "steps" not in m.name]
    assert all(m.setting for m in named) and len(named) == 8
    at_steps = ["base-steps", *(f"{name}-steps" for name in grids[1]), "unbias-steps"]
    assert [m.name for m in resolve(["steps"])] == at_steps
    with pytest.raises(ValueError, match="methods: expected some names, each once"):
        resolve(["aman", "aman-20"])
    with pytest.raises(ValueError, match="methods: expected some names, each once"):
        resolve([])


def test_every_method_is_described() -> None:
    for method in METHODS.values():
        assert method.formula and method.source and method.target and method.instability
