// Every operator's schema, on one screen. Shapes: csrc/README.md has the letters; esmm_fast/ops/
// has the docstrings.
#include <torch/csrc/stable/library.h>

// clang-format off: it would break a schema in the middle of an argument.
STABLE_TORCH_LIBRARY(esmm_fast, m) {
  // reduction: 0 none, 1 mean, 2 sum. Returns loss ([B] or scalar) and d(loss)/d(logits) [B, K].
  m.def(
      "product_loss(Tensor logits, Tensor labels, Tensor? impression_weights, int reduction)"
      " -> (Tensor loss, Tensor grad_logits)");
  // rows [N] and offsets [bags + 1], int32 or int64; every row below num_rows. Returns int32
  // [N], [T], [T + 1], [N].
  m.def(
      "batch_plan(Tensor rows, Tensor offsets, int num_rows)"
      " -> (Tensor bag_of_occurrence, Tensor touched_rows, Tensor segment_ptr,"
      " Tensor occurrence_by_row)");
  // The plan of some fields after that of others: see batches/plan_parts.h. Four numbers for each
  // field: part, first and end row of its table, shift. Returns int32 [N], [N], [bags + parts], [N],
  // [T], [T + parts], [N], and int64 sizes [2, parts]: occurrences and touched rows.
  m.def(
      "plan_parts(Tensor rows, Tensor offsets, Tensor segment_ptr, Tensor occurrence_by_row, "
      "SymInt common_bags, int[] common_fields, int[] impression_fields, int parts)"
      " -> (Tensor rows, Tensor source, Tensor offsets, Tensor bag_of_occurrence,"
      " Tensor touched_rows, Tensor segment_ptr, Tensor occurrence_by_row, Tensor sizes)");
  // weight [R, D]; the plan's tensors (rows and offsets also int64); queue: where the backward pass
  // leaves the gradient for a fused optimizer instead of returning it. Returns [common_bags, D] and
  // [bags - common_bags, D].
  m.def(
      "pooled_embedding(Tensor weight, Tensor rows, Tensor offsets, Tensor? weights, "
      "Tensor bag_of_occurrence, Tensor touched_rows, Tensor segment_ptr, "
      "Tensor occurrence_by_row, Tensor? queue, SymInt common_bags, bool mean, bool sparse)"
      " -> (Tensor common, Tensor impression)");
  // The gradient of each touched row [T, D], the sum of its squares (float64), and the gradient of
  // weights [N].
  m.def(
      "pooled_embedding_row_gradients(Tensor grad_common, Tensor grad_impression, Tensor? weights, "
      "Tensor bag_of_occurrence, Tensor segment_ptr, Tensor occurrence_by_row) -> Tensor");
  // The same as [num_rows, D], zeros where nothing touches a row.
  m.def(
      "pooled_embedding_dense_gradient(Tensor grad_common, Tensor grad_impression, Tensor? weights, "
      "Tensor bag_of_occurrence, Tensor touched_rows, Tensor segment_ptr, Tensor occurrence_by_row, "
      "SymInt num_rows) -> Tensor");
  m.def(
      "pooled_embedding_squared_norm(Tensor grad_common, Tensor grad_impression, Tensor? weights, "
      "Tensor bag_of_occurrence, Tensor segment_ptr, Tensor occurrence_by_row) -> Tensor");
  m.def(
      "pooled_embedding_weights_gradient(Tensor grad_common, Tensor grad_impression, "
      "Tensor weight, Tensor rows, Tensor bag_of_occurrence) -> Tensor");
  // weights[n] * grad[bag of n], [occurrences, D]: the gradient that nn.EmbeddingBag(sparse=True)
  // gives.
  m.def(
      "pooled_embedding_by_occurrence(Tensor grad, Tensor offsets, Tensor? weights, "
      "SymInt occurrences) -> Tensor");
  // Keeps the gradient of the pooled bags for the optimizer that owns the queue (implemented in
  // Python).
  m.def(
      "pooled_embedding_keep_gradient(Tensor(a!) queue, Tensor grad_common, "
      "Tensor grad_impression, Tensor? weights, Tensor bag_of_occurrence, Tensor touched_rows, "
      "Tensor segment_ptr, Tensor occurrence_by_row, bool copy) -> ()");
  // table [R, stride]: weight and optimizer state side by side. rule: 0 SGD, 1 Adagrad, 2 row-wise
  // Adagrad, 3 lazy Adam.
  m.def(
      "embedding_update(Tensor(a!) table, Tensor grad_common, Tensor grad_impression, "
      "Tensor? weights, Tensor bag_of_occurrence, Tensor touched_rows, Tensor segment_ptr, "
      "Tensor occurrence_by_row, int rule, float grad_factor, float step_size, float beta1, "
      "float beta2, float eps, float decay) -> ()");
  // The same with step_numbers [6] float64 on the table's device (grad_factor, step_size, beta1,
  // beta2, eps, decay), so that a captured CUDA graph takes those of each replay. CUDA only.
  m.def(
      "embedding_update_by_tensor(Tensor(a!) table, Tensor grad_common, Tensor grad_impression, "
      "Tensor? weights, Tensor bag_of_occurrence, Tensor touched_rows, Tensor segment_ptr, "
      "Tensor occurrence_by_row, int rule, Tensor step_numbers) -> ()");
  // weight [rows, D] ~ N(0, std^2), a function of (key, feature_ids [rows] int64) alone.
  m.def(
      "embedding_init(Tensor(a!) weight, Tensor feature_ids, int key, float std) -> ()");
  // x [B, H] float32 or bfloat16 becomes relu(x + bias[group]); bias [G, H] float32, group [B]
  // int32 or none (G = 1). grad becomes the gradient of x; returns that of bias, [num_groups, H].
  m.def(
      "biased_relu(Tensor(a!) x, Tensor bias, Tensor? group) -> ()");
  m.def(
      "biased_relu_gradient(Tensor(a!) grad, Tensor out, Tensor? group, SymInt num_groups)"
      " -> Tensor");
  // Towers in bfloat16 on matrix tiles: common [U, in_common], impression [B, in_impression], group
  // [B] int32, weight and bias of every layer, of which tower k has layers[k]. Returns logits [B, K]
  // and what the backward pass reads; there, the gradients of the first two and of the parameters.
  m.def(
      "tile_towers(Tensor common, Tensor impression, Tensor group, Tensor[] parameters, "
      "int[] layers) -> (Tensor logits, Tensor saved)");
  m.def(
      "tile_towers_gradient(Tensor grad_logits, Tensor saved, Tensor group, SymInt common_rows, "
      "SymInt in_common, Tensor[] parameters, int[] layers, bool wants_common, "
      "bool wants_impression)"
      " -> (Tensor grad_common, Tensor grad_impression, Tensor[] grad_parameters)");
}
// clang-format on
