"""train: fit, predict and evaluate, with models that are small enough to check."""

import math
import re
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from torch import Tensor, nn

from esmm_fast import ESMM, Batch, Schema, metrics
from esmm_fast import train as train_module
from esmm_fast.config import EarlyStopping
from esmm_fast.evaluation import Predictions, Truth, evaluate, predict, task_metrics
from esmm_fast.progress import Bar
from esmm_fast.reference import batch_plan
from esmm_fast.schedule import default_optimizers
from esmm_fast.train import History, Step, Training, fit

ITEMS = 20
SCHEMA = Schema.of({"item": ITEMS, "shop": 5})


def make_batches(
    impressions: int = 2_000, size: int = 100, seed: int = 0
) -> tuple[list[Batch], Truth]:
    """Batches whose click and conversion depend on item and shop, and their true rates."""
    random = np.random.default_rng(seed)
    item, shop = random.integers(1, ITEMS, impressions), random.integers(1, 5, impressions)
    pctr, pcvr = 0.15 + 0.6 * item / ITEMS, 0.05 + 0.6 * item / ITEMS + 0.05 * shop
    click = random.random(impressions) < pctr
    conversion = click & (random.random(impressions) < pcvr)
    batches = []
    for start in range(0, impressions, size):
        at = slice(start, start + size)
        rows = torch.from_numpy(np.stack([item[at], ITEMS + shop[at]], 1).ravel())
        n = len(item[at])
        batches.append(
            Batch(
                batch_plan(rows, torch.arange(2 * n + 1)),
                common=0,
                common_of_impression=torch.zeros(n, dtype=torch.int32),
                labels=torch.from_numpy(np.stack([click[at], conversion[at]], 1)).float(),
                sample_id=torch.arange(start + 1, start + n + 1),
            )
        )
    return batches, Truth(np.arange(1, impressions + 1), pctr, pcvr)


def make_model(seed: int = 0) -> ESMM:
    return ESMM(SCHEMA, dim=4, hidden=(8,), seed=seed, init_std=0.1)


