"""The drop-in EmbeddingBag in torch: PyTorch's own samples, every option, transforms and traces."""

import copy
import functools
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from esmm_fast import EmbeddingBag, embedding_bag

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

# PyTorch's OpInfo in a process of its own: its test modules change torch's global flags.
SAMPLES = """
import sys, torch
from torch.testing._internal.common_methods_invocations import op_db

(op,) = (op for op in op_db if op.name == "nn.functional.embedding_bag")
torch.manual_seed(0)
found = {}
for dtype in op.dtypes:
    for requires_grad in (False, True):
        found[str(dtype), requires_grad] = [
            (s.input.detach(), *s.args, s.kwargs, op(s.input.detach().clone(), *s.args, **s.kwargs))
            for s in op.sample_inputs("cpu", dtype, requires_grad=requires_grad)
        ]
torch.save((found, op.supports_gradgrad), sys.argv[1])
"""
NOT_HERE = {"max_norm", "scale_grad_by_freq", "padding_idx"}  # options without a kernel of ours
KERNEL = embedding_bag.embedding_bag


@pytest.fixture(scope="module")
def opinfo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By (dtype, requires_grad): weight, index, options and result of PyTorch's samples."""
    path = tmp_path_factory.mktemp("opinfo") / "samples.pt"
    ran = subprocess.run([sys.executable, "-c", SAMPLES, path], capture_output=True, text=True)
    if "No module named 'expecttest'" in ran.stderr:
        pytest.skip("PyTorch's OpInfo is not tested: no expecttest (pip install '.[test]')")
    assert ran.returncode == 0, ran.stderr
    return torch.load(path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls that our kernel gets; calls of any size do."""
    found: list[Any] = []

    def counted(*arguments: Any, **options: Any) -> Tensor:
        found.append(arguments)
        return KERNEL(*arguments, **options)

    monkeypatch.setattr(embedding_bag, "embedding_bag", counted)
    monkeypatch.setattr(embedding_bag, "_FEW", 0)
    return found


def outcome(call: Callable[..., Tensor], weight: Tensor, values: Tensor | None) -> dict[str, Any]:
    """Returns output, gradients and what became of the weight; or the error."""
    found: dict[str, Any] = {"weight": weight.detach()}
    try:
        out = call()
        found["out"] = out.detach()
        generator = torch.Generator().manual_seed(0)
        out.backward(torch.randn(out.shape, generator=generator).to(out.dtype))
    except (RuntimeError, ValueError, NotImplementedError, IndexError) as error:
        found["error"] = error
    for name, grad in (("grad", weight.grad), ("of values", getattr(values, "grad", None))):
        if grad is not None:
            found[name] = grad.to_dense() if grad.is_sparse else grad
            found[f"{name} is sparse"] = grad.is_sparse
    return found


def both(
    weight: Tensor, index: Tensor, options: dict[str, Any], bag_type: type = EmbeddingBag
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what the drop-in gives, and what torch.nn.EmbeddingBag gives."""
    options = dict(options)
    offsets, values = options.pop("offsets", None), options.pop("per_sample_weights", None)
    outcomes = []
    for kind in (bag_type, nn.EmbeddingBag):
        own = None if values is None else values.detach().clone().requires_grad_()
        bag = kind(*weight.shape, _weight=weight.detach().clone(), **options)
        call = functools.partial(bag, index, offsets, own)
        outcomes.append(outcome(call, bag.weight, own))
    return outcomes[0], outcomes[1]


def assert_same(ours: dict[str, Any], torchs: dict[str, Any]) -> None:
    assert ours.keys() == torchs.keys(), (ours, torchs)
    for name, value in torchs.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(ours[name], value, msg=lambda m, n=name: f"{n}: {m}")
        elif name != "error":
            assert ours[name] == value, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_samples_of_pytorch(
    dtype: torch.dtype, requires_grad: bool, opinfo: Any, calls: list[Any]
) -> None:
    samples = opinfo[0][str(dtype), requires_grad]
    here = errors = 0
    for weight, index, options, expected in samples:
        before = len(calls)
        ours, torchs = both(weight, index, options)
        assert_same(ours, torchs)
        torch.testing.assert_close(ours["out"], expected.detach())
        own = dtype.itemsize >= 4 and options["mode"] != "max" and not NOT_HERE & options.keys()
        assert len(calls) - before == own, options
        here += own
        errors += "error" in ours
    assert errors <= 3  # sparse gradients with scale_grad_by_freq: torch refuses them
    assert len(samples) > 30 and (here > 10 or dtype.itemsize == 2)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_option(data: st.DataObject) -> None:
    """Those that the samples leave out, and together: where torch raises, so does the drop-in."""
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 99)))
    options: dict[str, Any] = {
        "mode": draw(st.sampled_from(["sum", "sum", "mean", "max"])),
        "sparse": draw(st.booleans()),
        "include_last_offset": draw(st.booleans()),
        "scale_grad_by_freq": draw(st.sampled_from([False, False, True])),
        "padding_idx": draw(st.sampled_from([None, None, 0, 3, -1])),
        "max_norm": draw(st.sampled_from([None, None, 1.0])),
        "norm_type": draw(st.sampled_from([2.0, 1.0])),
    }
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    integers = st.sampled_from([torch.int32, torch.int64])
    index_dtype = draw(integers)
    if draw(st.booleans()):
        index = torch.randint(7, (draw(st.integers(0, 4)), draw(st.integers(0, 3))))
    else:
        lengths = draw(st.lists(st.integers(0, 3), max_size=4))
        index = torch.randint(7, (sum(lengths),))
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        if not options["include_last_offset"]:
            offsets = offsets[:-1]
        options["offsets"] = offsets.to(draw(st.sampled_from([index_dtype, torch.int64])))
    if draw(st.booleans()) and options["mode"] != "mean":  # a weighted mean: allowed here alone
        options["per_sample_weights"] = torch.rand(index.shape, dtype=dtype) + 0.5
    weight = torch.randn(7, draw(st.sampled_from([1, 3, 18])), dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding_bag, "_FEW", draw(st.sampled_from([0, 16_384])))
        assert_same(*both(weight, index.to(index_dtype), options))


