// Initial table rows from a counter generator: a row depends on (key, its feature id) alone. See
// embedding_init.cpp.
#pragma once
#include <cstdint>

namespace esmm_fast {

// Writes weight[r, 0 .. dim) ~ N(0, std^2) for the rows [begin, end).
// Guarantee: the same bits on every machine, for any order or number of rows and any number of
// threads.
template <typename T>
void embedding_init(T* weight,  // [R, stride]
                    int64_t stride, int64_t dim,
                    const int64_t* feature_ids,  // [R]
                    uint64_t key, double std, int64_t begin, int64_t end);

}  // namespace esmm_fast
