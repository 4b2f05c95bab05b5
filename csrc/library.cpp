// Every operator's schema, on one screen. Shapes: csrc/README.md has the letters; esmm_fast/ops/ has the docstrings.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(esmm_fast, m) {
  // reduction: 0 none, 1 mean, 2 sum. Returns loss ([B] or scalar) and d(loss)/d(logits) [B, K].
  m.def(
      "product_loss(Tensor logits, Tensor labels, Tensor? impression_weights, int reduction)"
      " -> (Tensor loss, Tensor grad_logits)");
  // rows [N] and offsets [bags + 1], int32 or int64; every row below num_rows. Returns int32
  // [N], [T], [T + 1], [N], [N].
  m.def(
      "batch_plan(Tensor rows, Tensor offsets, int num_rows)"
      " -> (Tensor bag_of_occurrence, Tensor touched_rows, Tensor segment_ptr,"
      " Tensor occurrence_by_row, Tensor touched_of_occurrence)");
}
