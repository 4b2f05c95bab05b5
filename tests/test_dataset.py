"""prepare, Dataset and its views: what goes in comes out, is counted, and is whole or absent."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import esmm_fast._native as _native
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import slow_log
from hypothesis import given, settings
from hypothesis import strategies as st

from esmm_fast.data import dataset_files
from esmm_fast.data.dataset import Dataset, DatasetError
from esmm_fast.data.logs import LogError
from esmm_fast.data.manifest import schema_from_dict, schema_to_dict
from esmm_fast.data.prepare_log import prepare
from esmm_fast.data.published import PUBLISHED
from esmm_fast.schema import ALI_CCP, Field, Schema

GOOD = Path(__file__).parent / "logs" / "good"
BAD = Path(__file__).parent / "logs" / "bad"
WAYS = [(1, 1 << 20), (2, 150), (7, 37)]  # threads, chunk_bytes


def make_log(folder: Path, seed: int, impressions: int = 30, strange: bool = False, half="train"):
    rng = random.Random(seed)
    texts = slow_log.generate(rng, impressions, 1 + impressions // 6, strange=strange)
    folder.mkdir(exist_ok=True)
    return texts, slow_log.write(folder, *texts, half=half)


@pytest.fixture
def dataset(tmp_path):
    _, files = make_log(tmp_path / "log", seed=1, impressions=60)
    return prepare(skeleton=files[0], common=files[1], out=tmp_path / "dataset", chunk_bytes=2000)


def left_behind(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != "log")


# ---- There and back


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), strange=st.booleans())
def test_prepare_dump_round_trip(tmp_path_factory, seed, strange):
    folder = tmp_path_factory.mktemp("round")
    texts, files = make_log(folder / "log", seed, random.Random(seed).randrange(1, 30), strange)
    slow = slow_log.parse(*texts)
    results = []
    for i, (threads, chunk_bytes) in enumerate(WAYS):
        dataset = prepare(
            skeleton=files[0],
            common=files[1],
            out=folder / f"dataset{i}",
            threads=threads,
            chunk_bytes=chunk_bytes,
        )
        dataset.dump(folder / f"dump{i}")
        dumped = [
            (folder / f"dump{i}" / f"{name}.csv").read_bytes().decode()
            for name in ("sample_skeleton", "common_features")
        ]
        back = slow_log.parse(*dumped)
        assert back.impressions == slow.impressions
        assert list(back.common.items()) == list(slow.common.items())
        info = dataset.info(verify=True)
        assert {n: info[n] for n in slow_log.count(slow, ALI_CCP)} == slow_log.count(slow, ALI_CCP)
        results.append((dataset.schema, info["anomalies"], info["promoted"], dumped))
        again = prepare(folder / f"dump{i}", out=folder / f"again{i}", schema=dataset.schema)
        assert again.impressions.equals(dataset.impressions)
        assert again.info()["fields"] == info["fields"]
    assert results[1:] == results[:-1]


def test_the_dataset_does_not_depend_on_threads(tmp_path):
    _, files = make_log(tmp_path / "log", seed=3, impressions=200, strange=True)
    contents = []
    for threads in (1, 2, 7):
        out = tmp_path / f"dataset{threads}"
        prepare(skeleton=files[0], common=files[1], out=out, threads=threads, chunk_bytes=1000)
        contents.append({f.name: f.read_bytes() for f in out.iterdir()})
    assert contents[0] == contents[1] == contents[2]
    assert sorted(contents[0]) == [
        "common_rows.arrow",
        "counts.arrow",
        "impressions.arrow",
        "manifest.json",
    ]


def test_dump_spells_values_shortest(tmp_path):
    values = ["1.00", "7", "0.10000", "0.1000000001", "16777216", "0.00001"]
    features = "\x01".join(f"853\x02{i}\x03{v}" for i, v in enumerate(values))
    (tmp_path / "s.csv").write_text(f"18446744073709551615,0,1,{'0' * 15}f,6,{features}\n")
    prepare(skeleton=tmp_path / "s.csv", out=tmp_path / "dataset").dump(tmp_path / "dump")
    values = ["1.0", "7.0", "0.1", "0.1", "16777216.0", "0.00001"]
    features = "\x01".join(f"853\x02{i}\x03{v}" for i, v in enumerate(values))
    text = (tmp_path / "dump" / "sample_skeleton.csv").read_text()
    assert text == f"18446744073709551615,0,1,{'0' * 15}f,6,{features}\n"
    assert (tmp_path / "dump" / "common_features.csv").read_text() == f"{'0' * 15}f,0,\n"


def test_files_are_plain_arrow(dataset):
    with pa.memory_map(str(dataset.path / "impressions.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
        assert table.equals(dataset.impressions)
    assert dataset.impressions["205"].num_chunks > 3
    counts = dataset.counts.to_pydict()
    order = [f.name for f in ALI_CCP.fields]
    rows = list(zip(counts["field"], counts["feature_id"], counts["count"], strict=True))
    assert rows == sorted(rows, key=lambda row: (order.index(row[0]), row[1]))
    ids, times = np.unique(
        np.concatenate([c.flatten().to_numpy() for c in dataset.impressions["210"].chunks]),
        return_counts=True,
    )
    assert [row[1:] for row in rows if row[0] == "210"] == list(zip(ids, times, strict=True))


# ---- What is read


def test_halves_of_a_directory(tmp_path):
    log = tmp_path / "log"
    make_log(log, seed=1, half="train")
    make_log(log, seed=2, half="test")
    datasets = prepare(log, out=tmp_path / "out")
    assert sorted(datasets) == left_behind(tmp_path / "out") == ["test", "train"]
    assert len(datasets["train"]) == 30
    with pytest.raises(DatasetError, match="it holds the datasets test, train: give one"):
        Dataset(tmp_path / "out")
    (log / "common_features_test.csv").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"common_features_test.csv is missing beside sample_skeleton_test"
    ):
        prepare(log, out=tmp_path / "other")
    (log / "sample_skeleton_test.csv").unlink()
    assert sorted(prepare(log, out=tmp_path / "train_only")) == ["train"]
    with pytest.raises(FileNotFoundError, match="expected, got neither"):
        prepare(tmp_path / "out", out=tmp_path / "other")


def test_a_schema_of_ones_own(tmp_path):
    schema = Schema(
        (Field("user", side="common"), Field("item", table="shared"), Field("last", table="shared"))
    )
    (tmp_path / "s.csv").write_text(f"1,1,1,{'a' * 16},2,item\x025\x031.0\x01last\x026\x031.0\n")
    (tmp_path / "c.csv").write_text(f"{'a' * 16},1,user\x027\x031.0\n")
    dataset = prepare(
        skeleton=tmp_path / "s.csv", common=tmp_path / "c.csv", out=tmp_path / "d", schema=schema
    )
    assert Dataset(tmp_path / "d").schema == schema
    assert dataset.head() == [
        {
            "sample_id": 1,
            "click": 1,
            "conversion": 1,
            "common_row": 0,
            "key": "a" * 16,
            "fields": {"user": [(7, 1.0)], "item": [(5, 1.0)], "last": [(6, 1.0)]},
        }
    ]
    assert "published" not in dataset.info()
    again = prepare(
        skeleton=tmp_path / "s.csv",
        common=tmp_path / "c.csv",
        out=tmp_path / "again",
        schema=tmp_path / "d" / "manifest.json",
    )
    assert again.impressions.equals(dataset.impressions)
    with pytest.raises(ValueError, match=r"s\.csv: not YAML: "):
        prepare(skeleton=tmp_path / "s.csv", out=tmp_path / "x", schema=tmp_path / "s.csv")


def test_promotions_are_listed(tmp_path):
    (tmp_path / "s.csv").write_text(
        f"1,0,0,{'a' * 16},1,205\x025\x031.0\n"
        f"2,0,0,{'a' * 16},3,205\x025\x032.0\x01205\x026\x031.0\x01206\x024294967296\x031.0\n"
    )
    for chunk_bytes in (10, 1000):
        out = tmp_path / str(chunk_bytes)
        dataset = prepare(skeleton=tmp_path / "s.csv", out=out, chunk_bytes=chunk_bytes)
        assert dataset.info()["promoted"] == {"205": ["multi", "weighted"], "206": ["uint64"]}
        assert dataset.impressions["205"].to_pylist() == [[5], [5, 6]]
        assert dataset.impressions["205_value"].to_pylist() == [[1], [2, 1]]
        assert dataset.impressions["206"].to_pylist() == [None, 2**32]
        assert sorted(p.name for p in out.iterdir()) == sorted(
            ["impressions.arrow", "common_rows.arrow", "counts.arrow", "manifest.json"]
        )
        assert dataset.info(verify=True)["verified"]


def test_check_reads_everything_and_writes_nothing(tmp_path):
    skeleton = (
        GOOD / "skeleton_crlf.csv",
        BAD / "skeleton_click_2.csv",
        BAD / "skeleton_id_empty.csv",
    )
    report = prepare(skeleton=skeleton, common=GOOD / "common.csv", check=True)
    assert report["impressions"] == 4
    assert report["anomalies"] == {
        "crlf": {
            "count": 2,
            "first": f"{skeleton[0]}:1 (byte 108)",
            "note": "lines end with \\r\\n",
        }
    }
    errors = report["errors"]
    assert {n: (e["count"], e["first"]) for n, e in errors.items()} == {
        "bad_label": (1, f"{skeleton[1]}:2 (byte 111)"),
        "bad_feature_id": (1, f"{skeleton[2]}:2 (byte 138)"),
    }
    assert errors["bad_label"]["message"].startswith("click is not 0 or 1; expected")
    assert report["fields"]["205"]["occurrences"] == 4
    again = prepare(
        skeleton=skeleton, common=GOOD / "common.csv", check=True, out=tmp_path / "out", threads=1
    )
    assert again == report
    assert left_behind(tmp_path) == []


def test_skip_and_rejects(tmp_path):
    skeleton = BAD / "skeleton_click_2.csv"
    dataset = prepare(
        skeleton=skeleton,
        common=BAD / "common_value_nan.csv",
        out=tmp_path / "out",
        on_error="skip",
        rejects=tmp_path / "rejects",
    )
    bad = (BAD / "common_value_nan.csv").read_bytes().splitlines(keepends=True)[2]
    assert (tmp_path / "rejects").read_bytes() == bad + skeleton.read_bytes().splitlines(
        keepends=True
    )[1]
    rejected = dataset.info()["rejected"]
    assert {name: r["count"] for name, r in rejected.items()} == {"bad_value": 1, "bad_label": 1}
    with pytest.raises(FileExistsError, match="rejects exists; expected a new name"):
        prepare(
            skeleton=skeleton, out=tmp_path / "b", on_error="skip", rejects=tmp_path / "rejects"
        )
    with pytest.raises(LogError, match="got only blank ones"):
        prepare(
            skeleton=BAD / "skeleton_only_blank_lines.csv",
            out=tmp_path / "b",
            on_error="skip",
            rejects=tmp_path / "more",
        )
    with pytest.raises(ValueError, match="on_error='skip' expected"):
        prepare(skeleton=skeleton, out=tmp_path / "b", rejects=tmp_path / "more")
    assert left_behind(tmp_path) == ["out", "rejects"]


# ---- Whole or not there


def test_an_error_leaves_nothing(tmp_path):
    for name in ("skeleton_value_nan", "skeleton_empty_file", "skeleton_missing_common_row"):
        with pytest.raises(LogError):
            prepare(
                skeleton=BAD / f"{name}.csv", common=GOOD / "common.csv", out=tmp_path / "a" / "b"
            )
    assert left_behind(tmp_path) == []
    log = tmp_path / "log"
    make_log(log, seed=1, half="train")
    files = make_log(log, seed=1, half="test")[1]
    files[0].write_text("x\n")
    with pytest.raises(LogError):  # the good first half does not appear either
        prepare(log, out=tmp_path / "out")
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interruption_leaves_nothing(tmp_path, monkeypatch, error):
    _, files = make_log(tmp_path / "log", seed=1)

    def stop(self, batch, layout):
        raise error

    monkeypatch.setattr(dataset_files.TableFile, "write", stop)
    with pytest.raises(BaseException, match=r"^$|No space left"):
        prepare(skeleton=files[0], out=tmp_path / "out", rejects=tmp_path / "r", on_error="skip")
    assert left_behind(tmp_path) == []


SLOW_PREPARE = """
import sys, time
from esmm_fast.data import dataset_files, prepare_log
write = dataset_files.TableFile.write
def slow_write(self, batch, layout):
    write(self, batch, layout)
    print("writing", flush=True)
    time.sleep(30)
