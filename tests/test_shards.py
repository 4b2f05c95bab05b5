"""Shards: merged, they are the dataset of the whole log; alone, they are none."""

import json
import random
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import slow_log
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from esmm_fast.cli import cli, main
from esmm_fast.data.dataset import Dataset, DatasetError
from esmm_fast.data.log_format import LogFormat
from esmm_fast.data.logs import LogError, lines_before
from esmm_fast.data.merge_shards import merge_shards
from esmm_fast.data.prepare_log import prepare
from esmm_fast.data.shards import Shard, parse_shard
from esmm_fast.schema import ALI_CCP, Field, Schema

DATA = ("impressions.arrow", "common_rows.arrow", "counts.arrow")
LINE = "{},{},0,{:016x},1,205\x02{}\x031.0\n"
COMMON = "{:016x},1,121\x02{}\x031.0\n"


def sharded(folder: Path, parts: int, name: str = "shard", **log: Any) -> list[Path]:
    """Prepares all shards of a log; returns their directories."""
    paths = [folder / f"{name}{part}of{parts}" for part in range(1, parts + 1)]
    for part, path in enumerate(paths, 1):
        prepare(out=path, shard=(part, parts), threads=2, **log)
    return paths


def assert_equal(merged: Dataset, whole: Dataset, *, bits: bool = True) -> None:
    """The same tables, counts and manifest; and the same bytes, where `bits`."""
    assert merged.impressions.equals(whole.impressions)
    assert merged.common_rows.equals(whole.common_rows)
    assert merged.counts.equals(whole.counts)
    differs = () if bits else ("files",)
    for name in {*merged.manifest, *whole.manifest}.difference(differs):
        assert merged.manifest[name] == whole.manifest[name], name
    for name in DATA if bits else ():
        assert (merged.path / name).read_bytes() == (whole.path / name).read_bytes(), name


def assert_merges(folder: Path, parts: int, rng: random.Random, **log: Any) -> Dataset:
    whole = prepare(out=folder / f"whole{parts}", threads=2, **log)
    assert isinstance(whole, Dataset)
    paths = sharded(folder, parts, **log)
    rng.shuffle(paths)
    merged = merge_shards(paths, folder / f"merged{parts}")
    assert_equal(merged, whole)
    assert merged.info(verify=True) == whole.info(verify=True)
    return merged


# ---- The same dataset


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("strange", [False, True])
def test_merged_shards_are_the_single_run(tmp_path: Path, parts: int, strange: bool) -> None:
    for seed in range(4):
        rng = random.Random(f"{parts}{strange}{seed}")
        folder = tmp_path / str(seed)
        folder.mkdir()
        text = slow_log.generate(rng, 60, 15, strange=strange)
        skeleton, common = slow_log.write(folder, *text)
        log = {"skeleton": skeleton, "common": common, "chunk_bytes": rng.choice([70, 300, 2000])}
        merged = assert_merges(folder, parts, rng, **log)
        merged.dump(folder / "dump")
        Dataset(folder / f"whole{parts}").dump(folder / "dump_of_whole")
        for name in ("sample_skeleton.csv", "common_features.csv"):
            one, other = (folder / d / name for d in ("dump", "dump_of_whole"))
            assert one.read_bytes() == other.read_bytes()
        rows = slow_log.stored(merged.impressions, merged.common_rows, merged.schema)
        assert rows == slow_log.parse(*text)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 700))
def test_any_cut_of_any_log(seed: int, parts: int, chunk_bytes: int) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        text = slow_log.generate(rng, rng.randrange(1, 30), rng.randrange(1, 8), strange=True)
        skeleton, common = slow_log.write(Path(name), *text)
        log = {"skeleton": skeleton, "common": common, "chunk_bytes": chunk_bytes}
        assert_merges(Path(name), parts, rng, **log)


