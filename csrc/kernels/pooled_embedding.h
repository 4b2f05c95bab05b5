// Pooling of bags of table rows, and the gradients of its inputs. Loops: pooled_embedding_simd.inc.
//
// Letters: R rows, D dimension, N occurrences, T touched rows. Bags [0, common_bags) belong to
// common rows, the others to impressions; each side has an output (and an output gradient) of its
// own.
#pragma once
#include <cstdint>

namespace esmm_fast {

// out[bag] = sum over the bag's occurrences n of weights[n] * weight[rows[n]], divided by their
// number for `mean`.
template <typename T>
struct Pooling {
  const T* weight;         // [R, stride]: row r is weight[r * stride .. r * stride + dim)
  int64_t stride, dim;     // in elements
  const int32_t* rows;     // [N]
  const int32_t* offsets;  // [bags + 1]
  const T* weights;        // [N] or null (all 1)
  bool mean;
  int64_t common_bags;
  T* common;            // [common_bags, D]
  T* impression;        // [bags - common_bags, D]
  bool cached = false;  // the table stays in a second-level cache: nothing is prefetched
};

// A part of one touched row's occurrences that is summed on its own.
struct SegmentBlock {
  int64_t begin, end;  // into occurrence_by_row
};

// A touched row with more than kBlockOccurrences occurrences: it is summed block by block, so that
// threads can share the work and the result does not depend on how they do.
struct LongSegment {
  int64_t touched;                 // its place in touched_rows
  int64_t first_block, end_block;  // into the blocks, and the rows of block_sums
};

constexpr int64_t kMaxDim = 256;            // elements of a row's stack buffer
constexpr int64_t kBlockOccurrences = 512;  // about 10 us of work at D = 18

// d(loss)/d(row t) = sum over its occurrences n, in order, of weights[n] *
// d(loss)/d(out[bag_of_occurrence[n]]).
template <typename T>
struct RowGradient {
  const T* grad_common;      // [common_bags, D]
  const T* grad_impression;  // [bags - common_bags, D]
  int64_t common_bags, dim;
  const T* weights;                  // [N] or null (all 1)
  const int32_t* bag_of_occurrence;  // [N]
  const int32_t* segment_ptr;        // [T + 1]
  const int32_t* occurrence_by_row;  // [N]
  const LongSegment* long_segments;  // [long_count], ascending
  int64_t long_count;
  const T* block_sums;  // [blocks, D]
};

// Writes the bags [begin, end). Ownership: a bag is written by one caller, in the order of its
// occurrences.
template <typename T>
void pool_bags(const Pooling<T>& pooling, int64_t begin, int64_t end);

// Writes out [D] = the sum over one block of occurrences.
template <typename T>
void sum_block(const RowGradient<T>& gradient, SegmentBlock block, T* out);

// Writes the touched rows [begin, end) to values[places[t]] [D], without places to values[t].
// Ownership: a touched row has one caller.
template <typename T>
void row_gradients(const RowGradient<T>& gradient, int64_t begin, int64_t end, T* values,
                   const int32_t* places = nullptr);

// Returns the sum of the squares of the gradients of the touched rows [begin, end).
template <typename T>
double squared_norm(const RowGradient<T>& gradient, int64_t begin, int64_t end);

// Writes out[n] = <d(loss)/d(out[bag of n]), weight[rows[n]]>, the gradient of weights, for n in
// [begin, end).
template <typename T>
void occurrence_gradients(const RowGradient<T>& gradient, const T* weight, int64_t stride,
                          const int32_t* rows, int64_t begin, int64_t end, T* out);

// Writes out[n] [D] = weights[n] * grad[bag of n] for the occurrences of the bags [begin, end): the
// gradient by occurrence.
template <typename T>
void gradient_by_occurrence(const T* grad,           // [bags, D]
                            const int32_t* offsets,  // [bags + 1]
                            const T* weights,        // [N] or null (all 1)
                            int64_t dim, int64_t begin, int64_t end,
                            T* out);  // [N, D]

// Writes out[n] = values[n] for n in [begin, end); returns the first n with values[n] outside [0,
// limit), or end. Limit is at most 2^31.
int64_t narrow(const int64_t* values, int64_t begin, int64_t end, int64_t limit, int32_t* out);

// Returns the first n in [begin, end) with values[n] outside [0, limit), or end.
int64_t first_outside(const int32_t* values, int64_t begin, int64_t end, int64_t limit);

// Return the first i in [begin, end) with values[i + 1] < values[i], or <=, or end.
int64_t first_descent(const int32_t* values, int64_t begin, int64_t end);
int64_t first_not_above(const int32_t* values, int64_t begin, int64_t end);

// Returns the first i in [begin, end) with bounds[i + 1] - bounds[i] > longest, or end. Bounds
// ascend from 0.
int64_t first_longer(const int32_t* bounds, int64_t begin, int64_t end, int32_t longest);

}  // namespace esmm_fast
