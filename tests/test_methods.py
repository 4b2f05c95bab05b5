"""methods: what each trains on, against which label, and what it predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from esmm_fast import Vocabulary, metrics
from esmm_fast.catalogue import CTR, METHODS, TRAINABLE, by_name
from esmm_fast.config import Settings
from esmm_fast.methods import fit_method
from esmm_fast.samplers import Context

if TYPE_CHECKING:
    from synthetic_log import SyntheticLog

pytest_plugins = ("synthetic_log",)

SETTINGS = Settings(dim=4, hidden=(16,), batch_size=256)


def test_every_method_is_described() -> None:
    assert list(TRAINABLE) == ["ctr", "chain", *METHODS]
    for name, method in TRAINABLE.items():
        assert method.name == name and method.networks
        assert method.title and method.formula and method.source and method.target
    with pytest.raises(ValueError, match=r"method: unknown name 'ctr'; .*one of base, aman-10, "):
        by_name("ctr")


def test_base_sees_clicked_impressions_alone(synthetic_log: SyntheticLog) -> None:
    train = synthetic_log.train
    view = METHODS["base"].networks["cvr"].view(train, Context(0))
    labels = train.labels()
    assert len(view) == labels[:, 0].sum() < len(train)
    assert view.labels()[:, 0].all() and view.labels()[:, 1].sum() == labels[:, 1].sum()
    assert METHODS["esmm"].networks["esmm"].view(train, Context(0)) is train


def test_base_learns_the_conversion_and_ctr_the_click(synthetic_log: SyntheticLog) -> None:
    train = synthetic_log.train
    vocabulary = Vocabulary.from_dataset(train)
    settings = Settings(
        dim=4, hidden=(16,), batch_size=64, group_limit=1, epochs=6, lr=0.01, init_std=0.1
    )
    labels = train.labels()
    clicked = labels[:, 0] == 1

    trained = fit_method(CTR, train, vocabulary, settings)
    found = trained.predict(train, vocabulary, settings)
    assert found.pcvr is None and found.pctcvr is None
    assert metrics.auc(labels[:, 0], found.pctr) > 0.8
    assert found.pctr.mean() == pytest.approx(clicked.mean(), rel=0.3)

    trained = fit_method(METHODS["base"], train, vocabulary, settings)
    found = trained.predict(train, vocabulary, settings)
    assert found.pctr is None and found.pctcvr is None
    assert metrics.auc(labels[clicked, 1], found.pcvr[clicked]) > 0.8
    assert found.pcvr[clicked].mean() == pytest.approx(labels[clicked, 1].mean(), rel=0.3)


def test_esmm_predicts_all_three(synthetic_log: SyntheticLog) -> None:
    train, test = synthetic_log.train, synthetic_log.test
    vocabulary = Vocabulary.from_dataset(train)
    trained = fit_method(METHODS["esmm"], train, vocabulary, SETTINGS)
    assert trained.steps == 8
    assert trained.histories["esmm"].impressions == len(train)
    found = trained.predict(test, vocabulary, SETTINGS)
    np.testing.assert_allclose(found.pctcvr, found.pctr * found.pcvr, rtol=1e-5)
    assert found.sample_id.tolist() == test.impressions["sample_id"].to_pylist()
    np.testing.assert_array_equal(found.labels, test.labels())
    # The size of an evaluation's batches does not show in its result.
    small = Settings(dim=4, hidden=(16,), evaluation_batch_size=77)
    other = trained.predict(test, vocabulary, small)
    np.testing.assert_allclose(other.pcvr, found.pcvr, rtol=1e-5)


def test_the_seed_decides_alone(synthetic_log: SyntheticLog) -> None:
    train = synthetic_log.train
    vocabulary = Vocabulary.from_dataset(train)
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(found))  # whatever stands in torch's own generator
        trained = fit_method(CTR, train, vocabulary, SETTINGS, seed=seed)
        found.append(trained.predict(train, vocabulary, SETTINGS).pctr)
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_nothing_to_train_on_is_an_error(synthetic_log: SyntheticLog) -> None:
    train = synthetic_log.train
    unclicked = train.select(train.labels()[:, 0] == 0)
    with pytest.raises(ValueError, match=r"base: network 'cvr' .* holds none of its"):
        fit_method(METHODS["base"], unclicked, Vocabulary.from_dataset(train), SETTINGS)
