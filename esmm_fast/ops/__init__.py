"""The operators, one file per stem: docstring, fake kernel, autograd."""

from .. import _library as _library  # loads the compiled libraries
from .batch_plan import batch_plan
from .product_loss import product_loss

__all__ = ["batch_plan", "product_loss"]
