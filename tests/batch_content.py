"""What tests of batches look at: the bytes of a batch, and the rows it came from."""

from typing import Any

from tiny_dataset import TinyDataset

from esmm_fast.batch import Batch, Plan
from esmm_fast.data.batches import Batches
from esmm_fast.vocabulary import Vocabulary


def batches_of(dataset: TinyDataset, batch_size: int = 7, **options: Any) -> Batches:
    vocabulary = options.pop("vocabulary", None) or Vocabulary.from_dataset(dataset)
    return Batches(dataset, batch_size, vocabulary=vocabulary, **options)


def content(batch: Batch) -> list[bytes]:
    """Every byte of a batch."""
    tensors = [getattr(batch.plan, name) for name in Plan.__dataclass_fields__]
    tensors += [batch.common_of_impression, batch.labels, batch.sample_id]
    return [
        str(batch.common).encode(),
        *(b"-" if t is None else t.numpy().tobytes() for t in tensors),
    ]


def rows_of(batches: Any) -> list[int]:
    """Row in the dataset of every impression as they come (its sample_id is 10 + 3 row)."""
    return [(i - 10) // 3 for batch in batches for i in batch.sample_id.tolist()]