class Rate(nn.Module):
    """The smallest model: one probability of click and conversion for all impressions."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(2))

    def forward(self, batch: Batch) -> Any:
        pctr, pcvr = self.logit.sigmoid().expand(len(batch.labels), 2).unbind(1)
        return SimpleNamespace(pctr=pctr, pcvr=pcvr, pctcvr=pctr * pcvr)

    def loss(self, out: Any, batch: Batch) -> Tensor:
        given = torch.stack([out.pctr, out.pctcvr], 1)
        return nn.functional.binary_cross_entropy(given, batch.labels)


def test_fit_learns_and_tells_what_it_did() -> None:
    batches, truth = make_batches(4_000)
    model = make_model()
    history = fit(model, batches, epochs=4, lr=0.02)
    assert (history.steps, history.impressions) == (160, 16_000)
    assert len(history.losses) == len(history.batch_sizes) == 160
    assert np.mean(history.losses[-40:]) < np.mean(history.losses[:10])
    assert history.impressions_per_second > 0
    result = evaluate(model, batches, truth)
    assert result["truth"]["cvr"]["all"]["auc"] > 0.6
    assert result["truth"]["cvr"]["all"]["correlation"] > 0.9


def test_any_model_can_be_trained() -> None:
    batches, _ = make_batches()
    model = Rate()
    fit(model, iter(batches), lr=0.1)  # any iterable, without a length
    labels = np.concatenate([b.labels.numpy() for b in batches])
    found = model.logit.sigmoid().tolist()
    assert found[0] == pytest.approx(labels[:, 0].mean(), abs=0.05)
    assert found[0] * found[1] == pytest.approx(labels[:, 1].mean(), abs=0.05)


def test_default_optimizers_split_tables_and_towers() -> None:
    model = make_model()
    tables, towers = default_optimizers(model, lr=0.5, betas=(0.8, 0.9), eps=1e-6)
    assert type(tables).__name__ == "LazyAdam"
    assert towers.defaults["lr"] == 0.5 and towers.defaults["betas"] == (0.8, 0.9)
    held = {id(p) for group in towers.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.tower_parameters()}
    assert len(default_optimizers(make_model(), tables="adam")) == 1
    assert len(default_optimizers(Rate())) == 1
    with pytest.raises(ValueError, match="tables: expected 'lazy_adam' or 'adam', got 'sgd'"):
        default_optimizers(make_model(), tables="sgd")


def test_given_optimizers_are_the_ones_used() -> None:
    batches, _ = make_batches(300)
    model = Rate()
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    fit(model, batches, optimizers=[sgd])
    falling = torch.optim.lr_scheduler.ExponentialLR(sgd, 0.5)
    fit(model, batches, optimizers=sgd, schedulers=falling)  # one will do
    assert model.logit.tolist() == [0, 0] and falling.last_epoch == 3


def test_the_same_seed_gives_the_same_model() -> None:
    batches, _ = make_batches(500)
    models = [make_model(3), make_model(3)]
    for model in models:
        fit(model, batches)
    for a, b in zip(*(m.state_dict().values() for m in models), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_validation_and_callbacks() -> None:
    batches, _ = make_batches(500)
    steps, epochs = [], []
    history = fit(
        Rate(),
        batches,
        epochs=2,
        valid=batches[:2],
        on_step=steps.append,
        on_epoch=lambda epoch, history: epochs.append((epoch, len(history.valid))),
    )
    assert epochs == [(1, 1), (2, 2)]
    assert [v["impressions"] for v in history.valid] == [200, 200]
    assert [s.step for s in steps] == list(range(1, 11))
    assert (steps[4].epoch, steps[5].epoch, steps[-1].impressions) == (1, 2, 1_000)
    assert steps[-1].seconds >= steps[0].seconds > 0


def test_progress_shows_rate_and_loss(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, _ = make_batches(500)
    with monkeypatch.context() as terminal:
        terminal.setattr(sys.stderr, "isatty", lambda: True)
        fit(Rate(), batches, progress=True, description="esmm")
    shown = capsys.readouterr().err
    assert "esmm: 100%" in shown and "impressions/s" in shown and "loss 0." in shown

    fit(Rate(), batches, progress=True)
    assert capsys.readouterr().err == ""  # no line before its time
    with Bar(batches, True, "esmm", every=0) as bar:
        for batch in bar.over():
            bar.advance(len(batch.labels), 0.5)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(batches)
    assert re.fullmatch(r"esmm: 100 of 500 impressions \(20 %\), [\d,]+/s, loss 0\.5000", lines[0])


def test_what_is_no_batches_is_said() -> None:
    with pytest.raises(TypeError, match=r"batches: expected an iterable of Batch, got int"):
        fit(Rate(), 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"batches: expected at least one impression, got none"):
        evaluate(Rate(), [])


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    batches, _ = make_batches(300)
    batches[1].impression_weights = torch.full((100,), math.inf)

    class Weighted(Rate):
        def loss(self, out: Any, batch: Batch) -> Tensor:
            weights = batch.impression_weights
            loss = super().loss(out, batch)
            return loss if weights is None else (loss * weights).mean()

    model = Weighted()
    with pytest.raises(FloatingPointError) as error:
        fit(model, batches, lr=0.1)
    assert "step 2 (epoch 1): expected a finite loss, got inf" in str(error.value)
    assert "batch.impression_weights holds a value that is not finite" in str(error.value)
    assert torch.isfinite(model.logit).all()


def test_a_parameter_that_is_not_finite_is_named() -> None:
    class Sum(Rate):
        def loss(self, out: Any, batch: Batch) -> Tensor:
            return self.logit.sum()

    model = Sum()
    model.logit.data[0] = math.nan
    with pytest.raises(FloatingPointError, match="got nan; logit holds a value"):
        fit(model, make_batches(100)[0])


def test_predict_keeps_order_and_mode() -> None:
    batches, _ = make_batches(450)
    model = make_model()
    model.train()
    found = predict(model, batches)
    assert model.training and len(found) == 450
    assert found.sample_id is not None and found.pctr is not None
    assert found.sample_id.tolist() == list(range(1, 451))
    np.testing.assert_allclose(found.pctcvr, found.pctr * found.pcvr, rtol=1e-6)
    assert found.labels.shape == (450, 2) and found.pctr.dtype == np.float32
    out = model(batches[2])
    np.testing.assert_array_equal(found.pctr[200:300], out.pctr.detach().numpy())
    np.testing.assert_array_equal(found.clicked, found.labels[:, 0] == 1)


def test_predict_of_nothing() -> None:
    found = predict(make_model(), [])
    assert len(found) == 0 and found.pctr is None


def test_each_task_is_over_its_own_space() -> None:
    labels = np.array([[1, 1], [1, 0], [0, 0], [0, 0]], np.float32)
    pctr, pcvr = np.array([0.4, 0.9, 0.5, 0.1]), np.array([0.6, 0.3, 0.7, 0.2])
    found = Predictions(labels, np.arange(4), pctr, pcvr, pctr * pcvr)
    result = task_metrics(found)
    assert (result["impressions"], result["clicks"], result["conversions"]) == (4, 2, 1)
    assert result["ctr"]["auc"] == 0.75 and result["ctr"]["space"] == "all impressions"
    assert result["cvr"] == {"space": "clicked impressions", **metrics.summary([1, 0], [0.6, 0.3])}
    assert result["cvr"]["calibration"] == pytest.approx(1 / 0.9)
    assert result["ctcvr"]["auc"] == pytest.approx(1 / 3)  # .24 against .27, .35, .02
    assert "truth" not in result


def test_a_task_without_predictions_is_left_out() -> None:
    labels = np.array([[1, 1], [0, 0]], np.float32)
    result = task_metrics(Predictions(labels, pcvr=np.array([0.5, 0.2], np.float32)))
    assert "cvr" in result and "ctr" not in result and "ctcvr" not in result


def test_another_pctr_changes_the_product_alone() -> None:
    labels = np.array([[1, 1], [0, 0]], np.float32)
    found = Predictions(labels, pcvr=np.array([0.5, 0.2], np.float32))
    other = found.with_pctr(np.array([0.5, 1.0], np.float32))
    np.testing.assert_allclose(other.pctcvr, [0.25, 0.2])
    with pytest.raises(ValueError, match="pctr: expected 2 values, got 3"):
        found.with_pctr(np.zeros(3, np.float32))


def test_what_down_sampling_did_is_undone_or_refused() -> None:
    half = np.full(2, 0.5, np.float32)
    found = Predictions(np.zeros((2, 2), np.float32), pctr=half, pcvr=half, pctcvr=half * half)
    np.testing.assert_allclose(found.corrected(0.25).pctcvr, [0.1, 0.1])
    only_pcvr = replace(found, pctr=None, pctcvr=None)
    assert only_pcvr.corrected(0.25) is only_pcvr
    for each in (found, only_pcvr):
        with pytest.raises(ValueError, match="kept: expected a share above 0 and at most 1, got 7"):
            each.corrected(7)
    with pytest.raises(ValueError, match="kept: expected predictions with a pCTR, got a pCTCVR w"):
        replace(found, pctr=None).corrected(0.25)


def test_against_the_truth_by_space() -> None:
    batches, truth = make_batches(3_000)
    labels = np.concatenate([b.labels.numpy() for b in batches])
    found = Predictions(labels, truth.sample_id, truth.pctr, truth.pcvr, truth.pctr * truth.pcvr)
    shuffled = np.random.default_rng(0).permutation(3_000)
    disordered = Truth(*(a[shuffled] for a in (truth.sample_id, truth.pctr, truth.pcvr)))
    result = task_metrics(found, disordered)["truth"]
    assert set(result) == {"ctr", "ctcvr", "cvr"}
    assert set(result["cvr"]) == {"all", "clicked", "unclicked"}
    for space, rows in (("clicked", labels[:, 0] == 1), ("unclicked", labels[:, 0] == 0)):
        part = result["cvr"][space]
        assert part["impressions"] == rows.sum()
        assert part["auc"] == part["best_auc"] == metrics.auc(truth.pcvr[rows], truth.pcvr[rows])
        assert part["calibration"] == pytest.approx(1)
        assert part["correlation"] == pytest.approx(1)
        assert part["log_loss"] == part["best_log_loss"]
    clicked, unclicked = (result["cvr"][space]["observed"] for space in ("clicked", "unclicked"))
    assert clicked > unclicked  # what drives clicks also drives conversions


def test_truth_is_read_and_matched(tmp_path: Any) -> None:
    path = tmp_path / "truth.parquet"
    columns = {"sample_id": pa.array([3, 1, 2], pa.uint64()), "pctr": [0.3, 0.1, 0.2]}
    parquet.write_table(
        pa.table({**columns, "pcvr": pa.array([0.6, 0.4, 0.5], pa.float32())}), path
    )
    truth = Truth.load(path)
    np.testing.assert_allclose(truth.of(np.array([2, 3, 3])).pctr, [0.2, 0.3, 0.3])
    with pytest.raises(ValueError, match=r"got none with sample_id 9 \(1 of 2 are missing\)"):
        truth.of(np.array([1, 9]))
    with pytest.raises(ValueError, match="the batches have none"):
        truth.of(None)
    parquet.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=r"truth.parquet: expected columns .* \['pcvr'\]"):
        Truth.load(path)


def test_the_truth_of_another_log_is_refused() -> None:
    batches, truth = make_batches(1_000)
    other = make_batches(1_000, seed=1)[1]
    model = make_model()
    assert "truth" in evaluate(model, batches, truth)
    with pytest.raises(ValueError, match="truth: expected the pCTRs that the clicks were drawn"):
        evaluate(model, batches, other)


def test_loss_curve_weighs_batches_by_their_size() -> None:
    history = History(losses=[1.0, 2.0, 4.0, 8.0], batch_sizes=[10, 10, 10, 5])
    assert history.loss_curve(2) == ([20, 35], [1.5, 5.33333333])
    assert history.loss_curve(100) == ([10, 20, 30, 35], [1.0, 2.0, 4.0, 8.0])
    assert History().loss_curve() == ([], [])


def test_so_many_steps_whatever_the_epochs() -> None:
    batches, _ = make_batches(500)
    epochs = []
    history = fit(
        Rate(),
        batches,
        max_steps=12,
        valid=batches[:1],
        on_epoch=lambda epoch, history: epochs.append((epoch, history.steps)),
    )
    assert history.steps == 12 and epochs == [(1, 5), (2, 10), (3, 12)]
    assert history.valid_steps == [5, 10, 12]
    with pytest.raises(ValueError, match="max_steps: expected at least 1, got 0"):
        fit(Rate(), batches, max_steps=0)


def test_an_epoch_without_batches_is_refused_by_its_number() -> None:
    batches, _ = make_batches(300)
    for options in ({}, {"max_steps": 5}, {"epochs": 2}):
        with pytest.raises(ValueError, match="batches: expected at least one in epoch 1, got none"):
            fit(Rate(), [], **options)
    for options in ({"max_steps": 5}, {"epochs": 3}):
        training = Training(Rate(), iter(batches), **options)
        with pytest.raises(ValueError, match=r"in epoch 2, got none \(an iterator that is used up"):
            training.run()
        assert training.history.steps == 3
    assert fit(Rate(), iter(batches), max_steps=3).steps == 3


def test_evaluations_within_an_epoch() -> None:
    batches, _ = make_batches(500)
    seen = []
    history = fit(
        Rate(),
        batches,
        epochs=2,
        valid=batches[:1],
        evaluate_steps=2,
        on_evaluation=lambda history: seen.append(history.steps),
    )
    assert history.valid_steps == seen == [2, 4, 5, 6, 8, 10]


def test_evaluations_need_a_set_and_a_number_of_steps() -> None:
    batches, _ = make_batches(200)
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"evaluate_steps: expected at least 1, got {steps}"):
            fit(Rate(), batches, valid=batches, evaluate_steps=steps)
    with pytest.raises(ValueError, match="evaluate_steps: expected valid with it, got none"):
        fit(Rate(), batches, evaluate_steps=2)


def test_early_stopping_keeps_the_best_parameters() -> None:
    batches, _ = make_batches(500)
    model = Rate()
    found = []

    def change(history: History) -> None:
        found.append((history.valid[-1]["ctcvr"]["log_loss"], model.logit.detach().clone()))

    history = fit(  # a rate far too high: the loss gets worse and better as it overshoots
        model,
        batches,
        epochs=50,
        lr=1.5,
        valid=batches,
        evaluate_steps=2,
        early_stopping=EarlyStopping(patience=3),
        on_evaluation=change,
    )
    losses = [loss for loss, _ in found]
    best = losses.index(min(losses))
    assert len(losses) == best + 4 and history.steps == history.valid_steps[-1] < 250
    assert torch.equal(model.logit, found[best][1])


def test_early_stopping_needs_a_metric_that_exists() -> None:
    batches, _ = make_batches(200)
    for stopping, message in (
        (
            EarlyStopping(metric="cvr.auc"),
            r"early_stopping\.metric: cvr\.auc is undefined on the val",
        ),
        (EarlyStopping(), "early_stopping: expected valid with it, got none"),
    ):
        valid = [b for b in batches if setattr(b, "labels", b.labels * 0) is None]
        with pytest.raises(ValueError, match=message):
            fit(Rate(), batches, valid=valid if stopping.metric else None, early_stopping=stopping)

    class OnlyCTR(Rate):
        def forward(self, batch: Batch) -> Any:
            out = super().forward(batch)
            return SimpleNamespace(pctr=out.pctr)

        def loss(self, out: Any, batch: Batch) -> Tensor:
            return nn.functional.binary_cross_entropy(out.pctr, batch.labels[:, 0])

    stopping = EarlyStopping(metric="cvr.auc")
    with pytest.raises(
        ValueError, match=r"expected one of ctr\.auc, ctr\.log_loss.*got 'cvr\.auc'"
    ):
        fit(OnlyCTR(), batches, valid=batches, early_stopping=stopping)


def test_a_training_goes_on_from_its_state() -> None:
    batches, _ = make_batches(500)
    seen: list[Step] = []
    whole = make_model()
    fit(whole, Positioned(batches), epochs=2, on_step=seen.append)

    class Enough(Exception):
        pass

    def between() -> None:
        if first.history.steps == 7:
            raise Enough

    half = make_model()
    first = Training(half, Positioned(batches), epochs=2, between=between)
    with pytest.raises(Enough):
        first.run()
    rest: list[Step] = []
    other = make_model(seed=5)
    second = Training(other, Positioned(batches), epochs=2, on_step=rest.append)
    other.load_state_dict(half.state_dict())
    second.load_state_dict(first.state_dict())
    second.run()
    assert [(s.step, s.epoch, s.loss) for s in rest] == [
        (s.step, s.epoch, s.loss) for s in seen[7:]
    ]
    for a, b in zip(whole.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"expected some with load_state_dict, .* got list"):
        Training(make_model(), batches).load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="state: expected 1 optimizers, got 2"):
        model = make_model()
        adam = torch.optim.Adam(model.parameters())
        Training(model, Positioned(batches), optimizers=[adam]).load_state_dict(first.state_dict())


class Positioned:
    """Batches that can say where they stand, one epoch like another."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches, self.next = batches, 0

    def __iter__(self) -> Any:
        while self.next < len(self.batches):
            self.next += 1
            yield self.batches[self.next - 1]
        self.next = 0

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next = state["next"]