def test_more_shards_than_lines_and_the_usual_chunks(tmp_path: Path) -> None:
    skeleton, common = slow_log.write(tmp_path, LINE.format(1, 1, 5, 9), COMMON.format(5, 3))
    assert_merges(tmp_path, 5, random.Random(0), skeleton=skeleton, common=common)


def test_several_files(tmp_path: Path) -> None:
    rng = random.Random(3)
    skeleton, common = slow_log.generate(rng, 40, 12)
    files = []
    for i, (text, cuts) in enumerate(((skeleton, 3), (common, 2))):
        lines = text.splitlines(keepends=True)
        of_side = [tmp_path / f"{i}{cut}.csv" for cut in range(cuts)]
        for cut, file in enumerate(of_side):
            file.write_text("\n" * cut + "".join(lines[cut::cuts]))
        files.append(of_side)
    log = {"skeleton": files[0], "common": files[1], "chunk_bytes": 256}
    for parts in (1, 2, 7):
        merged = assert_merges(tmp_path, parts, rng, **log)
    assert merged.manifest["anomalies"]["blank_lines"]["count"] == 4


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_a_log_without_common_files(tmp_path: Path, parts: int) -> None:
    rng = random.Random(parts)
    files = [tmp_path / name for name in "ab"]
    for file in files:
        lines = [LINE.format(i, i % 2, rng.randrange(9), i % 7) for i in range(50)]
        file.write_text("".join(lines))
    assert_merges(tmp_path, parts, rng, skeleton=files, chunk_bytes=300)


@pytest.mark.parametrize("key_kind", ["hex", "decimal", "text", None])
def test_a_log_with_columns_of_its_own(tmp_path: Path, key_kind: Any) -> None:
    common_fields = (Field("7", "common"),) if key_kind else ()
    own = Schema(
        (*common_fields, Field("8", multi=True)), ("view", "cart", "buy"), 1, None, ("hour",)
    )
    keyed = () if key_kind is None else ("user",)
    format = LogFormat(
        own,
        ("view", *keyed, "price", "hour", "cart", "buy"),
        dense=("price",),
        key="user",
        key_kind=key_kind or "hex",
    )
    rng = random.Random(5)
    users = {"hex": "{:016x}", "decimal": "{}", "text": "user {}", None: ""}[key_kind]
    lines, common = [], []
    for i in range(80):
        user = users.format(rng.randrange(6)) + "," if key_kind else ""
        lines.append(f"{i % 2},{user}{i}.5,{i},{i // 2 % 2},{i // 3 % 2},8\x02{i}\x031.0\n")
    common = [f"{users.format(i)},7\x02{i}\x031.0\n" for i in range(6)] if key_kind else []
    (tmp_path / "skeleton").write_text("".join(lines))
    (tmp_path / "common").write_text("".join(common))
    log: dict[str, Any] = {"skeleton": tmp_path / "skeleton", "schema": format, "chunk_bytes": 200}
    if key_kind:
        log["common"] = tmp_path / "common"
    for parts in (1, 2, 7):
        assert_merges(tmp_path, parts, rng, **log)


def spoiled(rng: random.Random, text: str, common: bool) -> str:
    """Returns a log with bad lines, missing common rows, and common rows that contradict others."""
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if not line or rng.random() < 0.8:
            continue
        kind = rng.randrange(5)
        if kind == 0:
            lines[i] = line[: rng.randrange(1, len(line))]
        elif kind == 1:
            lines[i] = line.replace("\x02", "\x03")
        elif kind == 2 and common:
            lines.append(line[:17] + "1,121\x0277\x031.0")
        elif kind == 2:
            head, _, tail = line.partition(",")
            key = f"{rng.getrandbits(64):016x}"
            lines[i] = ",".join([head, *tail.split(",")[:2], key, *tail.split(",")[3:]])
        elif kind == 3:
            lines[i] = line.replace("\x03", "\x03x", 1)
        else:
            lines[i] = ""
    if common:
        lines += [COMMON.format(255, number).rstrip("\n") for number in (1, 2)]
    return "\n".join(lines)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("strange", [False, True])
