"""counterfactual: the losses of Multi-IPW/DR and ESCM2 against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from esmm_fast import Batch
from esmm_fast.counterfactual import CounterfactualESMM

FIELDS = {"item": 9, "shop": 5}


def batch_of(n: int = 24, seed: int = 0, weighted: bool = False) -> Batch:
    random = np.random.default_rng(seed)
    click = random.random(n) < 0.5
    conversion = click & (random.random(n) < 0.5)
    return Batch.from_bags(
        {"item": (random.integers(0, 9, n), None), "shop": (random.integers(0, 5, n), None)},
        labels=np.stack([click, conversion], 1).astype(np.float32),
        schema=FIELDS,
        impression_weights=random.random(n).astype(np.float32) if weighted else None,
    )


def model_of(estimator: str, **options: float) -> CounterfactualESMM:
    return CounterfactualESMM(FIELDS, estimator, dim=3, hidden=(6,), init_std=1.0, **options)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def bce(label: np.ndarray, p: np.ndarray) -> np.ndarray:
    return -label * np.log(p) - (1 - label) * np.log(1 - p)


def expected_loss(
    logits: np.ndarray,
    batch: Batch,
    estimator: str,
    cvr_weight: float,
    ctcvr_weight: float,
    clip: float,
) -> float:
    """The formulas of the class, written out."""
    click, conversion = batch.labels.double().numpy().T
    pctr, pcvr = sigmoid(logits[:, 0]), sigmoid(logits[:, 1])
    error = bce(conversion, pcvr)
    p = np.maximum(pctr, clip)
    if estimator == "ips":
        cvr = click * error / p
    else:
        imputed = np.log1p(np.exp(logits[:, 2]))
        cvr = imputed + click * (error - imputed) / p + click * (error - imputed) ** 2 / p
    loss = bce(click, pctr) + cvr_weight * cvr + ctcvr_weight * bce(conversion, pctr * pcvr)
    weights = batch.impression_weights
    return float(np.average(loss, weights=None if weights is None else weights.numpy()))


@pytest.mark.parametrize("estimator", ["ips", "dr"])
@pytest.mark.parametrize(("cvr_weight", "ctcvr_weight"), [(1.0, 0.0), (0.1, 1.0), (0.7, 0.3)])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_against_numpy(
    estimator: str, cvr_weight: float, ctcvr_weight: float, weighted: bool
) -> None:
    model = model_of(estimator, cvr_weight=cvr_weight, ctcvr_weight=ctcvr_weight, clip=0.45)
    batch = batch_of(weighted=weighted)
    out = model(batch)
    below = (out.pctr < 0.45).float().mean()
    assert 0 < below < 1  # the clip acts on some
    found = float(model.loss(out, batch).detach())
    logits = out.logits.detach().double().numpy()
    assert logits.shape == (24, 3 if estimator == "dr" else 2)
    expected = expected_loss(logits, batch, estimator, cvr_weight, ctcvr_weight, 0.45)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("estimator", ["ips", "dr"])
def test_gradients_against_differences_with_the_propensity_held(estimator: str) -> None:
    model = model_of(estimator, cvr_weight=0.7, ctcvr_weight=0.3, clip=0.2)
    batch = batch_of()
    out = model(batch)
    logits = out.logits.detach().double().requires_grad_()
    (gradient,) = torch.autograd.grad(model.loss(type(out)(logits), batch), logits)
    at = logits.detach().numpy()
    click = batch.labels[:, 0].double().numpy()
    # In the CTR column the propensity is no variable: only the BCE of click and of the product.
    for column in range(at.shape[1]):
        for row in range(5):
            values = []
            for step in (1e-6, -1e-6):
                moved = at.copy()
                moved[row, column] += step
                value = expected_loss(moved, batch, estimator, 0.7, 0.3, 0.2)
                if column == 0:
                    held = expected_loss(moved, batch, estimator, 0.7, 0.0, 0.2)
                    without = expected_loss(moved, batch, estimator, 0.0, 0.0, 0.2)
                    value -= held - without
                values.append(value)
            expected = (values[0] - values[1]) / 2e-6
            assert float(gradient[row, column]) == pytest.approx(expected, abs=1e-7)
    assert click.any()


def test_names_and_probabilities() -> None:
    out = model_of("dr")(batch_of())
    torch.testing.assert_close(out.pctcvr, out.pctr * out.pcvr)
    assert (out.imputed_error >= 0).all() and out.imputed_error.shape == (24,)
    assert model_of("ips").stages == ("ctr", "cvr")
    assert model_of("dr").stages == ("ctr", "cvr", "imputation")


def test_training_lowers_the_loss() -> None:
    for estimator in ("ips", "dr"):
        model, batch = model_of(estimator), batch_of(200)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = model.loss(model(batch), batch)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.9 * losses[0]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="estimator: expected 'ips' or 'dr', got 'snips'"):
        model_of("snips")
    with pytest.raises(ValueError, match=r"clip: expected a propensity in \(0, 1\], got 0"):
        model_of("ips", clip=0)
    with pytest.raises(ValueError, match="cvr_weight: expected a number >= 0, got -1"):
        model_of("ips", cvr_weight=-1)
