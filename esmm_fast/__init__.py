"""Entire-space CTR/CVR models (ESMM) trained at the speed of the hardware.

The names below are the public API; each is imported when it is first used, so that
`import esmm_fast` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import optim as optim
    from . import reference as reference
    from ._library import set_isa as set_isa
    from .batch import Batch as Batch
    from .data.dataset import Dataset as Dataset
    from .data.log_format import LogFormat as LogFormat
    from .data.logs import read_log as read_log
    from .data.merge_shards import merge_shards as merge_shards
    from .data.prepare_log import prepare as prepare
    from .embedding import EmbeddingTables as EmbeddingTables
    from .embedding_bag import EmbeddingBag as EmbeddingBag
    from .evaluation import evaluate as evaluate
    from .model import ESMM as ESMM
    from .model import EntireSpaceChain as EntireSpaceChain
    from .model import SplitLinear as SplitLinear
    from .model import Tower as Tower
    from .ops.product_loss import product_loss as product_loss
    from .plan import Plan as Plan
    from .schema import Field as Field
    from .schema import Schema as Schema
    from .train import fit as fit
    from .vocabulary import Vocabulary as Vocabulary

__version__ = "0.1.0"

_HOME = {
    "Batch": "batch",
    "Dataset": "data.dataset",
    "ESMM": "model",
    "EmbeddingBag": "embedding_bag",
    "EmbeddingTables": "embedding",
    "EntireSpaceChain": "model",
    "Field": "schema",
    "LogFormat": "data.log_format",
    "Plan": "plan",
    "Schema": "schema",
    "SplitLinear": "model",
    "Tower": "model",
    "Vocabulary": "vocabulary",
    "evaluate": "evaluation",
    "fit": "train",
    "merge_shards": "data.merge_shards",
    "prepare": "data.prepare_log",
    "product_loss": "ops",
    "read_log": "data.logs",
    "set_isa": "_library",
}
_MODULES = ("ops", "optim", "reference")
__all__ = sorted([*_HOME, *_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