def test_skipped_lines_are_those_of_the_single_run(
    tmp_path: Path, parts: int, strange: bool
) -> None:
    seen = set()
    for seed in range(6):
        rng = random.Random(f"{parts}{strange}{seed}")
        folder = tmp_path / str(seed)
        folder.mkdir()
        skeleton, common = slow_log.generate(rng, 80, 15, strange=strange)
        files = slow_log.write(folder, spoiled(rng, skeleton, False), spoiled(rng, common, True))
        log = {"skeleton": files[0], "common": files[1], "on_error": "skip"}
        whole = prepare(out=folder / "whole", chunk_bytes=400, **log)
        paths = sharded(folder, parts, chunk_bytes=400, **log)
        merged = merge_shards(paths[::-1], folder / "merged")
        assert_equal(merged, whole)
        seen |= set(merged.manifest["rejected"])
    assert seen >= {"missing_common_row", "conflicting_common_row", "wrong_separator"}


def test_a_field_that_only_a_skipped_impression_widens_stays_narrow(tmp_path: Path) -> None:
    wide = f"9,0,0,{6:016x},3,205\x02{2**40}\x033.0\x01205\x022\x031.0\x01207\x021\x031.0\x01\r\n"
    skeleton, common = slow_log.write(
        tmp_path, LINE.format(1, 1, 5, 9) + wide + LINE.format(2, 0, 5, 9), COMMON.format(5, 3)
    )
    log = {"skeleton": skeleton, "common": common, "on_error": "skip", "chunk_bytes": 20}
    merged = assert_merges(tmp_path, 2, random.Random(0), **log)
    assert merged.impressions.schema.field("205").type == "uint32"
    assert merged.manifest["anomalies"] == {} and merged.manifest["promoted"] == {}
    assert merged.manifest["rejected"]["missing_common_row"]["first"].endswith(":2 (byte 41)")


# ---- Errors of the log


def error_of(**log: Any) -> LogError:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(LogError) as raised:
        prepare(out=Path(folder, "out"), **log)
    return raised.value


def assert_merge_raises(folder: Path, expected: LogError, parts: int, **log: Any) -> None:
    with pytest.raises(LogError) as raised:
        merge_shards(sharded(folder, parts, **log), folder / "merged")
    assert str(raised.value) == str(expected) and vars(raised.value) == vars(expected)
    assert not (folder / "merged").exists()


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_what_only_the_whole_log_shows_is_the_error_of_the_single_run(
    tmp_path: Path, parts: int
) -> None:
    lines = [LINE.format(i, 0, i % 5, i) for i in range(20)]
    rows = [COMMON.format(key, key) for key in range(5)]
    cases = {
        "missing": ([*lines, LINE.format(20, 0, 77, 1), LINE.format(21, 0, 78, 1)], rows),
        "conflicting": (lines, rows * 3 + [COMMON.format(3, 4), COMMON.format(1, 0)]),
        "none": (["\n"] * 50, rows),
    }
    for name, (skeleton, common) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        files = slow_log.write(folder, "".join(skeleton), "".join(common))
        log = {"skeleton": files[0], "common": files[1], "chunk_bytes": 60}
        assert_merge_raises(folder, error_of(**log), parts, **log)


@pytest.mark.parametrize("parts", [2, 7])
def test_a_bad_line_has_its_number_in_the_whole_file(tmp_path: Path, parts: int) -> None:
    for bad in range(0, 40, 3):
        folder = tmp_path / str(bad)
        folder.mkdir()
        lines = [LINE.format(i, 0, 1, i) for i in range(40)]
        lines[bad] = lines[bad].replace("\x02", ":")
        skeleton, common = slow_log.write(folder, "".join(lines), COMMON.format(1, 1))
        log = {"skeleton": skeleton, "common": common, "chunk_bytes": 100}
        with pytest.raises(LogError) as raised:
            sharded(folder, parts, **log)
        assert vars(raised.value) == vars(error_of(**log)) and raised.value.line == bad + 1


