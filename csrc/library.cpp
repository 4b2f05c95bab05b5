// Every operator's schema, on one screen. Shapes: csrc/README.md has the letters; esmm_fast/ops/ has the docstrings.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(esmm_fast, m) {
  // reduction: 0 none, 1 mean, 2 sum. Returns loss ([B] or scalar) and d(loss)/d(logits) [B, K].
  m.def(
      "product_loss(Tensor logits, Tensor labels, Tensor? impression_weights, int reduction)"
      " -> (Tensor loss, Tensor grad_logits)");
}
