"""The operators in plain PyTorch, one file per stem: the specification, to be read first."""

from .batch_plan import batch_plan
from .biased_relu import biased_relu, biased_relu_gradient
from .embedding_init import embedding_init
from .embedding_update import embedding_update
from .plan_parts import plan_parts
from .pooled_embedding import pooled_embedding
from .product_loss import product_loss
from .tile_towers import tile_towers

__all__ = [
    "batch_plan",
    "biased_relu",
    "biased_relu_gradient",
    "embedding_init",
    "embedding_update",
    "plan_parts",
    "pooled_embedding",
    "product_loss",
    "tile_towers",
]