def test_lines_before(tmp_path: Path) -> None:
    text = b"ab\n\ncde\nf"
    (tmp_path / "file").write_bytes(text)
    for begin in range(len(text) - 1):
        begins = [0, *(i + 1 for i, byte in enumerate(text) if byte == 10)]
        expected = sum(at < begin for at in begins)
        assert lines_before(str(tmp_path / "file"), begin) == expected, begin


# ---- Which shards


@pytest.fixture
def log(tmp_path: Path) -> dict[str, Any]:
    lines = "".join(LINE.format(i, i % 2, i % 3, i) for i in range(30))
    skeleton, common = slow_log.write(
        tmp_path, lines, "".join(COMMON.format(key, key) for key in range(3))
    )
    return {"skeleton": skeleton, "common": common, "chunk_bytes": 100}


def refused(shards: list[Path], out: Path, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        merge_shards(shards, out)
    assert not out.exists()


def test_shards_that_are_not_all_of_one_log(tmp_path: Path, log: dict[str, Any]) -> None:
    out = tmp_path / "merged"
    three = sharded(tmp_path, 3, **log)
    two = sharded(tmp_path, 2, **log)
    refused([], out, "all parts of a log expected, got none")
    refused(three[:1] + three[2:], out, "shard 2/3 is missing; expected all 3 parts, got 2: ")
    refused([*three, three[1]], out, "is shard 2/3, and so is .*shard2of3; expected each part once")
    refused([three[0], two[1]], out, "shard2of2 is shard 2/2; expected one of 3, as .*is 1/3")
    skipping = sharded(tmp_path, 3, "skip", on_error="skip", **log)
    refused([*three[:2], skipping[2]], out, "skip3of3 was made with another on_error than .*1of3")
    cut = sharded(tmp_path, 3, "cut", **{**log, "chunk_bytes": 90})
    refused([cut[0], *three[1:]], out, "shard2of3 was made with other chunk_bytes than .*cut1of3")
    fields = tuple(Field("999") if f.name == "210" else f for f in ALI_CCP.fields)
    named = sharded(tmp_path, 3, "named", schema=Schema(fields), **log)
    refused([*three[:2], named[2]], out, "named3of3 was made with another schema than")
    no_common = sharded(tmp_path, 3, "alone", **{**log, "common": ()})
    refused([*three[:2], no_common[2]], out, "expected 1 files of the common side, got 0")
    log["skeleton"].write_text(log["skeleton"].read_text().replace("205\x021", "205\x023"))
    other = sharded(tmp_path, 3, "other", **log)
    refused([*three[:2], other[2]], out, "other3of3 is a shard of another log than .*1of3: its ")


def test_what_is_no_shard_or_is_damaged(tmp_path: Path, log: dict[str, Any]) -> None:
    out = tmp_path / "merged"
    paths = sharded(tmp_path, 2, **log)
    prepare(out=tmp_path / "whole", **log)
    refused([tmp_path / "whole"], out, "is a whole dataset; expected a shard")
    refused([tmp_path], out, "is not a dataset")
    data = bytearray((paths[1] / "impressions.arrow").read_bytes())
    data[len(data) // 2] ^= 1
    (paths[1] / "impressions.arrow").write_bytes(data)
    refused(paths, out, "shard2of2/impressions.arrow is damaged: expected checksum")
    (paths[1] / "keys.arrow").unlink()
    refused(paths, out, "shard2of2 is damaged: keys.arrow is missing")
    manifest = paths[0] / "manifest.json"
    stored = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(stored | {"schema": {"fields": [{}]}}))
    refused(paths, out, r"shard1of2/manifest.json is damaged: schema: fields\[0\]: an object with")
    manifest.write_text(json.dumps(stored | {"shard": {"part": 1}}))
    refused(paths, out, r"shard1of2/manifest.json is damaged: shard: part and parts expected, got")
    del stored["inputs"]
    manifest.write_text(json.dumps(stored))
    refused(paths, out, r"shard1of2/manifest.json is damaged: it lacks \['inputs'\]")
    merge_shards(sharded(tmp_path, 2, "again", **log), out)
    with pytest.raises(FileExistsError, match="merged exists"):
        merge_shards(sharded(tmp_path, 2, "third", **log), out)


def test_a_shard_alone_is_no_dataset(tmp_path: Path, log: dict[str, Any]) -> None:
    (shard,) = sharded(tmp_path, 1, **log)
    message = (
        r"shard1of1 is shard 1/1 of a dataset, which alone cannot be read or trained on; "
        r"expected a dataset: join all 1 with `esmm-fast merge SHARD... --out DATASET`"
    )
    with pytest.raises(DatasetError, match=message):
        Dataset(shard)
    run = tmp_path / "run"
    for command in (
        ["head", str(shard)],
        ["dump", str(shard), "--out", str(run)],
        ["train", "--train", str(shard), "--out", str(run)],
    ):
        result = CliRunner().invoke(cli, command)
        assert re.search(message, str(result.exception)), command


def test_only_plain_files_have_shards(tmp_path: Path, log: dict[str, Any]) -> None:
    import gzip
    import tarfile

    packed = tmp_path / "skeleton.csv.gz"
    packed.write_bytes(gzip.compress(log["skeleton"].read_bytes()))
    with tarfile.open(tmp_path / "log.tar", "w") as archive:
        archive.add(log["skeleton"])
    for file, kind in ((packed, "compressed"), (tmp_path / "log.tar", "an archive")):
        with pytest.raises(ValueError, match=f"shard: {file} is {kind}; expected plain files"):
            prepare(out=tmp_path / "out", shard=(1, 2), **{**log, "skeleton": file})
    with pytest.raises(ValueError, match="shard: - is standard input; expected plain files"):
        prepare(out=tmp_path / "out", shard=(1, 2), **{**log, "skeleton": "-"})
    for part in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match=r"shard: expected \(i, n\) with i from 1 to n, got"):
            prepare(out=tmp_path / "out", shard=part, **log)
    with pytest.raises(ValueError, match="shard: expected without check and rejects"):
        prepare(shard=(1, 2), check=True, **log)
    with pytest.raises(ValueError, match="text files of a log expected with it, got a table"):
        prepare(table=packed, out=tmp_path / "out", shard=(1, 2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "-1/2", "1/2/3", "a/b", ""])
