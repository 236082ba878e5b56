#pragma once

#include <complex>
#include <string>
#include <vector>

#include "lapidary/core/buffer.h"
#include "lapidary/core/rng.h"

// Tensors for tests of operations: made at random, converted between element types, compared.
// Every function takes views with any strides; what is made here is contiguous and on the host.
namespace lapidary::test {

// The backend that f32 and bf16 tests run on: cpu, or cuda when LAPIDARY_TEST_DEVICE says so.
Backend test_backend();

// Zero-filled.
OwnedTensor zeros(Dtype dtype, const Shape& shape);
// Filled with bytes 0xff: NaN in every float type, -1 in the signed integers. For outputs, so that
// an element that an operation forgets to write is found.
OwnedTensor poisoned(Dtype dtype, const Shape& shape);
// mean + scale * normal, in row-major order; the imaginary part of c128 is zero. Floats only.
OwnedTensor random(Dtype dtype, const Shape& shape, Rng& rng, double scale = 1.0,
                   double mean = 0.0);
// Integers in [low, high).
OwnedTensor random_int(Dtype dtype, const Shape& shape, Rng& rng, int64_t low, int64_t high);
// The given values in row-major order; their number must be that of the shape.
OwnedTensor from_values(Dtype dtype, const Shape& shape, const std::vector<double>& values);

// Same values in another element type (floats and integers alike), rounded to nearest; the
// imaginary part is dropped unless the result is c128. cast(t, t.dtype()) is a contiguous copy.
OwnedTensor cast(const ConstTensor& t, Dtype dtype);
// Copies values, converting as cast() does. Shapes must be equal.
void copy(const ConstTensor& from, const Tensor& to);

// The same values with gaps around them, NaN in every float type: no dimension but the last is
// dense. Rank 2 and above.
struct Spread {
  OwnedTensor base;
  Tensor view;
};
Spread spread(const ConstTensor& t);

// The element at a row-major index, of any element type.
std::complex<double> complex_at(const ConstTensor& t, int64_t index);
double at(const ConstTensor& t, int64_t index);  // its real part
void set(const Tensor& t, int64_t index, std::complex<double> value);
void fill(const Tensor& t, double value);

// All elements in row-major order, real parts.
std::vector<double> values(const ConstTensor& t);

// Errors of `got` against `expected` (same shape, any element types). NaN in either gives NaN,
// which no EXPECT_LT accepts.
double max_error(const ConstTensor& got, const ConstTensor& expected);   // largest |difference|
double peak_error(const ConstTensor& got, const ConstTensor& expected);  // / largest |expected|
double l2_error(const ConstTensor& got, const ConstTensor& expected);    // relative L2 norm

bool all_finite(const ConstTensor& t);
// Bitwise equality of shape, dtype and elements (NaN equals the same NaN).
bool same_bits(const ConstTensor& a, const ConstTensor& b);

}  // namespace lapidary::test
