"""What `Batch.from_bags` takes bags in: integers of any width, offsets, lists, Arrow columns."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batch import assert_same, two_sides

from esmm_fast import Batch, Field, Schema, Vocabulary

SCHEMA = Schema((Field("user", "common", rows=4), Field("tags", multi=True, rows=9)))
BAGS = [[8, 7], [], [5]]
LABELS = [[1, 1], [0, 0], [1, 0]]


def of(tags: Any, **changes: Any) -> Batch:
    arguments = {"labels": LABELS, "schema": SCHEMA, **changes}
    return Batch.from_bags({"user": [3, 1, 2], "tags": tags}, **arguments)


EXPECTED = of(([8, 7, 5], [0, 2, 2, 3]))
WEIGHTED = of(([8, 7, 5], [0, 2, 2, 3], [0.5, 2.0, 3.0]))


def test_literal() -> None:
    assert EXPECTED.plan.rows.tolist() == [3, 1, 2, 12, 11, 9]
    assert EXPECTED.plan.offsets.tolist() == [0, 1, 2, 3, 5, 5, 6]
    weights = WEIGHTED.plan.weights
    assert weights is not None and weights.tolist() == [1, 1, 1, 0.5, 2, 3]


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", ">i4", ">u8"])
@pytest.mark.parametrize("kind", ["numpy", "reversed", "read-only", "torch"])
def test_integers_of_any_width(dtype: str, kind: str) -> None:
    def convert(numbers: list[int]) -> Any:
        array = np.array(numbers, dtype)
        if kind == "reversed":  # a view of negative stride
            return np.array(numbers[::-1], dtype)[::-1]
        if kind == "torch":
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        array.flags.writeable = kind == "numpy"
        return array

    bags = {"user": (convert([3, 1, 2]), None), "tags": (convert([8, 7, 5]), convert([0, 2, 2, 3]))}
    batch = Batch.from_bags(bags, LABELS, schema=SCHEMA, common_of_impression=convert([0, 1, 2]))
    assert_same(batch, EXPECTED)
    # signed padding of unsigned rows cannot stand in them
    padded = of(convert([8, 7, 0, 0, 5, 0]).reshape(3, 2), padding=0)
    assert_same(padded, EXPECTED)
    assert of(convert([8, 7, 1, 1, 5, 1]).reshape(3, 2), padding=-1).plan.rows.numel() == 9


def test_ids_of_64_bits() -> None:
    ids = [2**64 - 2, 2**63, 12]
    vocabulary = Vocabulary({"user": ([9], [1]), "tags": (np.array(ids, np.uint64), [3, 2, 1])})
    given: list[Any] = [
        [[ids[0]], [ids[2], ids[1]], [4]],  # of each list NumPy makes another dtype
        (ids[:1] + ids[:0:-1] + [4], [0, 1, 3, 4]),
        (np.array([ids[0], ids[2], ids[1], 4], np.uint64), [0, 1, 3, 4]),
        (torch.tensor([ids[0], ids[2], ids[1], 4], dtype=torch.uint64), [0, 1, 3, 4]),
    ]
    for tags in given:
        batch = of(tags, vocabulary=vocabulary)
        assert (batch.plan.rows[3:] - 2).tolist() == [1, 3, 2, 0]
    batch = of(BAGS, sample_id=torch.tensor(ids, dtype=torch.uint64))
    assert batch.sample_id is not None
    assert batch.sample_id.numpy().view(np.uint64).tolist() == ids
    with pytest.raises(ValueError, match=r"field 'tags': rows\[1\] = 18446744073709551614 is outs"):
        of(np.array([3, ids[0], 4], np.uint64))


@settings(max_examples=40, deadline=None)
@given(bags=st.lists(st.lists(st.integers(0, 8), max_size=4), min_size=1, max_size=6))
def test_every_way_to_give_bags(bags: list[list[int]]) -> None:
    schema = Schema((Field("tags", multi=True, rows=9),))
    labels = np.zeros((len(bags), 2))
    flat = [row for bag in bags for row in bag]
    offsets = np.cumsum([0, *map(len, bags)])
    weights = [[row / 8 for row in bag] for bag in bags]
    flat_weights = torch.tensor(flat) / 8
    longest = max(map(len, bags)) + 1
    padded = np.array([bag + [-1] * (longest - len(bag)) for bag in bags])
    arrays = [np.array(bag, np.uint16) for bag in bags]
    column = pa.array(bags, pa.list_(pa.uint32()))
    padded_weights = np.where(padded < 0, np.nan, padded / 8)
    weights_column = pa.array(weights, pa.large_list(pa.float32()))

    def batch(*tags: Any, **given: Any) -> Batch:
        return Batch.from_bags({"tags": tags}, labels, schema=schema, padding=-1)

    expected = batch(flat, offsets, flat_weights)
    assert_same(batch(flat, offsets[:-1], flat_weights), expected)
    assert_same(batch(bags, None, weights), expected)
    assert_same(batch(arrays, None, [np.array(bag) for bag in weights]), expected)
    assert_same(batch([torch.tensor(b) for b in bags], None, weights_column), expected)
    assert_same(batch(padded, None, padded_weights), expected)
    assert_same(batch(column, None, weights_column), expected)
    assert_same(batch(pa.chunked_array([column[:1], column[1:]]), None, weights), expected)
    mask = [[w >= 0 for w in bag] for bag in weights]
    if flat:  # lists without an entry are no mask
        assert_same(batch(bags, None, mask), batch(flat, offsets))


def test_offsets_without_the_last() -> None:
    """As torch.nn.EmbeddingBag takes them; what else says how many bags there are decides."""
    assert_same(of(([8, 7, 5], [0, 2, 2])), EXPECTED)
    empty_last = of(([8, 7], [0, 2, 2]))  # ends with N, but the labels say 3 bags
    assert empty_last.plan.offsets.tolist() == [0, 1, 2, 3, 5, 5, 5]
    one_side = Schema((Field("tags", multi=True, rows=9), Field("item", multi=True, rows=9)))

    def sizes(tags: list[int], item: list[int], labels: Any = None) -> list[int]:
        bags = {"tags": ([8, 7], tags), "item": ([1], item)}
        batch = Batch.from_bags(bags, labels, schema=one_side)
        return batch.plan.offsets.diff().tolist()

    assert sizes([0, 2, 2], [0, 1, 1]) == [2, 1, 0, 0]  # nothing else: both end with N
    assert sizes([0, 2, 2], [0, 0, 0]) == [2, 0, 0, 0, 0, 1]  # the other field's do not
    assert sizes([0, 2, 2], [0, 1, 1], LABELS) == [2, 1, 0, 0, 0, 0]
    empty = Batch.from_bags({"tags": ([], []), "item": ([], [])}, schema=one_side)
    assert repr(empty) == "Batch(B=0, U=0, N=0, T=0)"


def test_an_arrow_column_of_single_values_and_its_nulls() -> None:
    column = pa.array([8, None, 5])
    assert of(column).plan.offsets.tolist() == [0, 1, 2, 3, 4, 4, 5]
    lists = pa.array([[8, 7], None, [5]], pa.list_(pa.int32()))
    assert_same(of(lists), EXPECTED)
    assert_same(of(lists[0:3]), EXPECTED)
    fixed = pa.array([[8, 7], None, [5, 5]], pa.list_(pa.int64(), 2))
    assert of(fixed).plan.rows[3:].tolist() == [12, 11, 9, 9]
    table = pa.table({"tags": lists, "click": [1, 0, 1], "order": [1, 0, 0], "at": [3, 4, 5]})
    labels = table.select(["click", "order"])
    assert_same(of(table["tags"], labels=labels, extra={"at": table["at"]}), EXPECTED)


def test_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"tags": BAGS, "weights": [[0.5, 2.0], [], [3.0]], "click": [1, 0, 1]})
    frame["order"] = [1, 0, 0]
    batch = of((frame["tags"], None, frame["weights"]), labels=frame[["click", "order"]])
    assert_same(batch, WEIGHTED)


def test_a_nested_tensor() -> None:
    nested = torch.nested.nested_tensor([[8, 7], [5, 1]], dtype=torch.int64, layout=torch.jagged)
    batch = Batch.from_bags({"user": [1, 1], "tags": nested}, schema=SCHEMA)
    assert batch.plan.rows[2:].tolist() == [12, 11, 9, 5]


def test_weights_in_every_float() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        weights = torch.tensor([0.5, 2.0, 3.0], dtype=dtype, requires_grad=True)
        assert_same(of(([8, 7, 5], [0, 2, 2, 3], weights)), WEIGHTED)
        assert_same(
            of(BAGS, impression_weights=[1, 2, 3]), of(BAGS, impression_weights=range(1, 4))
        )


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ([[8, 7], 3, [5]], r"rows\[1\]: expected a list, as for other bags, got 3"),
        (
            [[8, 7], None, [5]],
            r"rows\[1\]: expected a list, as for other bags, got None \(an empty bag is \[\]\)",
        ),
        ([[8, 7], ["a"], [5]], r"rows\[1\]\[0\]: expected a number, got 'a'"),
        ([[8, 7], [[1], [2, 3]], [5]], r"rows\[1\]\[1\]: expected 1 numbers, as in .*, got 2"),
        (
            [[8, 7], [[1], [2]], [5]],
            r"rows\[1\]: expected the numbers of one bag, got shape \[2, 1",
        ),
        ([[8, 7], [1.5], [5]], r"rows: expected integers, got float64"),
        ([8, None, 5], r"rows\[1\]: expected a number, got None"),
        ([8, 2**70, 5], r"rows\[1\] = 1180591620717411303424: expected a number of 64 bits"),
        ("875", r"expected rows or a tuple \(rows, offsets, weights\), got str"),
        (8, r"rows: expected shape \[N\] or \[bags, L\], or a list for each bag, got \[\]"),
        (np.zeros((3, 1, 1), int), r"rows: expected shape \[N\] or \[bags, L\], .*got \[3, 1, 1\]"),
        (np.array(["8", "7", "5"]), r"rows: expected numbers, got ndarray of <U1"),
        (torch.ones(3).to_sparse(), r"rows: expected a dense tensor, got torch.sparse_coo"),
        ([[8, 7], [], [9]], r"9 in rows\[2\] is outside the table of 9 rows"),
        ([[8, 7], [-1], [5]], r"-1 in rows\[1\] is outside the table of 9 rows"),
        ((BAGS, [0, 2, 2, 3]), r"offsets: expected None beside rows that are 3 bags already"),
        (
            (BAGS, None, [[1.0, 1.0], [1.0], []]),
            r"weights\[1\]: expected 0 values, as rows\[1\] has",
        ),
        ((BAGS, None, [1.0, 1.0, 1.0]), r"weights: expected the shape of rows, 3 bags, got \[3\]"),
        ((BAGS, None, [[1], [], [1]]), r"weights\[0\]: expected 2 values, as rows\[0\] has, got 1"),
        (([8, 7], [0, 3]), r"offsets\[1\] = 3: expected at most the number of rows, 2"),
        (
            ([8, 7], [0, 0, 1, 1]),
            r"offsets\[3\] = 1: expected the number of rows, 2, at the end of 3",
        ),
        (([8, 7], []), r"offsets: expected integers \[bags \+ 1\] or \[bags\], got shape \[0\]"),
        (([8, 7], [[0, 1, 2]]), r"offsets: expected integers .*, got shape \[1, 3\]"),
        (pa.array(["a", "b", "c"]), r"rows: expected a column of numbers or of lists .*got string"),
        (pa.array([[8, None], [], [5]]), r"rows: expected lists without nulls inside, got list<"),
        (
            pa.array([[[8]], [], [[5]]]),
            r"rows: expected a column of numbers or .*got list<item: list",
        ),
    ],
)
def test_errors(tags: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^field 'tags': {message}"):
        of(tags)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": 1.0}, "labels: expected an entry for each impression, got float"),
        ({"labels": [[1, 0], [0], [0, 1]]}, r"labels\[1\]: expected 2 numbers, as in labels\[0\]"),
        ({"labels": [[1, 0], 0, [0, 1]]}, r"labels\[1\]: expected a list, got 0"),
        ({"labels": [["a", 0]] * 3}, r"labels\[0\]\[0\]: expected a number, got 'a'"),
        (
            {"labels": [np.ones(2), np.ones(1), np.ones(2)]},
            "labels: expected an array of numbers: ",
        ),
        (
            {"common_of_impression": [0, 1, 2**63]},
            r"_impression\[2\] = 9223372036854775808 is outs",
        ),
        ({"common_of_impression": [0.0, 1.0, 2.0]}, "_impression: expected integers, got float64"),
        ({"impression_weights": ["a"] * 3}, r"impression_weights\[0\]: expected a number, got 'a'"),
        ({"extra": {"at": ["a", "b", "c"]}}, r"extra\['at'\]\[0\]: expected a number, got 'a'"),
    ],
)
def test_errors_of_the_rest(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of(BAGS, **changes)


def test_the_place_in_padded_ids() -> None:
    vocabulary = Vocabulary({"user": ([9], [1]), "tags": ([8], [1])})
    with pytest.raises(ValueError, match=r"'tags': -4 in ids\[2\]: expected an id of at least 0"):
        of([[8, 7], [-1, -1], [-1, -4]], vocabulary=vocabulary, padding=-1)


def test_a_hashed_field_without_vocabulary_says_how() -> None:
    schema = Schema((Field("item", rows="hash:100"),))
    with pytest.raises(
        ValueError, match=r"= 812345678 is outside .*100 rows \(feature ids are has"
    ):
        Batch.from_bags({"item": [812345678]}, schema=schema)
    vocabulary = Vocabulary({}, hashed=schema.hashed_tables)
    batch = Batch.from_bags({"item": [812345678]}, schema=schema, vocabulary=vocabulary)
    assert 1 <= int(batch.plan.rows[0]) < 100


def test_rows_alone_need_no_tuple() -> None:
    bags = {"history": ([5, 4, 5], [0, 2], [0.5, 2.0, 3.0]), "item": [1, 2, 4], "user": [3, 1]}
    assert_same(two_sides(bags=bags), two_sides())