dataset_files.TableFile.write = slow_write
prepare_log.prepare(skeleton=sys.argv[1], out=sys.argv[2], threads=2, chunk_bytes=100)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_prepare_leaves_nothing_that_looks_finished(tmp_path, how):
    _, files = make_log(tmp_path / "log", seed=1)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_PREPARE, str(files[0]), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout.readline() == b"writing\n"
    with pytest.raises(FileExistsError, match="another process is writing it"):
        prepare(skeleton=files[0], out=out)
    process.send_signal(how)
    process.wait(timeout=20)
    process.stdout.close()
    assert left_behind(tmp_path) == ([".out.partial"] if how == signal.SIGKILL else [])
    assert not (tmp_path / ".out.partial" / "manifest.json").exists()
    assert len(prepare(skeleton=files[0], out=out)) == 30  # and it can be done again
    assert left_behind(tmp_path) == ["out"]


def test_ctrl_c_is_heard_while_the_parser_waits(tmp_path):
    """A signal is not lost while the parser waits for a slow stream."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    code = (
        "import sys; from esmm_fast.data.logs import read_log;"
        "print('on', flush=True); read_log(sys.argv[1])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(fifo)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"on\n"
    with open(fifo, "wb") as pipe:
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        pipe.close()
    assert b"KeyboardInterrupt" in process.communicate(timeout=20)[1]


def test_what_exists_is_refused(tmp_path):
    _, files = make_log(tmp_path / "log", seed=1)
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match=r"out exists; expected a new name"):
        prepare(skeleton=files[0], out=tmp_path / "out")
    with pytest.raises(DatasetError, match=r"skeleton_train\.csv is a file; expected a dataset"):
        Dataset(files[0])
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(ValueError, match="out: a new directory expected"):
        prepare(skeleton=files[0])
    with pytest.raises(ValueError, match="logdir or skeleton expected, got neither"):
        prepare(out=tmp_path / "b")
    with pytest.raises(ValueError, match="got both"):
        prepare(tmp_path / "log", out=tmp_path / "b", skeleton=files[0])


# ---- Damaged datasets


def test_a_flipped_byte_is_found(dataset):
    assert dataset.info(verify=True)["verified"]
    for name in ("impressions.arrow", "common_rows.arrow", "counts.arrow"):
        path = dataset.path / name
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 4
        path.write_bytes(data)
        with pytest.raises(
            DatasetError, match=rf"{name} is damaged: expected checksum [0-9a-f]{{16}}"
        ):
            dataset.info(verify=True)
        data[len(data) // 3] ^= 4
        path.write_bytes(data)
    assert dataset.info(verify=True)["verified"]


def test_damage_is_refused_at_opening(tmp_path, dataset):
    path = dataset.path
    manifest = json.loads((path / "manifest.json").read_text())

    def altered(**changes):
        (path / "manifest.json").write_text(json.dumps(manifest | changes))

    data = (path / "counts.arrow").read_bytes()
    (path / "counts.arrow").write_bytes(data[:-1])
    with pytest.raises(DatasetError, match=r"counts.arrow is damaged: expected \d+ bytes, got \d+"):
        Dataset(path)
    (path / "counts.arrow").unlink()
    with pytest.raises(DatasetError, match=r"counts.arrow is missing"):
        Dataset(path)
    (path / "counts.arrow").write_bytes(data)
    altered(version=2)
    with pytest.raises(
        DatasetError, match=r"reads datasets of version 1, got version 2; read it with"
    ):
        Dataset(path)
    altered(impressions=59)
    with pytest.raises(
        DatasetError, match=r"impressions.arrow is damaged: expected 59 rows, got 60"
    ):
        Dataset(path)
    altered(format="other")
    with pytest.raises(DatasetError, match="is not the manifest of a dataset"):
        Dataset(path)
    (path / "manifest.json").write_text("{")
    with pytest.raises(DatasetError, match="JSON expected"):
        Dataset(path)
    (path / "manifest.json").unlink()
    with pytest.raises(DatasetError, match=r"is not a dataset: it has no manifest.json"):
        Dataset(path)
    with pytest.raises(DatasetError, match="make a dataset from them with `prepare`"):
        Dataset(tmp_path / "log")
    with pytest.raises(DatasetError, match="no such directory"):
        Dataset(tmp_path / "none")


# ---- Info


def test_info_literal(tmp_path):
    common = GOOD / "common_unused_row.csv"
    dataset = prepare(skeleton=GOOD / "skeleton.csv", common=common, out=tmp_path / "out")
    info = dataset.info()
    assert {k: v for k, v in info.items() if isinstance(v, int)} == {
        "impressions": 3,
        "clicks": 2,
        "conversions": 1,
        "conversions_without_click": 0,
        "common_rows": 3,
        "common_rows_unused": 1,
        "bytes": sum(f.stat().st_size for f in dataset.path.glob("*.arrow")),
    }
    assert info["fields"]["205"] == {"occurrences": 2, "distinct_ids": 1, "rows_without": 1}
    assert info["fields"]["127_14"] == {"occurrences": 4, "distinct_ids": 2, "rows_without": 1}
    assert info["fields"]["853"] == {"occurrences": 0, "distinct_ids": 0, "rows_without": 3}
    assert list(info["fields"]) == [f.name for f in ALI_CCP.fields]
    assert info["anomalies"] == info["rejected"] == info["promoted"] == {}
    json.dumps(info)


def test_published_totals(tmp_path):
    _, files = make_log(tmp_path / "log", seed=1, half="test")
    out = tmp_path / "out"
    published = prepare(skeleton=files[0], common=files[1], out=out).info()["published"]
    assert published["half"] == "test"
    assert published["published"] == PUBLISHED["test"]
    assert published["here"]["impressions"] == 30
    assert published["published"]["205.occurrences"] == 43_016_622
    assert published["here"].keys() == PUBLISHED["test"].keys()
    assert not published["equal"]
    (tmp_path / "log" / "synth.json").write_text("{}")
    synthetic = prepare(skeleton=files[0], common=files[1], out=tmp_path / "synthetic")
    assert "published" not in synthetic.info()
    train = PUBLISHED["train"]
    skeleton = [v for n, v in train.items() if n.endswith(".occurrences")]
    distinct = [v for n, v in train.items() if n.endswith(".distinct_ids")]
    assert (len(skeleton), sum(skeleton)) == (10, 564_708_508)
    assert (len(distinct), sum(distinct)) == (23, train["distinct_ids"])


def test_checksum_is_xxh64():
    """Values of the reference implementation for seed 0."""
    for data, digest in [
        (b"", "ef46db3751d8e999"),
        (b"a", "d24ec4f1a98c6e5b"),
        (b"abc", "44bc2cf5ad770999"),
        (b"Nobody inspects the spammish repetition", "fbcea83c8a378bf1"),
    ]:
        for cut in range(len(data) + 1):
            checksum = _native.Xxh64()
            checksum.update(data[:cut])
            checksum.update(data[cut:])
            assert checksum.hexdigest() == digest


def test_schema_and_json():
    field = Field("1", side="common", table="t", dim=4, weighted=True, multi=True)
    schema = Schema((field, Field("2")), labels=("a",), dense=3, weight="w", extra=("t",))
    assert schema_from_dict(json.loads(json.dumps(schema_to_dict(schema)))) == schema
    for bad, message in [
        ([], "an object with a list 'fields' expected"),
        ({"fields": [{"side": "common"}]}, r"fields\[0\]: an object with 'name'"),
        ({"fields": [{"name": "1", "colour": 1}]}, r"fields\[0\]: an object with 'name'"),
        ({"fields": [{"name": "1", "side": "left"}]}, "side 'common' or 'impression' expected"),
        ({"fields": [], "lables": []}, r"got \['lables'\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            schema_from_dict(bad)


# ---- Views


def test_select(dataset):
    click = dataset.impressions["click"].to_numpy()
    ids = dataset.impressions["sample_id"].to_numpy()
    clicked = dataset.select(click == 1)
    assert np.array_equal(clicked.selection, np.flatnonzero(click))
    assert np.array_equal(dataset.select(pc.field("click") == 1).selection, clicked.selection)
    assert len(clicked) == click.sum()
    assert dataset.selection is None
    back = clicked.select(np.arange(len(clicked))[::-1])
    assert np.array_equal(back.selection, clicked.selection[::-1])
    late = back.select((pc.field("sample_id") > 30) & pc.field("205").is_valid())
    has = dataset.impressions["205"].is_valid().to_numpy()
    assert np.array_equal(late.selection, np.flatnonzero((click == 1) & (ids > 30) & has)[::-1])
    assert dataset.select([3, 3, -1]).selection.tolist() == [3, 3, 59]
    assert dataset.select(pa.array([1, 2])).selection.tolist() == [1, 2]
    assert len(dataset.select([])) == 0
    assert len(dataset.select(np.zeros(60, bool))) == 0
    assert "a view of 60" in repr(clicked)
    with pytest.raises(IndexError, match=r"which\[1\] = 60 is outside the 60 impressions"):
        dataset.select([0, 60])
    with pytest.raises(ValueError, match="a mask of 60 rows expected, got 3"):
        dataset.select([True, False, True])
    with pytest.raises(ValueError, match="expected, got float64"):
        dataset.select([0.5])
    with pytest.raises(ValueError, match="one dimension expected"):
        dataset.select(np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="boolean expression expected"):
        dataset.select(pc.field("sample_id"))


def test_null_in_an_expression_is_false(dataset):
    item = dataset.impressions["205"]
    chosen = dataset.select(pc.field("205") >= 0)
    assert np.array_equal(chosen.selection, np.flatnonzero(item.is_valid().to_numpy()))


def test_labels(dataset):
    click = dataset.impressions["click"].to_numpy().astype(np.float32)
    conversion = dataset.impressions["conversion"].to_numpy().astype(np.float32)
    assert {(c, y) for c, y in zip(click, conversion, strict=True)} == {
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    }
    assert dataset.labels().dtype == np.float32
    assert np.array_equal(dataset.labels(), np.stack([click, click * conversion], 1))
    raw = np.stack([click, conversion], 1)
    assert np.array_equal(dataset.labels("raw"), raw)
    assert np.array_equal(dataset.labels("drop"), raw[(click == 1) | (conversion == 0)])
    view = dataset.select([5, 2, 2])
    assert np.array_equal(view.labels("raw"), raw[[5, 2, 2]])
    with pytest.raises(ValueError, match="kind: 'and', 'drop' or 'raw' expected, got 'or'"):
        dataset.labels("or")


def test_head_and_dump_of_a_view(tmp_path, dataset):
    slow = slow_log.stored(dataset.impressions, dataset.common_rows, dataset.schema)
    chosen = [7, 8, 9, 3, 3, 59, 0, 1, 40]
    view = dataset.select(chosen)
    for row, found in zip(chosen, view.head(4), strict=False):
        sample_id, click, conversion, key, features = slow.impressions[row]
        assert (found["sample_id"], found["click"], found["conversion"], found["key"]) == (
            sample_id,
            click,
            conversion,
            key,
        )
        expected = slow.common[key] | features
        assert {
            n: [(i, np.float32(v)) for i, v in f] for n, f in found["fields"].items()
        } == expected
    assert len(view.head(100)) == len(chosen)
    view.dump(tmp_path / "dump")
    dumped = slow_log.parse(
        *(
            (tmp_path / "dump" / f"{n}.csv").read_text()
            for n in ("sample_skeleton", "common_features")
        )
    )
    assert dumped.impressions == [slow.impressions[row] for row in chosen]
    assert dumped.common == slow.common
    assert view.info()["selected"] == len(chosen)
    dataset.select([]).dump(tmp_path / "empty")
    assert (tmp_path / "empty" / "sample_skeleton.csv").read_text() == ""


def test_pickle_reopens(dataset):
    copy = pickle.loads(pickle.dumps(dataset.select([4, 2])))
    assert copy.selection.tolist() == [4, 2]
    assert len(pickle.dumps(dataset)) < 500
    assert copy.impressions.equals(dataset.impressions)
