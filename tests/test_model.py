"""Towers, the split first layer, ESMM against plain PyTorch, compile, autocast, and no collapse."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch._dynamo.testing
from sklearn.metrics import roc_auc_score
from torch import nn

from esmm_fast import ESMM, Batch, Field, Schema, SplitLinear, ops, reference
from esmm_fast.model import EntireSpaceChain, Tower
from esmm_fast.optim import LazyAdam

SCHEMA = Schema(
    (
        Field("user", "common", rows=50),
        Field("history", "common", table="item", rows=90, multi=True, weighted=True),
        Field("item", rows=90),
        Field("shop", rows=20),
        Field("words", rows=40, multi=True, weighted=True),
    )
)


def make_batch(schema=SCHEMA, impressions=37, common=9, seed=0, labels=2, dense=0, weights=False):
    """Returns a batch of random bags of 0 to 4 occurrences, with labels that never increase."""
    generator = torch.Generator().manual_seed(seed)
    fields = [*schema.common] * common + [*schema.impression] * impressions
    lengths = torch.randint(5, (len(fields),), generator=generator).tolist()
    rows = [
        torch.randint(field.rows, (length,), generator=generator)
        + schema.row_bases[field.table_name]
        for field, length in zip(fields, lengths, strict=True)
    ]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    values = torch.rand(int(offsets[-1]), generator=generator) + 0.5
    passed = torch.rand(impressions, labels, generator=generator) < 0.4
    return Batch(
        plan=reference.batch_plan(torch.cat(rows), offsets, values),
        common=common,
        common_of_impression=torch.randint(
            max(common, 1), (impressions,), generator=generator
        ).int(),
        labels=passed.cumprod(1).float(),
        dense=torch.randn(impressions, dense, generator=generator) if dense else None,
        impression_weights=torch.rand(impressions, generator=generator) if weights else None,
    )


def concatenated(tables, batch):
    """The input of a plain tower, [B, Fc * D + Fs * D + dense]."""
    common, impression = tables(batch)
    parts = [common[batch.common_of_impression.long()], impression]
    return torch.cat(parts if batch.dense is None else [*parts, batch.dense.to(common.dtype)], 1)


def plain_tower(tower):
    """The same tower as torch.nn layers, through its state_dict."""
    sizes = [layer.weight.shape for layer in tower if hasattr(layer, "weight")]
    layers = []
    for out, size in sizes:
        layers += [nn.Linear(size, out), nn.ReLU()]
    plain = nn.Sequential(*layers[:-1]).to(tower[0].weight.dtype)
    plain.load_state_dict(tower.state_dict())
    return plain


# -- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("in_common", "in_impression"), [(5, 3), (0, 3), (5, 0)])
@pytest.mark.parametrize("bias", [True, False])
def test_split_linear_is_linear_of_the_concat(in_common, in_impression, bias):
    torch.manual_seed(0)
    layer = SplitLinear(in_common, in_impression, 4, bias, dtype=torch.float64)
    linear = nn.Linear(in_common + in_impression, 4, bias, dtype=torch.float64)
    linear.load_state_dict(layer.state_dict())
    common = torch.randn(6, in_common, dtype=torch.float64, requires_grad=True)
    impression = torch.randn(11, in_impression, dtype=torch.float64, requires_grad=True)
    which = torch.randint(6, (11,), dtype=torch.int32)
    ours = layer(common, impression, which)
    twin = linear(torch.cat([common[which.long()], impression], 1))
    torch.testing.assert_close(ours, twin)
    outer = torch.randn_like(twin)
    wanted = [x for x in (common, impression) if x.shape[1]]
    ours_grads = torch.autograd.grad(ours, [*wanted, *layer.parameters()], outer)
    twin_grads = torch.autograd.grad(twin, [*wanted, *linear.parameters()], outer)
    for a, b in zip(ours_grads, twin_grads, strict=True):
        torch.testing.assert_close(a, b)


def test_split_linear_starts_like_linear():
    torch.manual_seed(3)
    layer = SplitLinear(5, 3, 4)
    torch.manual_seed(3)
    linear = nn.Linear(8, 4)
    assert torch.equal(layer.weight, linear.weight)
    assert torch.equal(layer.bias, linear.bias)


def test_split_linear_errors():
    layer = SplitLinear(5, 3, 4)
    which = torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"common: expected shape \[\*, 5\], got \[1, 4\]"):
        layer(torch.zeros(1, 4), torch.zeros(2, 3), which)
    with pytest.raises(ValueError, match=r"impression: expected shape \[\*, 3\], got \[2, 5\]"):
        layer(torch.zeros(1, 5), torch.zeros(2, 5), which)
    with pytest.raises(ValueError, match="in_common: expected 0 or more, got -1"):
        SplitLinear(-1, 3, 4)
    with pytest.raises(TypeError, match=r"out_features: expected an int, got 2\.5"):
        SplitLinear(1, 3, 2.5)


def test_gradient_of_a_large_group_survives_bfloat16():
    """A common row of 4,000 impressions: summed in bfloat16, its gradient stalls at 256 ones."""
    layer = SplitLinear(1, 1, 1)
    common = torch.ones(1, 1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(common, torch.zeros(4000, 1), torch.zeros(4000, dtype=torch.int32))
    out.sum().backward()
    torch.testing.assert_close(common.grad[0, 0], 4000 * layer.weight[0, 0], rtol=0.02, atol=0)


@pytest.mark.parametrize("hidden", [(), (7,), (9, 5, 3)])
def test_tower_is_a_plain_mlp(hidden):
    torch.manual_seed(0)
    tower = Tower(4, 3, hidden).double()
    common, impression = torch.randn(5, 4).double(), torch.randn(8, 3).double()
    which = torch.randint(5, (8,))
    twin = plain_tower(tower)(torch.cat([common[which], impression], 1)).squeeze(1)
    torch.testing.assert_close(tower(common, impression, which), twin)


# -- ESMM against plain PyTorch -------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False], ids=["ESMM", "ESMM-NS"])
@pytest.mark.parametrize("hidden", [(), (16,), (24, 12, 6)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_esmm_is_two_plain_towers_and_equation_3(shared, hidden, dtype, tolerance):
    model = ESMM(SCHEMA, 6, hidden, shared, dense_features=2, init_std=0.5, seed=1).to(dtype)
    batch = make_batch(dense=2, weights=True)
    out = model(batch)
    twin = copy.deepcopy(model).double()
    twin_tables, towers = twin.embedding_tables(), [plain_tower(t) for t in twin.towers.values()]
    twin_parameters = [t.weight for t in twin_tables] + [p for t in towers for p in t.parameters()]
    parameters = [t.weight for t in model.embedding_tables()] + list(model.tower_parameters())
    assert len(twin_tables) == (1 if shared else 2)

    ctr, cvr = (
        tower(concatenated(tables, batch)).squeeze(1)
        for tower, tables in zip(towers, twin_tables * 2, strict=False)
    )
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    torch.testing.assert_close(out.ctr_logit, ctr, **close)
    torch.testing.assert_close(out.cvr_logit, cvr, **close)
    torch.testing.assert_close(out.pctr, ctr.sigmoid(), **close)
    torch.testing.assert_close(out.pcvr, cvr.sigmoid(), **close)
    torch.testing.assert_close(out.pctcvr, ctr.sigmoid() * cvr.sigmoid(), **close)
    torch.testing.assert_close(out.stage_probabilities, torch.stack([out.pctr, out.pcvr], 1))
    torch.testing.assert_close(out.probabilities, torch.stack([out.pctr, out.pctcvr], 1))

    bce = nn.functional.binary_cross_entropy
    labels, weights = batch.labels.double(), batch.impression_weights.double()
    loss = bce(ctr.sigmoid(), labels[:, 0], weights, reduction="sum")
    loss = loss + bce(ctr.sigmoid() * cvr.sigmoid(), labels[:, 1], weights, reduction="sum")
    loss = loss / weights.sum()
    ours = model.loss(out, batch)
    torch.testing.assert_close(ours, loss, **close)
    for a, b in zip(
        torch.autograd.grad(ours, parameters),
        torch.autograd.grad(loss, twin_parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **close)


def test_stages_beyond_two():
    labels = ("click", "cart", "conversion")
    schema = replace(SCHEMA, labels=labels)
    chain = EntireSpaceChain(schema, ("ctr", "add", "buy"), dim=3, hidden=(5,)).double()
    batch = make_batch(schema, labels=3)
    out = chain(batch)
    expected = [plain_tower(t)(concatenated(chain.tables, batch)) for t in chain.towers.values()]
    torch.testing.assert_close(out.logits, torch.cat(expected, 1))
    torch.testing.assert_close(out.probabilities[:, 2], out.stage_probabilities.prod(1))
    torch.testing.assert_close(
        chain.loss(out, batch), reference.product_loss(out.logits, batch.labels.double())
    )


def test_one_stage_takes_its_label_column():
    batch = make_batch()
    for column in (1, "conversion"):
        network = EntireSpaceChain(SCHEMA, ("cvr",), (column,), dim=3, hidden=(5,))
        out = network(batch)
        loss = nn.functional.binary_cross_entropy_with_logits(out.logits[:, 0], batch.labels[:, 1])
        torch.testing.assert_close(network.loss(out, batch), loss)
        assert list(network.towers) == ["cvr"]


def test_label_columns_in_any_order():
    chain = EntireSpaceChain(SCHEMA, label_columns=("conversion", 0), dim=3, hidden=(5,))
    batch = make_batch()
    out = chain(batch)
    expected = ops.product_loss(out.logits, batch.labels[:, [1, 0]])
    assert torch.equal(chain.loss(out, batch), expected)


def test_without_common_rows():
    """Fields given as a dict are all on the impression side: U = 0."""
    fields = {"item": 30, "shop": 10}
    model = ESMM(fields, dim=4, hidden=(6,)).double()
    batch = make_batch(Schema.of(fields), common=0)
    out = model(batch)
    _, impression = model.tables(batch)
    torch.testing.assert_close(out.cvr_logit, plain_tower(model.towers.cvr)(impression).squeeze(1))
    model.loss(out, batch).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_without_impression_fields():
    schema = Schema(SCHEMA.common)
    model = ESMM(schema, dim=4, hidden=(6,))
    out = model(make_batch(schema))
    assert out.logits.shape == (37, 2)
    model.loss(out, make_batch(schema)).backward()


def test_empty_batch():
    model = ESMM(SCHEMA, dim=4, hidden=(6,))
    batch = make_batch(impressions=0)
    out = model(batch)
    assert out.pctcvr.shape == (0,)
    assert model.loss(out, batch).isnan()


class MixtureOfExperts(nn.Module):
    """MMoE: experts that every stage mixes in its own way; towers of a user."""

    def __init__(self, in_common, in_impression, experts=3, size=8, stages=2):
        super().__init__()
        self.experts = SplitLinear(in_common, in_impression, experts * size)
        self.gates = SplitLinear(in_common, in_impression, stages * experts)
        self.heads = nn.Parameter(torch.randn(stages, size))
        self.sizes = stages, experts, size

    def forward(self, common, impression, which):
        stages, experts, size = self.sizes
        x = self.experts(common, impression, which).relu().reshape(-1, experts, size)
        gates = self.gates(common, impression, which).reshape(-1, stages, experts).softmax(2)
        return torch.einsum("bke,bes,ks->bk", gates, x, self.heads)


def test_towers_of_a_user():
    model = ESMM(SCHEMA, dim=4, dense_features=2, towers=MixtureOfExperts)
    batch = make_batch(dense=2)
    tables, towers = LazyAdam(model, lr=0.05), torch.optim.Adam(model.tower_parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        out = model(batch)
        loss = model.loss(out, batch)
        loss.backward()
        for optimizer in (tables, towers):
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    torch.testing.assert_close(out.pctcvr, out.pctr * out.pcvr)
    assert {k.split(".")[0] for k in model.state_dict()} == {"tables", "towers"}
    with pytest.raises(ValueError, match=r"towers: expected logits of shape \[37, 1\].*\[37, 2\]"):
        EntireSpaceChain(SCHEMA, ("ctr",), dim=4, towers=MixtureOfExperts)(make_batch())
    with pytest.raises(ValueError, match="towers: expected shared_tables=True"):
        ESMM(SCHEMA, shared_tables=False, towers=MixtureOfExperts)


# -- state ----------------------------------------------------------------------------------------


def test_state_dict_reads_naturally_and_comes_back():
    model, other = ESMM(SCHEMA, 4, (6, 5), seed=1), ESMM(SCHEMA, 4, (6, 5), seed=2)
    layers = [f"{i}.{p}" for i in (0, 2, 4) for p in ("weight", "bias")]
    towers = [f"towers.{stage}.{layer}" for stage in ("ctr", "cvr") for layer in layers]
    assert [k for k in model.state_dict() if not k.startswith("tables.")] == towers
    batch = make_batch()
    assert not torch.equal(model(batch).logits, other(batch).logits)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(batch).logits, other(batch).logits)
    again = copy.deepcopy(model)
    assert torch.equal(model(batch).logits, again(batch).logits)
    assert not {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in again.parameters()
    }


def test_start_is_a_function_of_the_seed():
    def state(seed, shared=True):
        torch.manual_seed(torch.seed())  # the global generator plays no part
        return ESMM(SCHEMA, 4, (6,), shared, seed=seed).state_dict()

    one, same, two = state(1), state(1), state(2)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not any(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["towers.ctr.0.weight"], one["towers.cvr.0.weight"])
    separate, next_seed = state(1, False), state(2, False)
    weights = [s[f"tables.{k}.weight"] for s in (separate, next_seed) for k in ("ctr", "cvr")]
    assert not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def test_parameters_belong_to_tables_or_towers():
    for shared in (True, False):
        model = ESMM(SCHEMA, 4, (6,), shared)
        tables = [p for t in model.embedding_tables() for p in t.parameters()]
        every = [*tables, *model.tower_parameters()]
        assert {id(p) for p in every} == {id(p) for p in model.parameters()}


# -- compile, autocast ----------------------------------------------------------------------------


def test_zero_grad_reaches_fused_tables():
    model = ESMM(SCHEMA, dim=4, hidden=(8,))
    optimizer = LazyAdam(model)
    before = model.embedding_tables()[0].weight.detach().clone()
    batch = make_batch()
    model.loss(model(batch), batch).backward()
    model.zero_grad()
    optimizer.step()
    assert torch.equal(model.embedding_tables()[0].weight, before)


def test_compile_whole_graph_for_any_batch():
    model = ESMM(SCHEMA, 4, (6, 5))
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def step(batch):
        out = model(batch)
        return out, model.loss(out, batch)

    for seed, (impressions, common) in enumerate([(37, 9), (41, 12), (64, 20), (128, 33), (77, 3)]):
        batch = make_batch(impressions=impressions, common=common, seed=seed, weights=True)
        out, loss = step(batch)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        eager = model(batch)
        eager_loss = model.loss(eager, batch)
        torch.testing.assert_close(out.pctcvr, eager.pctcvr)
        torch.testing.assert_close(loss, eager_loss)
        for a, b in zip(
            grads, torch.autograd.grad(eager_loss, list(model.parameters())), strict=True
        ):
            torch.testing.assert_close(a, b)
    assert counter.frame_count <= 2  # once for the first batch, once for any


def test_bfloat16_autocast():
    model = ESMM(SCHEMA, 8, (32, 16), init_std=0.5)
    batch = make_batch(impressions=300)
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
        loss = model.loss(out, batch)
    loss.backward()
    assert out.logits.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(out.logits, exact.logits, rtol=0.05, atol=0.02)
    assert out.ctr_logit.unique().numel() > 290  # not rounded to bfloat16's few values
    assert all(p.grad.isfinite().all() for p in model.parameters())


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim: expected 1 or more, got 0"),
        ({"hidden": 80}, TypeError, "hidden: expected the sizes of the hidden layers, got 80"),
        ({"hidden": (80, 2.5)}, TypeError, r"hidden\[1\]: expected an int, got 2.5"),
        ({"hidden": (80, -2)}, ValueError, r"hidden\[1\]: expected 1 or more, got -2"),
        ({"dense_features": -1}, ValueError, "dense_features: expected 0 or more, got -1"),
        ({"stages": ()}, ValueError, "stages: expected one or more different names"),
        ({"stages": ("a", "a")}, ValueError, "stages: expected one or more different names"),
        ({"stages": ("c.t",)}, ValueError, "stages: expected names like 'ctr', got 'c.t'"),
        ({"label_columns": (0,)}, ValueError, "label_columns: expected one for each"),
        ({"label_columns": (0, "buy")}, ValueError, "label_columns: expected one of .*, got 'buy'"),
        ({"fields": ()}, ValueError, "fields: expected at least one field"),
        ({"fields": Schema((Field("a"),))}, ValueError, r"Vocabulary.sized\(schema\)"),
        (
            {"fields": replace(SCHEMA, dense=3), "dense_features": 2},
            ValueError,
            "dense_features: expected the schema's 3, got 2",
        ),
    ],
)
def test_constructor_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        EntireSpaceChain(**{"fields": SCHEMA, **arguments})


def test_what_is_no_schema_of_esmm():
    with pytest.raises(TypeError, match=r"fields: expected a Schema, Fields or .*, got int"):
        ESMM(3)
    with pytest.raises(TypeError, match=r"got Reader: its schema is Vocabulary\.from_dataset"):
        ESMM(type("Reader", (), {"schema": SCHEMA})())
    with pytest.raises(ValueError, match=r"of two labels, got \['a', 'b', 'c'\]: EntireSpaceChain"):
        ESMM(replace(SCHEMA, labels=("a", "b", "c")))


def test_batch_errors():
    model = ESMM(SCHEMA, 4, (6,), dense_features=2)
    with pytest.raises(ValueError, match=r"batch.dense: expected shape \[37, 2\], got None"):
        model(make_batch())
    with pytest.raises(ValueError, match=r"batch.dense: expected shape \[37, 2\], got \[37, 3\]"):
        model(make_batch(dense=3))
    batch = make_batch(dense=2, labels=1)
    with pytest.raises(ValueError, match=r"batch.labels: expected shape \[B, 2 or more\]"):
        model.loss(model(batch), batch)


# -- no collapse ----------------------------------------------------------------------------------

LEARNABLE = Schema((Field("user", "common", rows=300), Field("item", rows=400)))


def learnable_log(seed, impressions=42_000):
    """Clicks (8 %) and conversions (10 % of them, 0.8 % of all) from traits of users and items.

    Two hidden traits per user and per item add up, so that unseen pairs can be predicted; what
    drives clicks also drives conversions.
    """
    generator = torch.Generator().manual_seed(seed)
    user_traits = torch.randn(300, 2, generator=generator)
    item_traits = torch.randn(400, 2, generator=generator)
    users = torch.randint(300, (impressions,), generator=generator)
    items = torch.randint(400, (impressions,), generator=generator)
    attraction, need = (user_traits[users] + item_traits[items]).unbind(1)
    pctr = (attraction - 3.2).sigmoid()
    pcvr = (1.2 * need + 0.5 * attraction - 3.6).sigmoid()
    draws = torch.rand(impressions, 2, generator=generator)
    click = draws[:, 0] < pctr
    labels = torch.stack([click, click & (draws[:, 1] < pcvr)], 1).float()
    return users, items, labels


def learnable_batch(users, items, labels):
    common_users, which = torch.unique(users, return_inverse=True)
    rows = torch.cat([common_users, items + LEARNABLE.row_bases["item"]])
    plan = reference.batch_plan(rows, torch.arange(len(rows) + 1))
    return Batch(plan, len(common_users), which.int(), labels)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For steps too small for two threads; it also makes runs repeatable."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_does_not_collapse(one_thread, seed):
    log = learnable_log(seed)
    train, test = [x[:34_000] for x in log], [x[34_000:] for x in log]
    model = ESMM(LEARNABLE, 8, (32, 16), seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(6):
        for picked in torch.randperm(34_000, generator=generator).split(500):
            batch = learnable_batch(*(x[picked] for x in train))
            optimizer.zero_grad()
            out = model(batch)
            model.loss(out, batch).backward()
            optimizer.step()
            assert out.logits.isfinite().all()
    with torch.no_grad():
        out = model(learnable_batch(*test))
    click, conversion = (test[2].bool()).unbind(1)
    ctr = roc_auc_score(click, out.pctr)
    cvr = roc_auc_score(conversion[click], out.pcvr[click])
    ctcvr = roc_auc_score(conversion, out.pctcvr)
    print(f"seed {seed}: AUC of CTR {ctr:.3f}, CVR on clicked {cvr:.3f}, CTCVR {ctcvr:.3f}")
    assert out.logits.isfinite().all()
    assert ctr > 0.7
    assert cvr > 0.6
    assert ctcvr > 0.7
