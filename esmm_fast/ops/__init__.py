"""The operators, one file per stem: docstring, fake kernel, autograd."""

from pathlib import Path

from .. import _library as _library
from .batch_plan import batch_plan
from .biased_relu import biased_relu_, biased_relu_gradient_
from .embedding_init import embedding_init
from .embedding_update import embedding_update
from .pooled_embedding import embedding_bag, pooled_embedding
from .product_loss import product_loss

__all__ = [
    "batch_plan",
    "biased_relu_",
    "biased_relu_gradient_",
    "embedding_bag",
    "embedding_init",
    "embedding_update",
    "pooled_embedding",
    "product_loss",
]

_library.key_compile_caches(
    _library.operators_fingerprint(
        [*Path(__file__).parent.glob("*.py"), Path(__file__).parent.parent / "gradient_queue.py"]
    )
)
