"""Training from a dataset on disk, batch making included, against PyTorch scripts and libraries.

python bench/epoch.py [--log DIR] [--precision float32 bfloat16] [--peers ...]. DIR is a dataset
that `prepare` wrote; without one, `synth` makes a log with the published rates and sizes first.
Each candidate takes the next `--steps` steps of its epoch in its turn; ours begins a new loader
each time, the others' loaders stay warm.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import harness
import numpy as np
import torch
from peers import library_esmm
from peers.training_script import Script

import esmm_fast as ef
from esmm_fast.data.synth import synth
from esmm_fast.schedule import default_optimizers

PEERS = ("joined", "deduplicated", "torch-rechub", "DeepCTR-Torch")


@contextmanager
def dataset_of(path: Path | None, impressions: int) -> Iterator[ef.Dataset]:
    if path is not None:
        yield ef.Dataset(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        synth(folder, impressions, 1)
        log = [
            Path(folder) / f"{name}_train.csv" for name in ("sample_skeleton", "common_features")
        ]
        ef.prepare(skeleton=log[0], common=log[1], out=Path(folder) / "dataset")
        yield ef.Dataset(Path(folder) / "dataset")


def fast(
    dataset: ef.Dataset, vocabulary: ef.Vocabulary, size: int, bfloat16: bool
) -> Callable[[int], None]:
    batches = dataset.batches(size, vocabulary=vocabulary, drop_last=True)
    model = ef.ESMM(batches.schema)
    optimizers = default_optimizers(model)

    def train(steps: int) -> None:
        iterator = iter(batches)
        for _ in range(steps):
            batch = next(iterator)
            with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
                loss = model.loss(model(batch), batch)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        batches.close()

    return train


def comparison(
    dataset: ef.Dataset,
    size: int,
    steps: int,
    threads: int,
    precision: str,
    peers: Sequence[str],
    rounds: int,
) -> harness.Comparison:
    vocabulary = ef.Vocabulary.from_dataset(dataset)
    schema = vocabulary.sized(dataset.schema)
    ids = {name: vocabulary.feature_ids(name)[1:].astype(np.int64) for name in schema.table_rows}
    bfloat16 = precision == "bfloat16"
    train: dict[str, Callable[[int], None]] = {}
    for joined in (True, False):
        name = PEERS[0] if joined else PEERS[1]
        for workers in (0, 1) if name in peers else ():
            script = Script(
                dataset, schema, ids, size, joined=joined, workers=workers, bfloat16=bfloat16
            )
            train[f"PyTorch script, {name}, {workers} loader workers"] = script.train
    for name, build in (
        ("torch-rechub", library_esmm.torch_rechub),
        ("DeepCTR-Torch", library_esmm.deepctr_torch),
    ):
        if name in peers and not bfloat16:
            try:
                train[f"{name} (last id only, no values)"] = build(dataset, schema, ids, size)
            except ImportError as error:
                print(f"{name}: not installed ({error})")
    train["esmm_fast"] = fast(dataset, vocabulary, size, bfloat16)
    rows = sum(schema.table_rows.values())
    calls = {name: lambda t=t: t(steps) for name, t in train.items()}
    title = f"{steps} steps from disk, B = {size}, {rows} rows, {precision}"
    return harness.compare(
        title, calls, rounds=rounds, warmup=1, threads=threads, baseline="esmm_fast"
    )


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """A training run from disk: impressions per second against PyTorch scripts and libraries."""
    found = []
    with dataset_of(options.log, options.impressions) as dataset:
        for threads in options.threads:
            for precision in options.precision:
                found.append(
                    comparison(
                        dataset,
                        options.batch,
                        options.steps,
                        threads,
                        precision,
                        options.peers,
                        options.rounds,
                    )
                )
                for name in found[-1].seconds:
                    rate = options.batch * options.steps / found[-1].median(name)
                    print(f"{rate:12,.0f} impressions/s  {name}, {precision}, {threads} threads")
    return found


def test_epoch(benchmark, tmp_path):
    with dataset_of(None, 3_000) as dataset:
        one = comparison(dataset, 512, 2, 2, "float32", PEERS[:2], rounds=1)
        harness.record(benchmark, one, "esmm_fast")


if __name__ == "__main__":
    harness.main(
        "epoch",
        run,
        log={"type": Path, "help": "a dataset that prepare wrote"},
        impressions={"type": int, "default": 300_000, "help": "of the log, where none is given"},
        batch={"type": int, "default": 4096, "help": "impressions of a batch"},
        steps={"type": int, "default": 8, "help": "steps of a turn"},
        precision={"nargs": "+", "default": ["float32", "bfloat16"], "help": "of the towers"},
        peers={"nargs": "+", "default": list(PEERS), "choices": PEERS, "help": "whom to compare"},
    )