def test_a_share_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="expected i/N with i from 1 to N"):
        parse_shard(text)


# ---- Commands


def test_commands(tmp_path: Path, log: dict[str, Any], capsys: Any) -> None:
    paths = [str(tmp_path / name) for name in "ab"]
    source = ["--skeleton", str(log["skeleton"]), "--common", str(log["common"])]
    runner = CliRunner()
    for i, path in enumerate(paths, 1):
        result = runner.invoke(cli, ["prepare", *source, "--shard", f"{i}/2", "--out", path])
        assert result.exit_code == 0 and result.output.splitlines()[-1] == path
    facts = json.loads(runner.invoke(cli, ["info", paths[1], "--json", "--verify"]).output)
    assert facts["shard"] == "2/2" and facts["verified"]
    assert sum(Shard(path).info()["impressions"] for path in paths) == 30
    assert "shard" in runner.invoke(cli, ["info", paths[0]]).output
    merged = str(tmp_path / "merged")
    result = runner.invoke(cli, ["merge", *paths[::-1], "--out", merged])
    assert result.exit_code == 0 and result.output.splitlines()[-1] == merged
    assert len(Dataset(merged)) == 30
    result = runner.invoke(cli, ["prepare", *source, "--shard", "3/2", "--out", merged])
    assert result.exit_code == 2 and "expected i/N" in result.output
    with pytest.raises(SystemExit) as ended:
        main(["merge", paths[0], "--out", str(tmp_path / "half")])
    assert ended.value.code == 1
    assert "shard 2/2 is missing" in capsys.readouterr().err
