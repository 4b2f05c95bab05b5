"""The loaders in other tools find what `prepare` finds: bench/parse.py compares one work."""

from pathlib import Path

import pytest

from esmm_fast.data.prepare_log import prepare
from esmm_fast.data.synth import synth

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    synth(folder, 600, 10, seed=1)
    return folder / "sample_skeleton_train.csv", folder / "common_features_train.csv"


@pytest.mark.parametrize("name", ["python", "pandas", "polars", "duckdb", "pyarrow"])
def test_a_peer_finds_the_same(tmp_path, log, name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import peers

    assert name in peers.NAMES
    load = peers.peer(name)
    if load is None:
        pytest.skip(f"{name} is not installed")
    prepare(skeleton=log[0], common=log[1], out=tmp_path / "dataset")
    own = peers.of_dataset(tmp_path / "dataset")
    assert own.impressions == 600
    assert load(*log, tmp_path / "peer").agrees_with(own)