@pytest.mark.parametrize(
    ("index", "options"),
    [
        (torch.tensor([1, 2]), {}),  # 1-D without offsets
        (torch.tensor([[1, 2]]), {"offsets": torch.tensor([0])}),
        (torch.tensor([1.0, 2.0]), {"offsets": torch.tensor([0])}),
        (torch.tensor([[[1]]]), {}),
        (torch.tensor([1, 2]), {"offsets": torch.tensor([1, 2])}),
        (torch.tensor([1, 2]), {"offsets": torch.tensor([0, 5])}),
        (torch.tensor([1, 2]), {"offsets": torch.tensor([0]), "per_sample_weights": torch.ones(3)}),
        (torch.tensor([1, 7]), {"offsets": torch.tensor([0])}),
        (torch.tensor([1, -1]), {"offsets": torch.tensor([0])}),
        (
            torch.tensor([1, 2]),
            {"offsets": torch.tensor([0]), "per_sample_weights": torch.ones(2).double()},
        ),
    ],
)
def test_wrong_arguments_raise_in_both(index: Tensor, options: Any, calls: list[Any]) -> None:
    ours, torchs = both(torch.randn(7, 3), index, {"mode": "sum", **options})
    assert "error" in ours.keys() & torchs.keys() and "out" not in ours.keys() | torchs.keys()


def test_wrong_options_raise_as_in_torch() -> None:
    for arguments in (
        {"num_embeddings": 3, "embedding_dim": 2, "padding_idx": 3},
        {"num_embeddings": 3, "embedding_dim": 2, "mode": "median"},
        {"num_embeddings": 3, "embedding_dim": 2, "_weight": torch.zeros(2, 2)},
    ):
        caught: list[Any] = []
        for kind in (EmbeddingBag, nn.EmbeddingBag):
            try:
                kind(**arguments)(torch.tensor([[1]]))
            except (AssertionError, ValueError) as error:
                caught.append((type(error), str(error)))
        assert len(caught) == 2 and caught[0] == caught[1], arguments


# -- second derivatives, autocast, other weights --------------------------------------------------


def literal(kind: type = EmbeddingBag, **options: Any) -> nn.EmbeddingBag:
    weight = torch.arange(12.0).reshape(4, 3) / 7
    return kind(4, 3, mode="sum", _weight=weight, **options)


INDEX, OFFSETS = torch.tensor([1, 2, 2, 3, 0]), torch.tensor([0, 2])


@pytest.mark.parametrize("kind", [EmbeddingBag, nn.EmbeddingBag])
def test_second_derivatives_are_refused_as_in_torch(kind: type, opinfo: Any) -> None:
    supports_gradgrad = opinfo[1]
    assert not supports_gradgrad
    bag, values = literal(kind), torch.ones(5, requires_grad=True)
    out = bag(INDEX, OFFSETS, values)
    for wanted in (bag.weight, values):
        (grad,) = torch.autograd.grad(out.square().sum(), wanted, create_graph=True)
        with pytest.raises(
            (NotImplementedError, RuntimeError), match=r"derivatives? .*not implemented"
        ):
            torch.autograd.grad(grad.sum(), [bag.weight, values], allow_unused=True)


