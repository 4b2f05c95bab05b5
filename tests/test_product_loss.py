"""ops.product_loss against its reference."""

import torch

from esmm_fast import ops, reference


def test_matches_reference() -> None:
    torch.manual_seed(0)
    logits = torch.randn(33, 2, dtype=torch.float64, requires_grad=True)
    labels = (torch.rand(33, 2) < 0.3).double()
    ours, twin = ops.product_loss(logits, labels), reference.product_loss(logits, labels)
    torch.testing.assert_close(ours, twin)
    (g_ours,) = torch.autograd.grad(ours, logits)
    (g_twin,) = torch.autograd.grad(twin, logits)
    torch.testing.assert_close(g_ours, g_twin)
