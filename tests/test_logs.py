"""The parser: against a slow Python parser, every error with its place, anomalies, skipping."""

import gzip
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import slow_log
from hypothesis import given, settings
from hypothesis import strategies as st

from esmm_fast.data.logs import LogError, LogReader, read_log
from esmm_fast.data.record_batches import Layout, conform
from esmm_fast.schema import ALI_CCP, Field, Schema

GOOD = Path(__file__).parent / "logs" / "good"
BAD = Path(__file__).parent / "logs" / "bad"
KEY = "bacff91692951881"
WAYS = [(1, 1 << 20), (2, 100), (7, 37), (2, 1000)]  # threads, chunk_bytes


def one(values: str, key: str = KEY) -> str:
    """Returns a skeleton line with these features, e.g. "205:7:1.0 508:3:0.5"."""
    features = [v.replace(":", "\x02", 1).replace(":", "\x03", 1) for v in values.split()]
    return f"1,0,0,{key},{len(features)}," + "\x01".join(features) + "\n"


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("latin-1"))
    return path


def read(folder: Path, text: str, schema: Schema = ALI_CCP, **options):
    return read_log(write(folder / "skeleton.csv", text), None, schema, **options)


# ---- Columns


def test_literal(tmp_path):
    common = write(
        tmp_path / "common.csv", f"{KEY},2,101\x0231319\x031.0\x01127_14\x023716224\x031.94591\n"
    )
    skeleton = write(
        tmp_path / "skeleton.csv",
        f"1,1,0,{KEY},4,210\x029052218\x031.0\x01508\x029353818\x030.69315\x01210\x029064553\x031.0\x01301\x029351665\x031.0\n"
        f"2,0,1,{KEY},1,210\x025\x031.0\n",
    )
    log = read_log(skeleton, common)
    assert log.schema == ALI_CCP
    columns = [
        "sample_id",
        "click",
        "conversion",
        "common_row",
        "205",
        "210",
        "508",
        "508_value",
        "301",
    ]
    assert log.impressions.select(columns).to_pydict() == {
        "sample_id": [1, 2],
        "click": [1, 0],
        "conversion": [0, 1],
        "common_row": [0, 0],
        "205": [None, None],
        "210": [[9052218, 9064553], [5]],
        "508": [9353818, None],
        "508_value": [pytest.approx(0.69315), None],
        "301": [9351665, None],
    }
    columns = ["key", "101", "127_14", "127_14_value", "109_14", "121"]
    assert log.common_rows.select(columns).to_pydict() == {
        "key": [int(KEY, 16)],
        "101": [31319],
        "127_14": [[3716224]],
        "127_14_value": [[pytest.approx(1.94591)]],
        "109_14": [[]],
        "121": [None],
    }
    assert log.impressions.schema.field("210").type == pa.list_(pa.uint32())
    assert log.impressions.schema.field("508_value").type == pa.float32()


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 2**32), strange=st.booleans(), way=st.sampled_from(WAYS))
def test_against_slow_parser(tmp_path_factory, seed, strange, way):
    rng = random.Random(seed)
    texts = slow_log.generate(rng, rng.randrange(1, 25), rng.randrange(1, 6), strange=strange)
    files = slow_log.write(tmp_path_factory.mktemp("log"), *texts)
    slow = slow_log.parse(*texts)
    log = read_log(*files, threads=way[0], chunk_bytes=way[1])
    fast = slow_log.stored(log.impressions, log.common_rows, log.schema)
    assert fast.impressions == slow.impressions
    assert list(fast.common.items()) == list(slow.common.items())


def test_every_cut_position(tmp_path):
    rng = random.Random(5)
    texts = slow_log.generate(rng, 4, 2, strange=True)
    files = slow_log.write(tmp_path, *texts)
    slow = slow_log.parse(*texts)
    for chunk_bytes in range(1, max(map(len, texts)) + 2, 3):
        log = read_log(*files, threads=1 + chunk_bytes % 3, chunk_bytes=chunk_bytes)
        fast = slow_log.stored(log.impressions, log.common_rows, log.schema)
        assert (fast.impressions, fast.common) == (slow.impressions, slow.common), chunk_bytes


