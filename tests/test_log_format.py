"""Logs of one's own: columns, separators and keys as a schema file says, and wrong schema files."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import slow_log
from hypothesis import given, settings
from hypothesis import strategies as st

from esmm_fast._compiled import _native
from esmm_fast.data.dataset import Dataset
from esmm_fast.data.log_format import LogFormat, read_format
from esmm_fast.data.logs import LogError, read_log
from esmm_fast.data.prepare_log import prepare
from esmm_fast.schema import ALI_CCP, Field, Schema

SCHEMA = """
fields:
  - {name: user, side: common}
  - {name: seen, side: common, multi: true, weighted: true, table: item}
  - {name: item}
  - {name: tags, multi: true}
labels: [click, cart, buy]
dense: [price, age]
weight: w
extra: [time, {name: score, type: float64}]
key: session
key_kind: text
columns: [time, session, click, cart, buy, price, age, w, score]
separators: {column: "\\t", feature: ";", field: "=", value: ":"}
"""
SKELETON = (
    "1700000001\tanna/1\t1\t1\t0\t9.5\t-1e2\t1\t0.1\titem=7:1;tags=1:1;tags=2:1\n"
    "-5\tbert\t0\t0\t1\t1\t0\t0.5\t-2.5e-3\titem=8:1\n"
    "1700000003\tanna/1\t1\t1\t1\t.5\t3\t2\t7\t\n"
)
COMMON = "bert\tuser=2:1\nanna/1\tuser=1:1;seen=7:0.5;seen=8:1\n"


def files_of(folder: Path, schema=SCHEMA, skeleton=SKELETON, common=COMMON) -> dict[str, Path]:
    """Writes the three files; returns the arguments of `prepare`."""
    folder.mkdir(exist_ok=True)
    paths = {n: folder / n for n in ("schema", "skeleton", "common")}
    for name, text in (("schema", schema), ("skeleton", skeleton), ("common", common)):
        paths[name].write_bytes(text.encode())
    return paths


def test_literal(tmp_path):
    dataset = prepare(**files_of(tmp_path / "log"), out=tmp_path / "out", threads=2)
    assert dataset.impressions.to_pydict() == {
        "sample_id": [1, 2, 3],
        "click": [1, 0, 1],
        "cart": [1, 0, 1],
        "buy": [0, 1, 1],
        "common_row": [1, 0, 1],
        "dense": [[9.5, -100], [1, 0], [0.5, 3]],
        "w": [1, 0.5, 2],
        "time": [1700000001, -5, 1700000003],
        "score": [0.1, -2.5e-3, 7],
        "item": [7, 8, None],
        "tags": [[1, 2], [], []],
    }
    assert dataset.common_rows.drop_columns("key").to_pydict() == {
        "user": [2, 1],
        "seen": [[], [7, 8]],
        "seen_value": [[], [0.5, 1]],
    }
    schema = Dataset(tmp_path / "out").schema
    assert (schema.labels, schema.dense, schema.weight) == (("click", "cart", "buy"), 2, "w")
    assert schema.extra == ("time", "score")
    info = dataset.info()
    assert (info["clicks"], info["conversions"], info["conversions_without_click"]) == (2, 1, 1)
    assert info["labels"] == {"click": 2, "cart": 2, "buy": 2}
    assert "published" not in info
    place = SKELETON.index("1\t1\t0\t0.5")
    first = info["anomalies"]["conversions_without_click"]["first"]
    assert first.endswith(f"skeleton:2 (byte {place})")
    assert dataset.labels().tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
    assert dataset.labels("raw").tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 1]]
    assert dataset.labels("drop").tolist() == [[1, 1, 0], [1, 1, 1]]
    first = dataset.head(1)[0]
    assert first["fields"]["seen"] == [(7, 0.5), (8, 1.0)] and first["time"] == 1700000001
    with pytest.raises(ValueError, match=r"the dataset has .*score, which it would lose"):
        dataset.dump(tmp_path / "dump")


def respelled(text: str, separators: tuple[str, ...]) -> str:
    """Returns a log of the usual separators with others."""
    return text.translate({ord(u): o for u, o in zip(",\x01\x02\x03", separators, strict=True)})


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_other_separators_give_the_same_dataset(tmp_path_factory, seed, data):
    """Also where they are usual ones in other places, and in every chunk."""
    choice = st.sampled_from([*",;:|= \t~#", "\x01", "\x02", "\x03", "\x04", "\x7f"])
    separators = tuple(data.draw(st.lists(choice, min_size=4, max_size=4, unique=True)))
    folder = tmp_path_factory.mktemp("log")
    rng = random.Random(seed)
    texts = slow_log.generate(rng, rng.randrange(1, 20), 4, strange=True)
    files = slow_log.write(folder, *(respelled(t, separators) for t in texts))
    slow = slow_log.parse(*texts)
    spelled = dataclasses.replace(LogFormat.of(ALI_CCP), separators=separators)
    for threads, chunk_bytes in [(1, 1 << 20), (3, 100)]:
        log = read_log(*files, spelled, threads=threads, chunk_bytes=chunk_bytes)
        fast = slow_log.stored(log.impressions, log.common_rows, log.schema)
        assert (fast.impressions, fast.common) == (slow.impressions, slow.common)


def test_the_usual_columns_in_another_order(tmp_path):
    texts = slow_log.generate(random.Random(1), 30, 4)
    slow = slow_log.parse(*texts)
    turned = []
    for line in texts[0].splitlines():
        sample_id, click, conversion, key, count, features = line.split(",")
        turned.append(f"{key},{click},{count},{conversion},{sample_id},{features}\r\n")
    files = slow_log.write(tmp_path, "".join(turned), texts[1])
    columns = ("key", "click", "feature_num", "conversion", "sample_id")
    log = read_log(*files, dataclasses.replace(LogFormat.of(ALI_CCP), columns=columns))
    fast = slow_log.stored(log.impressions, log.common_rows, log.schema)
    assert (fast.impressions, fast.common) == (slow.impressions, slow.common)
    assert log.report["impression"].anomalies["crlf"]["count"] == 30
    report = log.report["impression"]
    assert report.clicks == sum(row[1] for row in slow.impressions)
    assert report.conversions == sum(row[1] and row[2] for row in slow.impressions)


def test_without_common_rows_and_without_numbers(tmp_path):
    text = "fields: [{name: item}, {name: tags, multi: true}]\nlabels: [click]\ncolumns: [click]\n"
    paths = files_of(tmp_path / "log", text, "1,item\x025\x031\n0,\n1,tags\x021\x032\n" * 3)
    del paths["common"]
    for threads, chunk_bytes in [(1, 1 << 20), (3, 10)]:
        out = tmp_path / str(threads)
        dataset = prepare(**paths, out=out, threads=threads, chunk_bytes=chunk_bytes)
        assert dataset.impressions.column_names[:2] == ["sample_id", "click"]
        assert "common_row" not in dataset.impressions.column_names
        assert dataset.impressions["sample_id"].to_pylist() == list(range(1, 10))
        assert dataset.common_rows.num_rows == 0
        assert dataset.labels().tolist() == [[1], [0], [1]] * 3
        assert dataset.head(1) == [{"sample_id": 1, "click": 1, "fields": {"item": [(5, 1.0)]}}]
        assert dataset.info()["promoted"] == {"tags": ["weighted"]}
        assert (dataset.info()["clicks"], dataset.info()["conversions"]) == (6, 0)
    key = "fields: [{name: item}]\nlabels: [click]\ncolumns: [click, key]\nkey_kind: decimal\n"
    paths = files_of(tmp_path / "log", key, "1,77,\n0,5,\n1,77,\n")
    del paths["common"]
    dataset = prepare(**paths, out=tmp_path / "keys")
    assert dataset.impressions["common_row"].to_pylist() == [0, 1, 0]
    assert dataset.common_rows.to_pydict() == {"key": [77, 5]}


# ---- Bad lines


@pytest.mark.parametrize(
    ("old", "new", "reason", "message"),
    [
        ("-5", "", "bad_column", r"column 'time' is not an integer of 64 bits; expected column 't"),
        ("-5", "5x", "bad_column", r"got '5x'"),
        ("-5", "9" * 20, "bad_column", "column 'time' is not an integer of 64 bits"),
        (
            "\tbert",
            "\t",
            "bad_common_key",
            r"at least one character\) and '\\x09', got ",
        ),
        ("\tbert", "\tberta", "missing_common_row", "no common row has this key; .* got 'berta'"),
        ("\t0\t0\t1", "\t0\t2\t1", "bad_label", r"column 'cart' is not 0 or 1; .*got '2'"),
        ("\t0\t0\t1", "\t0\t11\t1", "bad_label", "column 'cart' is not 0 or 1"),
        ("0.5\t-2", "nan\t-2", "bad_column", "'w' is not a decimal .*, at least 0; .*'nan'"),
        ("0.5\t-2", "1e999\t-2", "bad_column", "column 'w' is not a decimal number of float32's"),
        ("0.5\t-2", "1e300\t-2", "bad_column", "column 'w' is not a .* float32's .*got '1e300'"),
        ("0.5\t-2", "-1e-9\t-2", "bad_column", "column 'w' .* at least 0; expected .*'-1e-9'"),
        ("1\t0\t0.5", "1\t-1e39\t0.5", "bad_column", "'age' is not a .*float32's range; .*'-1e39'"),
        ("-2.5e-3", "1e309", "bad_column", "column 'score' is not a finite decimal .*got '1e309'"),
        ("-2.5e-3\titem=8:1", "-2.5e-3", "truncated_line", "the line ends too early; .*'score'"),
        (
            "item=8:1",
            "item=8;1",
            "wrong_separator",
            "expected ':' behind the feature id",
        ),
        ("item=8:1", "item:8:1", "wrong_separator|unknown_field", "'=' behind the field"),
        ("item=8:1", "item=8:1,", "bad_value|wrong_separator", "';' or the end of the line"),
        ("item=8:1", "shop=8:1", "unknown_field", "a field of the impression side .item, tags."),
        ("item=8:1", "seen=8:1", "unknown_field", "field of the common file in a skeleton file"),
    ],
)
def test_bad_lines(tmp_path, old, new, reason, message):
    """Place, separators and rejects are those of the file."""
    before, line, after = SKELETON.splitlines(keepends=True)
    assert line.count(old) == 1
    bad = line.replace(old, new)
    paths = files_of(tmp_path / "log", skeleton=before + bad + after)
    for threads, chunk_bytes in [(1, 1 << 20), (3, 20)]:
        with pytest.raises(LogError, match=message) as caught:
            prepare(**paths, out=tmp_path / "out", threads=threads, chunk_bytes=chunk_bytes)
        assert caught.value.line == 2
        assert len(before) <= caught.value.byte <= len(before + bad)
        assert caught.value.reason in reason.split("|")
    dataset = prepare(
        **paths, out=tmp_path / "out", on_error="skip", rejects=tmp_path / "rejects", chunk_bytes=20
    )
    assert (tmp_path / "rejects").read_text() == bad
    assert dataset.impressions["time"].to_pylist() == [1700000001, 1700000003]


def test_a_count_is_checked_where_there_is_one(tmp_path):
    text = "fields: [{name: a}]\nlabels: [click]\ncolumns: [feature_num, click]\n"
    paths = files_of(tmp_path / "log", text, "1,0,a\x025\x031\n2,1,a\x025\x031\n")
    del paths["common"]
    with pytest.raises(LogError, match=r":2 \(byte 10\): feature_num is not .* 2 features"):
        prepare(**paths, out=tmp_path / "out")


# ---- Bad schema files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("feilds: []", "schema: feilds: unknown key; did you mean 'fields'"),
        ("fields: [{name: a, multy: true}]", r"fields\[0\]\.multy: unknown key; .* 'multi'"),
        ("fields: [{name: a}]\nseparators: {colum: x}", "separators.colum: unknown .*'column'"),
        ("fields: [{name: a}]\nextra: [{name: a, typ: int64}]", r"extra\[0\]\.typ: .*'type'"),
        ("fields: [{name: a, side: left}]", r"fields\[0\]\.side: Invalid enum value 'left'"),
        (
            "fields: [{name: 109_14}]",
            r"fields\[0\]: a name in quotes .* number 10914",
        ),
        ("fields: {a: 1}", "fields: Expected `array`, got `object`"),
        ("labels: [a]", "required field `fields`"),
        ("fields: [{name: a}, {name: a}]", "every name once"),
        ("fields: [{name: a}]\nextra: [t]", "columns: the place of 't' in a line expected"),
        ("fields: [{name: a}]\ncolumns: [click, conversion, x]", "columns: 'x' is neither"),
        (
            "fields: [{name: a}]\ncolumns: [conversion, click]",
            "labels in the order of",
        ),
        (
            "fields: [{name: a}]\ncolumns: [click, click, conversion]",
            "every name once, got",
        ),
        (
            "fields: [{name: a, side: common}]\ncolumns: [click, conversion]",
            "'key' expected",
        ),
        ("fields: [{name: a}]\nseparators: {column: ab}", "single ASCII characters .*'ab'"),
        ("fields: [{name: a}]\nseparators: {column: '-'}", "single ASCII characters .*'-'"),
        (
            "fields: [{name: a}]\nseparators: {column: 'x'}",
            "no letters .* got 'x'",
        ),
        ("fields: [{name: a}]\nseparators: {column: '='; value: '='}", ":2: not YAML"),
        ("fields: [{name: a}]\nseparators: {column: '=', value: '='}", "four different ones"),
        ("fields: [{name: a b}]\nseparators: {column: ' '}", "names without separators expected"),
        ("fields: [{name: a}]\nlabels: [click, a]", "two columns would be named 'a'"),
        ("fields: [{name: a}]\nlabels: [b]\nextra: [b]", "'b' has several"),
        ("[1]", "expected a mapping at the top"),
    ],
)
def test_bad_schema_files(tmp_path, text, message):
    paths = files_of(tmp_path / "log", schema=text)
    with pytest.raises(ValueError, match=message) as caught:
        prepare(**paths, out=tmp_path / "out")
    assert str(caught.value).startswith(f"{paths['schema']}:")


def test_read_format_of_a_manifest_and_defaults(tmp_path):
    path = tmp_path / "schema.yaml"
    path.write_text('fields: [{name: "205"}]\nlabels: [click, order]\n')
    assert read_format(path) == LogFormat(
        Schema((Field("205"),), labels=("click", "order")),
        columns=("sample_id", "click", "order", "key", "feature_num"),
    )
    assert read_format(path) == LogFormat.of(Schema((Field("205"),), ("click", "order")))
    assert LogFormat.of(ALI_CCP).usual and not read_format(path).usual
    with pytest.raises(ValueError, match="dense features have no names"):
        LogFormat.of(Schema((), dense=2))
    with pytest.raises(ValueError, match="the schema's 2 names expected, got "):
        LogFormat(Schema((), dense=2), dense=("a",))
    for arguments, message in [
        ({"key_kind": "Hex"}, r"key_kind: one of \('hex', 'decimal', 'text'\) expected, got 'Hex'"),
        ({"extra_types": {"t": "float"}}, r"extra_types\['t'\]: one of .*'float64'.* got 'float'"),
        ({"extra_types": {"x": "int64"}}, r"names of extra columns expected \(t\), got 'x'"),
        ({"separators": (",", ";", "=")}, r"separators: four characters expected, got \(',', "),
    ]:
        with pytest.raises(ValueError, match=message):
            LogFormat(Schema((), extra=("t",)), **arguments)


@pytest.mark.parametrize(
    "text",
    [
        *("0.1", ".5", "3.4028235e38", "00000001E-1", "7.038531e-26", "0e400", "1e-400"),
        *("1e-99999999999999999999", "0." + "0" * 400 + "1", "0." + "0" * 30 + "1e+40"),
        "1" + "0" * 30 + "e-60",
    ],
)
def test_numbers_are_the_nearest_float32(tmp_path, text):
    """Rounded once; what is too small for float32 is 0, as a value of the feature list is."""
    columns = ["click", "price", "w", "score"]
    schema = "fields: [{name: a}]\nlabels: [click]\ndense: [price]\nweight: w\n"
    schema += f"extra: [{{name: score, type: float64}}]\ncolumns: {columns}\n"
    paths = files_of(tmp_path / "log", schema, f"1,-{text},{text},-{text},\n")
    del paths["common"]
    stored = prepare(**paths, out=tmp_path / "out").impressions
    nearest = float(np.float32(np.longdouble(text))) if "e-9" not in text else 0.0
    assert stored["w"].to_pylist() == [nearest]
    assert stored["dense"].to_pylist() == [[-nearest]]
    assert stored["score"].to_pylist() == [-float(text)]


def test_text_keys_are_the_hash_of_what_the_file_says(tmp_path):
    """Also where a key holds bytes that are separators elsewhere."""
    key = "a,b\x01c"
    paths = files_of(
        tmp_path / "log", *(t.replace("anna/1", key) for t in (SCHEMA, SKELETON, COMMON))
    )
    dataset = prepare(**paths, out=tmp_path / "out")
    hashes = []
    for text in ("bert", key):
        checksum = _native.Xxh64()
        checksum.update(text.encode())
        hashes.append(int(checksum.hexdigest(), 16))
    assert dataset.common_rows["key"].to_pylist() == hashes
    rows = pa.table({"session": [key, "bert"], "item": [1, 2], "click": [0, 1]})
    of_table = LogFormat(Schema((Field("item"),), ("click",)), key="session")
    dataset = prepare(table=rows, schema=of_table, out=tmp_path / "table")
    assert dataset.common_rows["key"].to_pylist() == hashes[::-1]


def test_a_comma_in_names_where_it_separates_nothing(tmp_path):
    schema = SCHEMA.replace("{name: item}", '{name: "it,em"}').replace(
        "name: tags", "name: 'a,b,c,d,e'"
    )
    skeleton = SKELETON.replace("item", "it,em").replace("tags", "a,b,c,d,e")
    dataset = prepare(**files_of(tmp_path / "log", schema, skeleton), out=tmp_path / "out")
    assert dataset.impressions["it,em"].to_pylist() == [7, 8, None]
    assert dataset.impressions["a,b,c,d,e"].to_pylist() == [[1, 2], [], []]
    bad = files_of(tmp_path / "bad", schema, skeleton.replace("it,em=8", "it.em=8"))
    with pytest.raises(LogError, match=r"impression side \(it,em, a,b,c,d,e\), got 'it.em'"):
        prepare(**bad, out=tmp_path / "new")
    usual = Schema((Field("it,em"),))
    with pytest.raises(ValueError, match="names without separators expected, got 'it,em'"):
        prepare(skeleton=bad["skeleton"], schema=usual, out=tmp_path / "new")
