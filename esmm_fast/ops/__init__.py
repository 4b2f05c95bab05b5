"""The operators, one file per stem: docstring, fake kernel, autograd."""

from .. import _library as _library  # loads the compiled libraries
from .product_loss import product_loss

__all__ = ["product_loss"]