def test_buffers_are_reused_only_when_they_are_free(tmp_path):
    """Batches that are kept while many more are read keep their contents."""
    rng = random.Random(6)
    texts = slow_log.generate(rng, 300, 3)
    files = slow_log.write(tmp_path, *texts)
    reader = LogReader(*files, ALI_CCP, threads=2, chunk_bytes=500)
    batches = [[batch for batch, _ in reader.read(side)] for side in reader.sides]
    assert len(batches[1]) > 50
    fast = slow_log.stored(
        pa.Table.from_batches(batches[1]), pa.Table.from_batches(batches[0]), ALI_CCP
    )
    assert fast.impressions == slow_log.parse(*texts).impressions


@pytest.mark.parametrize("file", sorted(GOOD.glob("*_*.csv")), ids=lambda p: p.stem)
def test_good_corpus(file):
    if file.name.startswith("common"):
        skeleton, common = GOOD / "skeleton.csv", file
    else:
        skeleton, common = file, GOOD / "common.csv"
    slow = slow_log.parse(*(f.read_bytes().decode("latin-1") for f in (skeleton, common)))
    for threads, chunk_bytes in WAYS:
        log = read_log(skeleton, common, threads=threads, chunk_bytes=chunk_bytes)
        fast = slow_log.stored(log.impressions, log.common_rows, log.schema)
        assert (fast.impressions, fast.common) == (slow.impressions, slow.common)


# ---- Numbers


def test_values_round_correctly(tmp_path):
    rng = random.Random(0)
    texts = [f"{i // 100000}.{i % 100000:05d}" for i in range(0, 820000, 41)]
    texts += [f"{i / 10**d:.{d}f}" for d in (1, 2, 3, 4, 6) for i in range(0, 10**6, 7919)]
    texts += [
        "0.0",
        "0",
        "7",
        "00.5",
        "16777217",
        "16777217.0",
        "340282346638528859811704183484516925440.0",
        *(f"0.{'0' * zeros}{digits}" for zeros in range(36, 50) for digits in ("1", "7" * 25)),
        f"0.{'0' * 37}11754943",
        f"0.{'0' * 44}1401298464",
        f"0.{'0' * 45}7006492321",  # below half of the least above 0
        f"0.{'0' * 45}70064923217",  # above
        f"000.{'0' * 60}1",
        f"0.{'0' * 400}1",
    ]
    # Exactly half-way between two float32, and a hair above and below.
    for _ in range(200):
        low = np.float32(rng.uniform(0.1, 100))
        half = (Fraction(float(low)) + Fraction(float(np.nextafter(low, np.float32(1e9))))) / 2
        exact = f"{half.numerator * 10**40 // half.denominator:041d}"
        exact = f"{exact[:-40]}.{exact[-40:]}"
        texts += [exact, f"{exact}1", str(exact[:-1]).rstrip("0")[:-1] or "0"]
    log = read(tmp_path, one(" ".join(f"853:{i}:{t}" for i, t in enumerate(texts))))
    values = log.impressions["853_value"].combine_chunks().flatten().to_numpy()
    for text, value in zip(texts, values, strict=True):
        if len(text) < 15 or value < 1e-37:  # there others are rounded twice, through float64
            assert value == slow_log.float32(text), text
        error = abs(Fraction(text) - Fraction(float(value)))
        for bound in (np.finfo(np.float32).max, np.float32(-1)):
            other = np.nextafter(value, bound)
            assert error <= abs(Fraction(text) - Fraction(float(other))), text


def test_ids_of_every_length(tmp_path):
    ids = [10**d + e for d in range(20) for e in (-1, 0, 1) if 10**d + e < 2**64] + [2**32 - 1]
    log = read(tmp_path, one(" ".join(f"210:{i}:1.0" for i in ids)))
    assert log.impressions["210"].to_pylist() == [ids]
    assert log.impressions.schema.field("210").type == pa.list_(pa.uint64())


def test_names_of_every_length(tmp_path):
    names = ["a" * n for n in range(1, 20)] + ["b" * 7, "b" * 8, "ab", "109_14", "109"]
    schema = Schema(tuple(Field(n) for n in names))
    log = read(tmp_path, one(" ".join(f"{n}:{i}:1.0" for i, n in enumerate(names))), schema)
    assert log.schema == schema
    assert [log.impressions[n].to_pylist() for n in names] == [[i] for i in range(len(names))]
    with pytest.raises(LogError, match=r"unknown field; .*got 'aaaaaaaaaaaaaaaaaaaa'"):
        read(tmp_path, one("a:1:1.0 " + "a" * 20 + ":1:1.0"), schema)


