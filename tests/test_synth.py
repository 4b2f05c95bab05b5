"""Synthetic logs: bytes, grammar, published means, labels and truth, anomalies, errors."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from esmm_fast import _native
from esmm_fast.data import synth as synth_module
from esmm_fast.data.synth import synth
from esmm_fast.schema import ALI_CCP

COMMON = {f.name for f in ALI_CCP.common}
IMPRESSION = {f.name for f in ALI_CCP.impression}
WEIGHTED = {f.name for f in ALI_CCP.fields if f.weighted}
LONGEST = {"109_14": 1001, "110_14": 1001, "127_14": 1001, "150_14": 335, "210": 38, "853": 25}

# Ids seen in rows of the public files: each must lie in its field's block.
SEEN = {
    "101": (31319, 412797),
    "109_14": (449089, 451423),
    "110_14": (788270, 2826366),
    "121": (3438658, 3438754),
    "122": (3438755, 3438767),
    "124": (3438768, 3438769),
    "125": (3438770, 3438776),
    "126": (3438777, 3438779),
    "127": (3438780, 3438782),
    "127_14": (3492701, 3858194),
    "128": (3864885, 3864886),
    "129": (3864887, 3864890),
    "205": (4186222, 7702673),
    "206": (8314904, 8317829),
    "207": (8702354, 8987328),
    "210": (9020410, 9114481),
    "216": (9150651, 9345479),
    "301": (9351665, 9351667),
    "508": (9353818, 9356012),
    "509": (9511769, 9686171),
    "702": (9867762, 9867762),
    "853": (10091378, 10091378),
}

# Published for train: share of impressions with the field, occurrences per impression.
PRESENCE = {"101": 0.997764, "109_14": 0.990542, "110_14": 0.990531, "127_14": 0.989864}
PRESENCE |= {"150_14": 0.997561, "121": 0.870193, "126": 0.415844, "129": 0.636951}
PRESENCE |= {"205": 1, "206": 1, "207": 1, "210": 0.999898, "216": 0.711411, "301": 1}
PRESENCE |= {"508": 0.696455, "509": 0.22123, "702": 0.223639, "853": 0.410443}
MEAN_LENGTH = {"210": 6.0979, "853": 1.3995}
MEAN_LENGTH |= {"109_14": 69.0186, "110_14": 249.9653, "127_14": 153.633, "150_14": 135.8976}

FEATURE = r"[0-9]+(?:_14)?\x02[0-9]+\x03[0-9]+\.[0-9]{1,5}"
LIST = rf"({FEATURE}(?:\x01{FEATURE})*)\n"
SKELETON = re.compile(rf"([0-9]+),([01]),([01]),([0-9a-f]{{16}}),([0-9]+),{LIST}")
COMMON_LINE = re.compile(rf"([0-9a-f]{{16}}),([0-9]+),{LIST}")


@dataclass
class Row:
    """A parsed line; features in the order of the line."""

    key: str
    features: list[tuple[str, int, str]]
    sample_id: int = 0
    click: int = 0
    conversion: int = 0
    bags: dict[str, list[tuple[int, str]]] = field(default_factory=dict)


def parse(path: Path) -> list[Row]:
    """A slow parser that shares nothing with the package."""
    rows = []
    with open(path, newline="") as file:
        for line in file.read().split("\n")[:-1]:
            if path.name.startswith("sample"):
                match = SKELETON.fullmatch(line + "\n")
                assert match, line
                sample_id, click, conversion, key, count, text = match.groups()
                row = Row(key, [], int(sample_id), int(click), int(conversion))
            else:
                match = COMMON_LINE.fullmatch(line + "\n")
                assert match, line
                key, count, text = match.groups()
                row = Row(key, [])
            for feature in text.split("\x01"):
                name, rest = feature.split("\x02")
                feature_id, value = rest.split("\x03")
                row.features.append((name, int(feature_id), value))
                row.bags.setdefault(name, []).append((int(feature_id), value))
            assert len(row.features) == int(count)
            rows.append(row)
    return rows


def digest(folder: Path) -> dict[str, str]:
    logs = sorted(folder.glob("*.csv"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in logs}


@dataclass
class Log:
    folder: Path
    made: dict[str, Any]

    def skeleton(self, part: str) -> list[Row]:
        return parse(self.folder / f"sample_skeleton_{part}.csv")

    def common(self, part: str) -> list[Row]:
        return parse(self.folder / f"common_features_{part}.csv")

    def truth(self, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        table = pq.read_table(self.folder / f"truth_{part}.parquet")
        assert table.schema == synth_module._TRUTH
        sample_id, pctr, pcvr = (table.column(name).to_numpy() for name in table.column_names)
        return sample_id, pctr.astype(np.float64), pcvr.astype(np.float64)

    def labels(self, part: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """click, conversion and common_feature_index of every impression."""
        with open(self.folder / f"sample_skeleton_{part}.csv", "rb") as file:
            heads = [line.split(b",", 4)[1:4] for line in file]
        click, conversion, key = zip(*heads, strict=True)
        return np.array(click) == b"1", np.array(conversion) == b"1", [k.decode() for k in key]


def make(tmp_path_factory: pytest.TempPathFactory, *args: Any, **options: Any) -> Iterator[Log]:
    folder = tmp_path_factory.mktemp("synth") / "log"
    yield Log(folder, synth(folder, *args, **options))
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    yield from make(tmp_path_factory, 4000, 2000, seed=5, ctr=0.2, cvr=0.3)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    """Published rates; 1,700 common rows leave means of groups and histories uncertain by 2 %."""
    yield from make(tmp_path_factory, 100_000, 1, seed=3)


@pytest.fixture(scope="module")
def raised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    yield from make(tmp_path_factory, 100_000, 40_000, seed=4, ctr=0.15, cvr=0.2)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_golden_bytes(tmp_path: Path, threads: int) -> None:
    synth(tmp_path / "log", 3000, 2500, ctr=0.1, cvr=0.2, seed=2024, threads=threads)
    assert digest(tmp_path / "log") == {
        "common_features_test.csv": "e8e635d77e05dda3",
        "common_features_train.csv": "100f97d1b0816456",
        "sample_skeleton_test.csv": "aa232702ceee3a36",
        "sample_skeleton_train.csv": "f017857d6a54c653",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    truth = pq.read_table(tmp_path / "log" / "truth_train.parquet")
    values = b"".join(truth.column(name).to_numpy().tobytes() for name in truth.column_names)
    assert hashlib.sha256(values).hexdigest()[:16] == "e96c136ed21ef9c3"


def test_seeds_differ(tmp_path: Path) -> None:
    synth(tmp_path / "a", 50, 50, seed=0)
    synth(tmp_path / "b", 50, 50, seed=1)
    a, b = digest(tmp_path / "a"), digest(tmp_path / "b")
    assert len({*a.values(), *b.values()}) == 8


@pytest.mark.parametrize("part", ["train", "test"])
def test_grammar_and_rows(small: Log, part: str) -> None:
    skeleton, common = small.skeleton(part), small.common(part)
    assert [row.sample_id for row in skeleton] == list(range(1, len(skeleton) + 1))
    blocks = {n: (b["first_id"], b["last_id"]) for n, b in small.made["id_blocks"].items()}
    for rows, names, most in ((skeleton, IMPRESSION, 50), (common, COMMON, 2706)):
        for row in rows:
            assert 1 <= len(row.features) <= most
            assert row.bags.keys() <= names
            for name, bag in row.bags.items():
                assert len(bag) <= LONGEST.get(name, 1)
                assert len({i for i, _ in bag}) == len(bag)
                for feature_id, value in bag:
                    assert blocks[name][0] <= feature_id <= blocks[name][1]
                    assert (value == "1.0") == (name not in WEIGHTED)


def test_values_are_spelled_as_in_the_log(small: Log) -> None:
    spelled = {v for row in small.common("train") for n, _, v in row.features if n in WEIGHTED}
    counts = {repr(round(math.log1p(c), 5)) for c in range(1, 3587)}
    assert {"0.69315", "1.94591", "2.3979"} < spelled
    assert min(map(float, spelled)) >= 0.07973 and max(map(float, spelled)) <= 8.18507
    assert len(spelled - counts) <= 32
    assert all(float(value) < math.log(2) for value in spelled - counts)


def test_groups_and_common_rows(small: Log) -> None:
    keys = [row.key for row in small.skeleton("train")]
    groups = list(dict.fromkeys(keys))
    runs = 1 + sum(a != b for a, b in itertools.pairwise(keys))
    common = [row.key for row in small.common("train")]
    assert runs == len(groups)  # every group is one run
    assert len(set(common)) == len(common) == small.made["train"]["common_rows"]
    assert set(common) == set(groups)
    assert common == sorted(groups) != groups
    assert not set(common) & {row.key for row in small.common("test")}


def test_order_inside_rows(small: Log) -> None:
    rows = small.skeleton("train")
    first = Counter(row.features[0][0] for row in rows)
    assert first.keys() == IMPRESSION
    apart = 0
    for row in rows:
        names = [name for name, _, _ in row.features]
        runs = 1 + sum(a != b for a, b in itertools.pairwise(names))
        apart += runs > len(row.bags)
    assert 0 < apart < len(rows) / 8  # mostly, not always, adjacent


def test_catalogue_and_crosses_agree(small: Log) -> None:
    history = {row.key: row.bags for row in small.common("train")}
    of_item: dict[int, tuple[Any, ...]] = {}
    of_category: dict[tuple[str, int], Any] = {}
    pairs = (("508", "109_14"), ("509", "110_14"), ("702", "127_14"), ("853", "150_14"))
    for row in small.skeleton("train"):
        if "205" not in row.bags:
            continue
        about = tuple(sorted(row.bags.get(name, [])) for name in ("206", "207", "210", "216"))
        if about[2]:
            assert of_item.setdefault(row.bags["205"][0][0], about) == about
        (category, _), cross = row.bags["206"][0], row.bags.get("508")
        assert of_category.setdefault((row.key, category), cross) == cross
        for name, past in pairs:
            values = Counter(value for _, value in history[row.key].get(past, []))
            assert not Counter(value for _, value in row.bags.get(name, [])) - values


def test_users_keep_their_profile(tmp_path: Path) -> None:
    synth(tmp_path / "log", 40_000, 40_000, seed=9)
    log = Log(tmp_path / "log", {})
    profiles: dict[int, set[Any]] = {}
    for part in ("train", "test"):
        for row in log.common(part):
            if "101" in row.bags:
                profile = tuple((n, row.bags.get(n)) for n in sorted(COMMON) if "_" not in n)
                profiles.setdefault(row.bags["101"][0][0], set()).add(repr(profile))
    assert 0 < len(profiles) < log_rows(log)  # users recur
    assert all(len(seen) == 1 for seen in profiles.values())


def log_rows(log: Log) -> int:
    made = json.loads((log.folder / "synth.json").read_text())
    return int(made["train"]["common_rows"] + made["test"]["common_rows"])


@pytest.mark.parametrize("part", ["train", "test"])
def test_counts_equal_a_slow_count(small: Log, part: str) -> None:
    made = small.made[part]
    assert json.loads((small.folder / "synth.json").read_text()) == small.made
    skeleton, common = small.skeleton(part), small.common(part)
    assert made["impressions"] == len(skeleton)
    assert made["clicks"] == sum(row.click for row in skeleton)
    assert made["conversions"] == sum(row.click and row.conversion for row in skeleton)
    stray = sum(row.conversion and not row.click for row in skeleton)
    assert made["conversions_without_click"] == stray == 1
    bare = [row for row in skeleton if not row.bags.keys() & {"205", "206", "207"}]
    assert made["impressions_without_item"] == len(bare) == 1
    assert made["common_rows"] == len(common) and made["common_rows_unused"] == 0
    assert made["bytes"] == {
        name: (small.folder / name).stat().st_size
        for name in (f"sample_skeleton_{part}.csv", f"common_features_{part}.csv")
    }
    assert made["fields"].keys() == COMMON | IMPRESSION
    for name, counts in made["fields"].items():
        rows = common if name in COMMON else skeleton
        bags = [row.bags[name] for row in rows if name in row.bags]
        assert counts == {
            "occurrences": sum(map(len, bags)),
            "rows_without": len(rows) - len(bags),
            "distinct_ids": len({i for bag in bags for i, _ in bag}),
        }


def test_published_means(published: Log) -> None:
    made = published.made["train"]
    impressions, common_rows = made["impressions"], made["common_rows"]
    assert impressions / common_rows == pytest.approx(57.9, rel=0.08)
    fields = made["fields"]
    for name in IMPRESSION:
        share = 1 - fields[name]["rows_without"] / impressions
        assert share == pytest.approx(PRESENCE[name], rel=0.04), name
        mean = fields[name]["occurrences"] / impressions
        assert mean == pytest.approx(MEAN_LENGTH.get(name, PRESENCE[name]), rel=0.04), name
    features = sum(fields[name]["occurrences"] for name in IMPRESSION) / impressions
    assert features == pytest.approx(13.35, rel=0.02)
    features = sum(fields[name]["occurrences"] for name in COMMON) / common_rows
    assert features == pytest.approx(518, rel=0.08)
    assert made["clicks"] / impressions == pytest.approx(0.03887, rel=0.12)
    assert fields["301"]["distinct_ids"] == 3 and fields["121"]["distinct_ids"] == 97


def test_histories_and_group_sizes_are_correlated(published: Log) -> None:
    size = Counter(published.labels("train")[2])
    lengths: dict[str, list[int]] = {name: [] for name in COMMON}
    weight, total = [], []
    with open(published.folder / "common_features_train.csv", "rb") as file:
        for line in file:
            key, count, _ = line.split(b",", 2)
            weight.append(size[key.decode()])
            total.append(int(count))
            for name in COMMON:
                lengths[name].append(line.count(name.encode() + b"\x02"))
    assert np.average(total, weights=weight) == pytest.approx(615.8, rel=0.1)
    assert np.average(total, weights=weight) / np.mean(total) == pytest.approx(1.189, abs=0.05)
    for name, mean in MEAN_LENGTH.items():
        if name in COMMON:
            assert np.average(lengths[name], weights=weight) == pytest.approx(mean, rel=0.11), name
    for name in COMMON & PRESENCE.keys():
        shares = np.average(np.array(lengths[name]) > 0, weights=weight)
        assert shares == pytest.approx(PRESENCE[name], abs=0.06), name
    without_user = lengths["101"].count(0)
    assert 0 < without_user < 15  # 1 in 450 of about 1,700


def test_test_part_has_smaller_groups(raised: Log) -> None:
    made = raised.made["test"]
    assert made["impressions"] / made["common_rows"] == pytest.approx(48.7, rel=0.12)


def test_blocks_hold_the_ids_seen_in_public_rows() -> None:
    blocks = _native.synth_describe()["fields"]
    assert list(blocks) == [f.name for f in (*ALI_CCP.common, *ALI_CCP.impression)]
    for name, (first, last) in SEEN.items():
        assert blocks[name]["first_id"] <= first <= last <= blocks[name]["last_id"], name
    ordered = sorted((b["first_id"], b["last_id"]) for b in blocks.values())
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ordered))
    assert ordered[-1][1] == 10_091_378
    assert {name for name, block in blocks.items() if block["weighted"]} == WEIGHTED


def test_ids_come_from_the_whole_block_and_are_skewed(published: Log) -> None:
    items = Counter()
    with open(published.folder / "sample_skeleton_train.csv", "rb") as file:
        items.update(int(i) for line in file for i in re.findall(rb"\b205\x02([0-9]+)", line))
    block = published.made["id_blocks"]["205"]
    width = block["last_id"] - block["first_id"]
    tenths = {10 * (i - block["first_id"]) // (width + 1) for i in items}
    assert tenths == set(range(10))
    assert len(items) > 40_000  # most ids are rare,
    assert items.most_common(1)[0][1] > 50  # a few are not


def test_labels_follow_the_truth(raised: Log) -> None:
    for part in ("train", "test"):
        click, conversion, _ = raised.labels(part)
        sample_id, pctr, pcvr = raised.truth(part)
        assert (sample_id == np.arange(1, len(click) + 1)).all()
        deviation = click.sum() - pctr.sum()
        assert abs(deviation) < 4 * math.sqrt((pctr * (1 - pctr)).sum())
        p = pcvr[click]
        assert abs(conversion[click].sum() - p.sum()) < 4 * math.sqrt((p * (1 - p)).sum())
        for decile in np.array_split(np.argsort(pctr), 10):  # calibrated at every level
            spread = math.sqrt((pctr[decile] * (1 - pctr[decile])).sum())
            assert abs(click[decile].sum() - pctr[decile].sum()) < 4 * spread


def test_requested_rates_hold(raised: Log) -> None:
    _, pctr, pcvr = raised.truth("train")
    assert pctr.mean() == pytest.approx(0.15, rel=0.05)
    assert (pctr * pcvr).sum() / pctr.sum() == pytest.approx(0.2, rel=0.08)


def test_selection_bias_and_drift(raised: Log) -> None:
    click, _, _ = raised.labels("train")
    _, pctr, pcvr = raised.truth("train")
    assert pcvr[click].mean() > 1.2 * pcvr[~click].mean()
    quarter = len(pctr) // 4
    assert pctr[:quarter].mean() > 1.05 * pctr[-quarter:].mean()


def test_effects_are_learnable_and_shared_by_train_and_test(raised: Log) -> None:
    """The mean click rate of a category in train orders test impressions better than chance."""

    def categories(part: str) -> np.ndarray:
        with open(raised.folder / f"sample_skeleton_{part}.csv", "rb") as file:
            found = (re.search(rb"\b206\x02([0-9]+)", line) for line in file)
            return np.array([int(match[1]) if match else 0 for match in found])

    click, _, _ = raised.labels("train")
    sums, counts = Counter(), Counter()
    for category, label in zip(categories("train").tolist(), click.tolist(), strict=True):
        sums[category] += label
        counts[category] += 1
    score = np.array([(sums[c] + 3) / (counts[c] + 20) for c in categories("test").tolist()])
    label, _, _ = raised.labels("test")
    rank = np.empty(len(score))
    rank[np.argsort(score, kind="stable")] = np.arange(len(score))
    positives = label.sum()
    auc = (rank[label].sum() - positives * (positives - 1) / 2) / (positives * (~label).sum())
    assert auc > 0.55


@pytest.mark.parametrize("impressions", [1, 20, 999])
def test_small_logs(tmp_path: Path, impressions: int) -> None:
    made = synth(tmp_path / "log", impressions, seed=impressions)
    log = Log(tmp_path / "log", made)
    rows, common = log.skeleton("train"), log.common("train")
    assert len(rows) == impressions and len(log.truth("train")[0]) == impressions
    assert {row.key for row in rows} == {row.key for row in common}
    assert made["parameters"]["test_impressions"] == round(impressions * 43016840 / 42300135)
    assert made["train"]["impressions_without_item"] == 0


def test_an_existing_empty_folder_is_used(tmp_path: Path) -> None:
    synth(tmp_path, 5, 5)
    assert (tmp_path / "synth.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"impressions": 0}, "impressions: expected an integer in 1 .. 10000000000, got 0"),
        ({"impressions": 2.5}, "impressions: expected an integer in .*, got 2.5"),
        ({"impressions": 9, "test_impressions": 0}, "test_impressions: expected .* got 0"),
        ({"impressions": 9, "ctr": 0.0}, r"ctr: expected a rate inside \(0, 1\), got 0.0"),
        ({"impressions": 9, "cvr": 1.0}, r"cvr: expected a rate inside \(0, 1\), got 1.0"),
        ({"impressions": 9, "ctr": math.nan}, "ctr: expected .* got nan"),
        ({"impressions": 9, "seed": -1}, "seed: expected an integer in 0 .. .*, got -1"),
        ({"impressions": 9, "threads": 0}, "threads: expected an integer in 1 .. .*, got 0"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synth(tmp_path / "log", **arguments)
    assert not (tmp_path / "log").exists()


def test_refuses_a_folder_with_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="exists; expected a new name"):
        synth(tmp_path, 5)
    with pytest.raises(FileExistsError, match=r"mine\.txt exists"):
        synth(tmp_path / "mine.txt", 5)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_part, staged = synth_module._write_part, []

    def fail(folder: Path, part: str, *rest: Any) -> Any:
        if part == "test":
            raise KeyboardInterrupt
        counts = write_part(folder, part, *rest)
        staged.extend(path.name for path in folder.iterdir())
        return counts

    monkeypatch.setattr(synth_module, "_write_part", fail)
    with pytest.raises(KeyboardInterrupt):
        synth(tmp_path / "log", 5)
    assert "sample_skeleton_train.csv" in staged and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_oserror_that_names_the_file() -> None:
    generator = _native.SynthGenerator(0, 0.1, 0.1, 57.9)
    part = _native.SynthPart(generator, 0, 20_000, 57.9, 0.0, 0.0)
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(OSError) as caught:
        part.write_skeleton(file.fileno(), "skeleton.csv", 0, part.groups, 3)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == "skeleton.csv"


def test_progress_shows_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synth(tmp_path / "log", 5, 5, progress=True)
    shown = capsys.readouterr().err
    assert all(name in shown for name in os.listdir(tmp_path / "log") if name.endswith(".csv"))