def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the CPU look like a device that works ahead of Python."""
    monkeypatch.setattr(train_module, "at_once", lambda device: False)
    monkeypatch.setattr(train_module, "READ_STEPS", 4)


def test_no_loss_is_lost_where_a_callback_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    late(monkeypatch)
    batches, _ = make_batches(1000)
    seen: list[int] = []

    def on_step(step: Step) -> None:
        seen.append(step.step)
        if step.step == 2:
            raise OSError("no room for the log")

    training = Training(make_model(), batches, on_step=on_step)
    with pytest.raises(OSError, match="no room"):
        training.run()
    state = training.state_dict()  # reads the others
    assert seen == [1, 2, 3, 4] and training.whole
    assert len(state["history"]["losses"]) == len(training.history.batch_sizes) == 4


def test_losses_read_late_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, _ = make_batches(1000)
    at_once: list[Step] = []
    fit(make_model(), batches, on_step=at_once.append)
    late(monkeypatch)
    reads = []
    real = Training._read
    monkeypatch.setattr(
        Training, "_read", lambda self: (reads.append(len(self._unread)), real(self))
    )
    steps: list[Step] = []
    history = fit(make_model(), batches, on_step=steps.append)
    assert [n for n in reads if n] == [4, 4, 2]
    assert [s._replace(seconds=0) for s in steps] == [s._replace(seconds=0) for s in at_once]
    assert history.losses == [s.loss for s in at_once]


def test_a_loss_that_is_not_finite_is_found_late_but_with_its_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Spoilt(Rate):
        def loss(self, out: Any, batch: Batch) -> Tensor:
            return self.logit.sum() * (math.nan if training.history.steps == 1 else 1)

    late(monkeypatch)
    batches, _ = make_batches(1000)
    training = Training(Spoilt(), batches)
    with pytest.raises(
        FloatingPointError, match=r"step 2 \(epoch 1\): expected a finite loss, got nan"
    ):
        training.run()
    assert not training.whole and training.history.steps == 4
    assert training.history.loss_curve() == ([100], [0.0]) and training.history.losses == [0.0]


@pytest.mark.cuda
def test_steps_do_not_wait_for_the_gpu() -> None:
    batches = [batch.to("cuda") for batch in make_batches(1000)[0]]
    model = Rate().cuda()
    adam = torch.optim.Adam(model.parameters())
    training = Training(model, batches, optimizers=[adam], progress=False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            training._step(batch, 0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(training._unread) == 10


@pytest.mark.cuda
def test_fit_and_evaluate_on_cuda() -> None:
    batches, _ = make_batches()
    here, there = make_model(), make_model().cuda()
    ours = fit(there, batches, progress=False)
    twin = fit(here, batches, progress=False)
    np.testing.assert_allclose(ours.losses, twin.losses, rtol=1e-3)
    found, expected = evaluate(there, batches), evaluate(here, batches)
    assert found["ctr"]["auc"] == pytest.approx(expected["ctr"]["auc"], abs=1e-3)