# ---- What a schema does not say


def test_promotion(tmp_path):
    """A field that needs a list, a value, or 64 bits gets them; what came before is widened."""
    schema = Schema((Field("1"), Field("2"), Field("3", weighted=True), Field("4", multi=True)))
    text = one("1:1:1.0 2:2:1.0 3:3:0.5 4:4:1.0") + one("4:9:1.0")
    late = one("1:5:1.0 1:6:1.0 2:7:2.5 3:8:0.5 3:9:1.5 4:10:0.25 4:4294967296:1.0")
    for threads, chunk_bytes in WAYS:
        log = read(tmp_path, text * 4 + late, schema, threads=threads, chunk_bytes=chunk_bytes)
        assert log.schema == Schema(
            (
                Field("1", multi=True),
                Field("2", weighted=True),
                Field("3", weighted=True, multi=True),
                Field("4", multi=True, weighted=True),
            )
        )
        assert log.impressions.drop_columns(
            ["sample_id", "click", "conversion", "common_row"]
        ).to_pydict() == {
            "1": [[1], []] * 4 + [[5, 6]],
            "2": [2, None] * 4 + [7],
            "2_value": [1, None] * 4 + [2.5],
            "3": [[3], []] * 4 + [[8, 9]],
            "3_value": [[0.5], []] * 4 + [[0.5, 1.5]],
            "4": [[4], [9]] * 4 + [[10, 2**32]],
            "4_value": [[1], [1]] * 4 + [[0.25, 1]],
        }
        types = [f.type for f in log.impressions.schema if not f.name.endswith("_value")][4:]
        assert types == [
            pa.list_(pa.uint64()),
            pa.uint64(),
            pa.list_(pa.uint64()),
            pa.list_(pa.uint64()),
        ]


def test_widened_blocks_have_the_bytes_of_wide_ones(tmp_path):
    """Which blocks are read before a promotion depends on the threads; the result must not."""
    narrow = (Field("1"), Field("2"), Field("3", weighted=True), Field("4", multi=True))
    wide = (
        Field("1", weighted=True),
        Field("2", weighted=True, multi=True),
        Field("3", weighted=True, multi=True),
        Field("4", weighted=True, multi=True),
    )
    lines = ["1:1:1.0 3:3:0.5", "2:2:1.0 4:4:1.0 4:5:1.0", "", "1:7:1.0"] * 5
    path = write(tmp_path / "skeleton.csv", "".join(map(one, lines)))
    written = []
    for fields in (narrow, wide):
        reader = LogReader(path, None, Schema(fields), threads=1)
        ((batch, layout),) = reader.read("impression")
        assert layout == Layout.of(fields)
        for ids_wide in (False, True):
            target = Layout(Layout.of(wide).multi, Layout.of(wide).weighted, ids_wide)
            table = conform(batch, "impression", fields, target)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_batch(table)
            written.append((ids_wide, sink.getvalue().to_pybytes()))
    assert len(set(written)) == 2


def test_a_bad_line_promotes_nothing(tmp_path):
    schema = Schema((Field("1"),))
    text = one("1:1:1.0") + one("1:4294967296:2.0 1:7:3.0")[:-2] + "x\n"
    log = read(tmp_path, text, schema, on_error="skip")
    assert log.schema == schema
    assert log.impressions.schema.field("1").type == pa.uint32()
    assert log.report["impression"].rejected["bad_value"]["count"] == 1


# ---- Without common files, several files, gzip


def test_without_common_files(tmp_path):
    keys = ["00000000000000ff", "0000000000000000", "ffffffffffffffff"]
    text = "".join(one("205:1:1.0", key=keys[i]) for i in (0, 0, 1, 0, 2, 1))
    for threads, chunk_bytes in WAYS:
        log = read(tmp_path, text, threads=threads, chunk_bytes=chunk_bytes)
        assert log.impressions["common_row"].to_pylist() == [0, 0, 1, 0, 2, 1]
        assert log.common_rows["key"].to_pylist() == [255, 0, 2**64 - 1]
        assert log.common_rows["109_14"].to_pylist() == [[], [], []]
        assert log.common_rows["101"].to_pylist() == [None] * 3