def test_autocast_and_other_dtypes(calls: list[Any]) -> None:
    ours, plain = literal(), literal(nn.EmbeddingBag)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(INDEX, OFFSETS).dtype == plain(INDEX, OFFSETS).dtype == torch.float32
    assert len(calls) == 1
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(ours.to(dtype)(INDEX, OFFSETS), plain.to(dtype)(INDEX, OFFSETS))
    meta = ours.to("meta")(INDEX.to("meta"), OFFSETS.to("meta"))
    assert meta.shape == (2, 3) and len(calls) == 1


def test_a_weight_that_is_frozen_tied_or_parametrized(calls: list[Any]) -> None:
    ours, plain = literal(), literal(nn.EmbeddingBag)
    frozen = EmbeddingBag.from_pretrained(plain.weight.detach(), mode="sum")
    assert not frozen.weight.requires_grad and not frozen(INDEX, OFFSETS).requires_grad
    ours.weight = plain.weight
    ours(INDEX, OFFSETS).sum().backward()
    assert plain.weight.grad is not None and plain.weight.grad.tolist()[2] == [2, 2, 2]
    both_bags = []
    for bag in (literal(), literal(nn.EmbeddingBag)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.nn.utils.parametrizations.weight_norm(bag, dim=0)
        out = bag(INDEX, OFFSETS)
        out.square().sum().backward()
        gradients = [p.grad for p in bag.parametrizations["weight"].parameters()]  # type: ignore[index]
        both_bags.append([out, *gradients])
        assert parametrize.is_parametrized(bag)
    for ours_value, torchs_value in zip(*both_bags, strict=True):
        torch.testing.assert_close(ours_value, torchs_value)
    assert len(calls) == 3


# -- torch.func, torch.jit, torch.fx, torch.export, torch.compile ---------------------------------


def transformed(kind: type) -> dict[str, Any]:
    """Returns what each transform and each trace gives of a bag."""
    bag = literal(kind)
    parameters = dict(bag.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(bag, parameters, (INDEX, OFFSETS)).square().sum()

    def out(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(bag, parameters, (INDEX, OFFSETS))

    stacked = torch.func.stack_module_state([bag, copy.deepcopy(bag).double().float()])[0]
    other = torch.tensor([3, 1, 0, 0, 2, 2, 1]), torch.tensor([0, 1, 4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {
            "grad": torch.func.grad(loss)(parameters)["weight"],
            "vjp": torch.func.vjp(loss, parameters)[1](torch.ones(()))[0]["weight"],
            "jacrev": torch.func.jacrev(out)(parameters)["weight"],
            "vmap of index": torch.func.vmap(lambda i: bag(i, OFFSETS))(torch.stack([INDEX] * 2)),
            "vmap of models": torch.func.vmap(out)(stacked),
            "vmap of grad": torch.func.vmap(torch.func.grad(loss))(stacked)["weight"],
            "script": torch.jit.script(bag)(*other),
            "fx": torch.fx.symbolic_trace(bag)(*other),
        }
        traced = torch.jit.trace(bag, (INDEX, OFFSETS))
    dynamic = {"input": {0: torch.export.Dim.DYNAMIC}, "offsets": {0: torch.export.Dim.DYNAMIC}}
    exported = torch.export.export(bag, (INDEX, OFFSETS), dynamic_shapes=dynamic)
    for graph in (traced.graph, exported.graph):  # it needs no esmm_fast where it runs
        assert "embedding_bag" in str(graph) and "esmm_fast::" not in str(graph)
    found |= {"trace": traced(*other), "export": exported.module()(*other)}
    for name, transform in (("jvp", torch.func.jacfwd), ("hessian", torch.func.hessian)):
        with pytest.raises(NotImplementedError):
            found[name] = transform(loss)(parameters)
    return found


def test_transforms_and_traces_are_torchs(calls: list[Any]) -> None:
    ours, plain = transformed(EmbeddingBag), transformed(nn.EmbeddingBag)
    assert ours.keys() == plain.keys() and "hessian" not in ours
    for name, value in plain.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("last", [False, True])
def test_compiles_with_and_without_the_last_offset(last: bool, calls: list[Any]) -> None:
    torch._dynamo.reset()
    bag = literal(include_last_offset=last)
    compiled = torch.compile(bag, fullgraph=True, backend="aot_eager")
    offsets = torch.tensor([0, 2, 5]) if last else OFFSETS
    out = compiled(INDEX, offsets)
    torch.testing.assert_close(out, bag(INDEX, offsets))
    out.sum().backward()
    assert bag.weight.grad is not None
    mapped = torch.compile(torch.func.vmap(lambda i: bag(i, offsets)), backend="aot_eager")
    assert torch.equal(mapped(torch.stack([INDEX] * 2))[1], bag(INDEX, offsets))
