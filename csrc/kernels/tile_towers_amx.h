// The loops of tile_towers on matrix tiles (AMX), on 32-row stretches that lie in the L2 cache.
//
// Activations and their gradients are bfloat16, row by row, each row filled up with zeros to a
// multiple of 32. A block is the 1 KB that a tile register holds: 16 rows of 32 bfloat16. Blocks of
// a right-hand side hold pairs: row p, column n is the pair (2p, 2p + 1) of the summed dimension.
#pragma once
#include <cstdint>

namespace esmm_fast::tiles {

// A tile register multiplies only between these two, in each thread.
void begin();
void end();

// The sizes in blocks that the sizes of a matrix fill up to.
constexpr int64_t padded(int64_t size) { return (size + 31) / 32 * 32; }
constexpr int64_t columns16(int64_t size) { return (size + 15) / 16; }
constexpr int64_t kBlock = 512;  // bfloat16

// W [out, in] of x W^T: blocks [out / 16][in / 32].
void pack(const float* weight, int64_t stride, int64_t out, int64_t in, uint16_t* blocks);

// W [out, in] of g W: blocks [in / 16][sums], of which those from `first` on are written.
void pack_transposed(const float* weight, int64_t stride, int64_t out, int64_t in, int64_t sums,
                     int64_t first, uint16_t* blocks);

// x [rows, columns] rounded, and rows of zeros up to padded(rows).
void round_rows(const float* x, int64_t columns, int64_t rows, uint16_t* out);

// y = relu(x W^T + bias[group]): rows [padded(rows)]; group of rows beyond `rows` is 0.
void layer(const uint16_t* x, int64_t in, const uint16_t* weight, const float* bias,
           const int32_t* group, int64_t bias_stride, int64_t out, int64_t rows, uint16_t* y);

// sums = x W^T + bias, float32: rows [rows], `stride` apart.
void linear(const uint16_t* x, int64_t in, const uint16_t* weight, const float* bias, int64_t out,
            int64_t rows, float* sums, int64_t stride);

// logits[b * stride] = y . weight + bias.
void last_layer(const uint16_t* y, int64_t columns, const float* weight, float bias, int64_t rows,
                float* logits, int64_t stride);

// A gradient of a layer's output where that is above 0, in the two forms that are multiplied: rows
// [stride], and its transpose, blocks [columns / 16][rows / 32].
struct Gradient {
  uint16_t* rows;
  int64_t stride;
  uint16_t* transposed;
};

// g = grad x weight where y > 0; adds to the gradients of weight and bias of the last layer, and
// g's sums to those of the bias before it, where there are any.
void last_layer_gradient(const float* grad, int64_t grad_stride, const uint16_t* y, int64_t columns,
                         const float* weight, int64_t rows, Gradient g, float* weight_gradient,
                         float* bias_gradient, float* sums);

// below = (g W) where y > 0; W of pack_transposed, `out` summed; adds its sums to `sums`, if any.
void layer_gradient(const uint16_t* g, int64_t stride, int64_t out, const uint16_t* weight,
                    const uint16_t* y, int64_t columns, int64_t rows, Gradient below, float* sums);

// Rounds a gradient of float32, rows `grad_stride` apart, to its two forms.
void round_gradient(const float* grad, int64_t grad_stride, int64_t columns, int64_t rows,
                    Gradient g);

// x's rows in pairs, blocks [columns / 16][rows / 32].
void pair_rows(const uint16_t* x, int64_t columns, int64_t rows, uint16_t* blocks);

// g^T x, blocks of 16 x 16 float32 [in / 16][out / 16], written or added.
void weight_gradient(const uint16_t* transposed, const uint16_t* pairs, int64_t out, int64_t in,
                     int64_t rows, bool add, float* blocks);

// grad [out, in] = the sum of `parts` of those blocks, `part_stride` apart.
void sum_parts(const float* blocks, int64_t parts, int64_t part_stride, int64_t out, int64_t in,
               float* grad, int64_t stride);

// x's gradient g W, float32, for the towers' g side by side.
void input_gradient(const uint16_t* g, int64_t stride, const uint16_t* weight, int64_t columns,
                    int64_t rows, float* grad);

// sum [columns] = the sum of `rows` rows of g.
void sum_rows(const uint16_t* g, int64_t stride, int64_t columns, int64_t rows, float* sum);

}  // namespace esmm_fast::tiles