@pytest.mark.parametrize("compressed", [False, True])
def test_several_files(tmp_path, compressed):
    rng = random.Random(8)
    texts = slow_log.generate(rng, 60, 4)
    slow = slow_log.parse(*texts)
    parts = []
    for text, count in zip(texts, (3, 2), strict=True):
        lines = text.splitlines(keepends=True)
        step = -(-len(lines) // count)
        for i in range(count):
            data = "".join(lines[i * step : (i + 1) * step]).encode()
            path = tmp_path / f"part{len(parts)}"
            path.write_bytes(gzip.compress(data) if compressed else data)
            parts.append(path)
    for threads, chunk_bytes in WAYS:
        log = read_log(parts[:3], parts[3:], threads=threads, chunk_bytes=chunk_bytes)
        fast = slow_log.stored(log.impressions, log.common_rows, log.schema)
        assert (fast.impressions, fast.common) == (slow.impressions, slow.common)
    write(parts[1], parts[1].read_text() + "x\n" if not compressed else "x\n")
    line = 21 if not compressed else 1
    with pytest.raises(LogError, match=rf"part1:{line} \(byte \d+\): sample_id"):
        read_log(parts[:3], parts[3:])


def test_named_pipe(tmp_path):
    """What is not a regular file is read in order."""
    code = (
        "import sys; from esmm_fast.data.logs import read_log;"
        "print(read_log('/dev/stdin', chunk_bytes=50).impressions.num_rows)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=one("205:1:1.0") * 9, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("9\n", 0), done.stderr


@pytest.mark.parametrize("chunk_bytes", [100, 1 << 20])
@pytest.mark.parametrize("threads", [1, 3])
def test_broken_gzip(tmp_path, chunk_bytes, threads):
    rng = random.Random(3)
    data = one(" ".join(f"210:{rng.getrandbits(30)}:1.0" for _ in range(30))).encode() * 200
    packed = gzip.compress(data)
    path = tmp_path / "skeleton.csv.gz"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(
        LogError, match=r"csv.gz:\d+ \(byte \d+\): the stream cannot be read; .*EOF"
    ):
        read_log(path, threads=threads, chunk_bytes=chunk_bytes)
    damaged = bytearray(packed)
    damaged[-6] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(LogError, match=r"the stream cannot be read; .*CRC"):
        read_log(path, threads=threads, chunk_bytes=chunk_bytes)


# ---- Errors


def bad_corpus():
    messages = (BAD / "messages.txt").read_text().splitlines()
    expected = {line.split(" | ", 1)[1].split(":")[0]: line.split(" | ", 1) for line in messages}
    assert sorted(expected) == sorted(f.name for f in BAD.glob("*.csv"))
    return [pytest.param(name, *line, id=name[:-4]) for name, line in sorted(expected.items())]


@pytest.mark.parametrize(("name", "reason", "message"), bad_corpus())
def test_bad_corpus(name, reason, message):
    common_is_bad = name.startswith("common")
    skeleton = GOOD / "skeleton.csv" if common_is_bad else BAD / name
    common = BAD / name if common_is_bad else GOOD / "common.csv"
    for threads, chunk_bytes in [(1, 1 << 20), (2, 1), (7, 13), (2, 120)]:
        with pytest.raises(LogError) as caught:
            read_log(skeleton, common, threads=threads, chunk_bytes=chunk_bytes)
        assert str(caught.value).replace(f"{BAD}/", "") == message
        assert caught.value.reason == reason
        assert f":{caught.value.line} (byte {caught.value.byte}): " in message


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_first_error_is_the_same_for_all_threads(tmp_path_factory, data):
    """Random bytes of a log are overwritten: one outcome for all threads and chunk sizes."""
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    texts = [bytearray(t.encode()) for t in slow_log.generate(rng, 12, 3)]
    for _ in range(rng.randrange(1, 4)):
        text = rng.choice(texts)
        text[rng.randrange(len(text))] = rng.choice(b"\x00\x01\x02\x03\n\r,.-e019x\xff")
    folder = tmp_path_factory.mktemp("log")
    files = slow_log.write(folder, *(t.decode("latin-1") for t in texts))
    outcomes = set()
    for threads, chunk_bytes in WAYS:
        try:
            log = read_log(*files, threads=threads, chunk_bytes=chunk_bytes)
            fast = slow_log.stored(log.impressions, log.common_rows, log.schema)
            outcomes.add(repr((fast.impressions, fast.common)))
        except LogError as error:
            text = texts[files.index(Path(error.file))]
            before = bytes(text[: error.byte])
            assert before.count(b"\n") == error.line - 1
            outcomes.add(str(error))
    assert len(outcomes) == 1


def test_long_lines(tmp_path):
    """A line longer than many chunks, good or bad at its end."""
    text = one("205:1:1.0") + one(" ".join(f"210:{i}:1.0" for i in range(20000))) + one("205:2:1.0")
    log = read(tmp_path, text, threads=3, chunk_bytes=1000)
    assert [len(x) for x in log.impressions["210"].to_pylist()] == [0, 20000, 0]
    bad = text.replace("19999\x031.0", "19999\x031.x")
    with pytest.raises(LogError, match=rf":2 \(byte {bad.index('x', 100)}\): value is not"):
        read(tmp_path, bad, threads=3, chunk_bytes=1000)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file"):
        read_log(tmp_path / "none.csv")
    with pytest.raises(IsADirectoryError, match="expected a log file for common"):
        read_log(GOOD / "skeleton.csv", tmp_path)
    with pytest.raises(ValueError, match=r"a\.tar\.gz .*: the archive cannot be read; .*empty"):
        read_log(write(tmp_path / "a.tar.gz", ""))
    with pytest.raises(ValueError, match="at least one file"):
        read_log([])


def test_wrong_arguments():
    for options, message in [
        ({"threads": 0}, "threads: at least 1 expected, got 0"),
        ({"chunk_bytes": 0}, "chunk_bytes: 1 to 67108864 expected, got 0"),
        ({"on_error": "ignore"}, "on_error: 'stop' or 'skip' expected"),
        ({"schema": Schema((Field("click"),))}, "two columns would be named 'click'"),
        (
            {"schema": Schema((Field("1"), Field("1_value")))},
            "two columns would be named '1_value'",
        ),
        ({"schema": Schema((Field("a\x02"),))}, r"names without separators expected, got 'a\\x02'"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_log(GOOD / "skeleton.csv", **options)


def test_a_file_that_changes(tmp_path):
    path = write(tmp_path / "skeleton.csv", one("205:1:1.0") * 1000)
    reader = LogReader(path, None, ALI_CCP, threads=1, chunk_bytes=64)
    batches = reader.read("impression")
    next(batches)
    write(path, one("205:1:1.0") * 10)
    with pytest.raises(
        (LogError, RuntimeError), match=r"(became shorter|changed) while it was read"
    ):
        list(batches)


# ---- Anomalies and skipping


def test_anomalies(tmp_path):
    common = write(
        tmp_path / "common.csv",
        f"\n{KEY},1,101\x021\x031.0\n{KEY},1,101\x021\x031.00\n\r\n{'0' * 16},0,\r\n",
    )
    skeleton = write(
        tmp_path / "skeleton.csv",
        f"1,0,1,{KEY},1,205\x021\x031.0\r\n\n2,0,0,{KEY},1,205\x021\x031.0\x01\n3,0,0,{KEY},0,\n4,1,1,{KEY},0,",
    )
    for threads, chunk_bytes in [(1, 1 << 20), (3, 1), (2, 60)]:
        log = read_log(skeleton, common, threads=threads, chunk_bytes=chunk_bytes)
        found = {
            side: {name: (a["count"], a["line"], a["byte"]) for name, a in report.anomalies.items()}
            for side, report in log.report.items()
        }
        assert found == {
            "common": {
                "blank_lines": (2, 1, 0),
                "crlf": (2, 4, 60),
                "duplicate_common_rows": (1, 3, 30),
                "empty_lists": (1, 5, 81),
            },
            "impression": {
                "crlf": (1, 1, 34),
                "blank_lines": (1, 2, 36),
                "trailing_separators": (1, 3, 71),
                "no_final_newline": (1, 5, skeleton.stat().st_size),
                "empty_lists": (2, 4, 98),
                "conversions_without_click": (1, 1, 0),
            },
        }
        assert log.common_rows.num_rows == 2
        report = log.report["impression"]
        assert (report.rows, report.lines, report.clicks, report.conversions) == (4, 5, 1, 1)
        assert report.common_rows_used == 1
        assert report.rows_without["205"] == 2
        assert [x.tolist() for x in log.report["common"].occurrences["101"]] == [[1], [1]]


@pytest.mark.parametrize(("threads", "chunk_bytes"), [(1, 1 << 20), (2, 1), (7, 90)])
def test_skip(tmp_path, threads, chunk_bytes):
    other, gone = "0123456789abcdef", "f" * 16
    common_lines = [
        f"{KEY},1,101\x021\x031.0\n",
        f"{gone},1,101\x021\x03nan\n",  # bad: its impressions lose their common row
        f"{other},1,101\x022\x031.0\n",
        f"{KEY},1,101\x023\x031.0\n",  # bad: conflicts
        f"{other},1,101\x022\x031.0\n",
    ]
    lines = [
        one("205:1:1.0"),
        one("205:x:1.0"),  # bad
        one("205:2:1.0", key=gone),  # bad
        one("205:3:1.0", key=other),
        "2,0\n",  # bad
        one("205:4:1.0", key=gone),  # bad
        one("205:5:1.0"),
    ]
    rejects = []
    reader = LogReader(
        write(tmp_path / "skeleton.csv", "".join(lines)),
        write(tmp_path / "common.csv", "".join(common_lines)),
        ALI_CCP,
        threads=threads,
        chunk_bytes=chunk_bytes,
        on_error="skip",
        rejects=rejects.append,
    )
    rows = {
        side: [row for batch, _ in reader.read(side) for row in batch.to_pylist()]
        for side in reader.sides
    }
    assert [row["101"] for row in rows["common"]] == [1, 2]
    assert [(row["205"], row["common_row"]) for row in rows["impression"]] == [
        (1, 0),
        (3, 1),
        (5, 0),
    ]
    bad = [common_lines[1], common_lines[3], lines[1], lines[2], lines[4], lines[5]]
    assert b"".join(rejects).decode("latin-1") == "".join(bad)
    counts = {
        side: {reason: (r["count"], r["line"]) for reason, r in report.rejected.items()}
        for side, report in reader.reports.items()
    }
    assert counts == {
        "common": {"bad_value": (1, 2), "conflicting_common_row": (1, 4)},
        "impression": {
            "bad_feature_id": (1, 2),
            "missing_common_row": (2, 3),
            "truncated_line": (1, 5),
        },
    }
    assert "got 'nan'" in reader.reports["common"].rejected["bad_value"]["message"]
    assert [x.tolist() for x in reader.reports["common"].occurrences["101"]] == [[1, 2], [1, 1]]
    assert [x.tolist() for x in reader.reports["impression"].occurrences["205"]] == [
        [1, 3, 5],
        [1, 1, 1],
    ]
    assert reader.reports["common"].rows_without["101"] == 0


def test_skip_everything(tmp_path):
    with pytest.raises(
        LogError, match=r"every line was skipped; .*2 x bad_label, first .*:1 \(byte 2\)"
    ):
        read(tmp_path, "1,x\n1,x\n", on_error="skip")


# ---- Counts


def test_counts_of_scattered_ids(tmp_path):
    """Ids far apart leave the counting window; they are counted all the same."""
    rng = random.Random(4)
    ids = [rng.getrandbits(rng.choice([3, 12, 20, 40, 64])) for _ in range(3000)]
    ids += [*range(5_000_000, 4_900_000, -50), 2**64 - 1, 2**64 - 2, 0]
    text = "".join(
        one(" ".join(f"210:{i}:1.0" for i in ids[k : k + 50])) for k in range(0, len(ids), 50)
    )
    expected = np.unique(np.array(ids, np.uint64), return_counts=True)
    for threads in (1, 3):
        log = read(tmp_path, text * 3, threads=threads, chunk_bytes=3000)
        found = log.report["impression"].occurrences["210"]
        assert np.array_equal(found[0], expected[0])
        assert np.array_equal(found[1], expected[1] * 3)
