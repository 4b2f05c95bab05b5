"""A small synthetic log and its datasets, made once for all tests that need them."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from esmm_fast import Dataset, prepare
from esmm_fast.data.synth import synth
from esmm_fast.evaluation import Truth


@dataclass(frozen=True)
class SyntheticLog:
    """2,000 training and 1,000 test impressions with raised rates, and where they lie."""

    log: Path
    train_path: Path
    test_path: Path
    truth_path: Path

    @property
    def train(self) -> Dataset:
        return Dataset(self.train_path)

    @property
    def test(self) -> Dataset:
        return Dataset(self.test_path)

    @property
    def truth(self) -> Truth:
        return Truth.load(self.truth_path)


@pytest.fixture(scope="session")
def synthetic_log(tmp_path_factory: pytest.TempPathFactory) -> SyntheticLog:
    folder = tmp_path_factory.mktemp("synthetic")
    synth(folder / "log", 2_000, 1_000, ctr=0.2, cvr=0.3, seed=0)
    prepare(folder / "log", out=folder / "data")
    return SyntheticLog(
        folder / "log",
        folder / "data" / "train",
        folder / "data" / "test",
        folder / "log" / "truth_test.parquet",
    )
