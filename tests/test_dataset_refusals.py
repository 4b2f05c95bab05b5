"""What a dataset refuses, by name: a damaged manifest, and a dump that no log could spell."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from esmm_fast.data.dataset import Dataset, DatasetError
from esmm_fast.data.prepare_log import prepare
from esmm_fast.schema import Field, Schema

ROWS = {"key": [1, 1], "click": [0, 1], "conversion": [0, 0], "205": [5, 6]}
SCHEMA = Schema((Field("205"),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "none"}, "schema: an object with a list 'fields' expected, got 'none'"),
        ({"schema": {"fields": [{"name": 5}]}}, r"schema: Expected `str`, got `int` - at `.*name`"),
        ({"schema": {"fields": [], "labels": "click"}}, "schema: Expected `array`, got `str`"),
        ({"schema": {"fields": [{"name": "1"}] * 2}}, "every name once, got .'1'. more than once"),
        ({"files": []}, r"files: sizes and checksums expected, got \[\]"),
    ],
)
def test_a_damaged_manifest(tmp_path, changes, message):
    path = prepare(table=pa.table(ROWS), schema=SCHEMA, out=tmp_path / "out").path
    manifest = path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))
    with pytest.raises(DatasetError, match=rf"^{manifest} is damaged: .*{message}"):
        Dataset(path)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("205_value", [1.0, -0.5], "field '205' has the value -0.5; a log has values of at least"),
        ("205_value", [1.0, -0.0], "field '205' has the value -0.0; a log has"),
        ("a,b", [1, 2], "field 'a,b': a log has names without ','"),
        ("a\tb", [1, 2], r"field 'a\\tb': a log has names without ','"),
    ],
)
def test_what_no_log_can_spell_is_not_dumped(tmp_path, name, values, message):
    fields = [Field("205"), *([Field(name)] if name in ("a,b", "a\tb") else [])]
    table = pa.table({**ROWS, name: values})
    dataset = prepare(table=table, schema=Schema(tuple(fields)), out=tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        dataset.dump(tmp_path / "dump")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_dump_of_a_table_is_a_log(tmp_path):
    """Keys are written as 16 hex characters, those of texts as their hash."""
    table = pa.table({**ROWS, "key": ["anna", "bert"], "205_value": [1.0, 0.5]})
    dataset = prepare(table=table, schema=SCHEMA, out=tmp_path / "out")
    dataset.dump(tmp_path / "dump")
    files = (tmp_path / "dump" / f"{n}.csv" for n in ("sample_skeleton", "common_features"))
    again = prepare(**dict(zip(("skeleton", "common"), files, strict=True)), out=tmp_path / "again")
    assert again.impressions["205"].to_pylist() == [5, 6]
    assert again.impressions["205_value"].to_pylist() == [1.0, 0.5]
    assert again.common_rows["key"].to_pylist() == dataset.common_rows["key"].to_pylist()
