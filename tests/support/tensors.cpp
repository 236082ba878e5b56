#include "tests/support/tensors.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "lapidary/core/error.h"

namespace lapidary::test {
namespace {

// Element offset of a row-major index.
int64_t offset_of(const ConstTensor& t, int64_t index) {
  int64_t offset = 0;
  for (int i = t.rank() - 1; i >= 0; --i) {
    offset += index % t.dim(i) * t.stride(i);
    index /= t.dim(i);
  }
  return offset;
}

void require_same_shape(const ConstTensor& a, const ConstTensor& b) {
  if (a.shape() == b.shape()) return;
  fail("test", "shapes differ: " + a.shape().str() + " and " + b.shape().str());
}

// std::max drops NaN; this keeps it.
double max_or_nan(double a, double b) { return std::isnan(a) || a >= b ? a : b; }

// An infinity matches the same infinity.
double difference(std::complex<double> a, std::complex<double> b) {
  return a == b ? 0.0 : std::abs(a - b);
}

}  // namespace

Backend test_backend() {
  const char* device = std::getenv("LAPIDARY_TEST_DEVICE");
  return device == nullptr ? Backend::cpu : parse_backend(device);
}

OwnedTensor zeros(Dtype dtype, const Shape& shape) { return {Backend::cpu, dtype, shape}; }

OwnedTensor poisoned(Dtype dtype, const Shape& shape) {
  OwnedTensor t = zeros(dtype, shape);
  if (t->bytes() > 0) std::memset(t->data(), 0xff, static_cast<size_t>(t->bytes()));
  return t;
}

OwnedTensor random(Dtype dtype, const Shape& shape, Rng& rng, double scale, double mean) {
  OwnedTensor t = zeros(dtype, shape);
  for (int64_t i = 0; i < t->numel(); ++i) set(t.get(), i, mean + scale * rng.normal());
  return t;
}

OwnedTensor random_int(Dtype dtype, const Shape& shape, Rng& rng, int64_t low, int64_t high) {
  OwnedTensor t = zeros(dtype, shape);
  for (int64_t i = 0; i < t->numel(); ++i) {
    set(t.get(), i, static_cast<double>(low + rng.below(high - low)));
  }
  return t;
}

OwnedTensor from_values(Dtype dtype, const Shape& shape, const std::vector<double>& values) {
  OwnedTensor t = zeros(dtype, shape);
  if (t->numel() != static_cast<int64_t>(values.size())) {
    fail("test", std::to_string(values.size()) + " values for shape " + shape.str());
  }
  for (int64_t i = 0; i < t->numel(); ++i) set(t.get(), i, values[static_cast<size_t>(i)]);
  return t;
}

OwnedTensor cast(const ConstTensor& t, Dtype dtype) {
  OwnedTensor out = zeros(dtype, t.shape());
  copy(t, out.get());
  return out;
}

void copy(const ConstTensor& from, const Tensor& to) {
  require_same_shape(from, to);
  for (int64_t i = 0; i < from.numel(); ++i) set(to, i, complex_at(from, i));
}

Spread spread(const ConstTensor& t) {
  Shape wide = t.shape();
  for (int i = 1; i < t.rank(); ++i) wide[i] += 3;
  Spread out{poisoned(t.dtype(), wide), {}};
  out.view = out.base.get();
  for (int i = 1; i < t.rank(); ++i) out.view = out.view.slice(i, 1, t.dim(i));
  copy(t, out.view);
  return out;
}

std::complex<double> complex_at(const ConstTensor& t, int64_t index) {
  const int64_t o = offset_of(t, index);
  switch (t.dtype()) {
    case Dtype::f32: return t.as<float>()[o];
    case Dtype::bf16: return static_cast<float>(t.as<bf16>()[o]);
    case Dtype::f16: return static_cast<float>(t.as<f16>()[o]);
    case Dtype::f64: return t.as<double>()[o];
    case Dtype::c128: return t.as<std::complex<double>>()[o];
    case Dtype::i64: return static_cast<double>(t.as<int64_t>()[o]);
    case Dtype::i32: return t.as<int32_t>()[o];
    case Dtype::u8: return t.as<uint8_t>()[o];
  }
  fail("test", "unknown element type");
}

double at(const ConstTensor& t, int64_t index) { return complex_at(t, index).real(); }

void set(const Tensor& t, int64_t index, std::complex<double> value) {
  const int64_t o = offset_of(t, index);
  const double re = value.real();
  switch (t.dtype()) {
    case Dtype::f32: t.as<float>()[o] = static_cast<float>(re); return;
    case Dtype::bf16: t.as<bf16>()[o] = bf16(static_cast<float>(re)); return;
    case Dtype::f16: t.as<f16>()[o] = f16(static_cast<float>(re)); return;
    case Dtype::f64: t.as<double>()[o] = re; return;
    case Dtype::c128: t.as<std::complex<double>>()[o] = value; return;
    case Dtype::i64: t.as<int64_t>()[o] = std::llround(re); return;
    case Dtype::i32: t.as<int32_t>()[o] = static_cast<int32_t>(std::lround(re)); return;
    case Dtype::u8: t.as<uint8_t>()[o] = static_cast<uint8_t>(std::lround(re)); return;
  }
  fail("test", "unknown element type");
}

void fill(const Tensor& t, double value) {
  for (int64_t i = 0; i < t.numel(); ++i) set(t, i, value);
}

std::vector<double> values(const ConstTensor& t) {
  std::vector<double> out;
  out.reserve(static_cast<size_t>(t.numel()));
  for (int64_t i = 0; i < t.numel(); ++i) out.push_back(at(t, i));
  return out;
}

double max_error(const ConstTensor& got, const ConstTensor& expected) {
  require_same_shape(got, expected);
  double worst = 0.0;
  for (int64_t i = 0; i < got.numel(); ++i) {
    worst = max_or_nan(worst, difference(complex_at(got, i), complex_at(expected, i)));
  }
  return worst;
}

double peak_error(const ConstTensor& got, const ConstTensor& expected) {
  double peak = 0.0;
  for (int64_t i = 0; i < expected.numel(); ++i) {
    peak = max_or_nan(peak, std::abs(complex_at(expected, i)));
  }
  const double error = max_error(got, expected);
  return peak == 0.0 ? error : error / peak;
}

double l2_error(const ConstTensor& got, const ConstTensor& expected) {
  require_same_shape(got, expected);
  double error = 0.0, norm = 0.0;
  for (int64_t i = 0; i < got.numel(); ++i) {
    const std::complex<double> e = complex_at(expected, i);
    error += std::norm(complex_at(got, i) - e);
    norm += std::norm(e);
  }
  return norm == 0.0 ? std::sqrt(error) : std::sqrt(error / norm);
}

bool all_finite(const ConstTensor& t) {
  for (int64_t i = 0; i < t.numel(); ++i) {
    const std::complex<double> v = complex_at(t, i);
    if (!std::isfinite(v.real()) || !std::isfinite(v.imag())) return false;
  }
  return true;
}

bool same_bits(const ConstTensor& a, const ConstTensor& b) {
  if (a.dtype() != b.dtype() || !(a.shape() == b.shape())) return false;
  const auto width = static_cast<size_t>(size_of(a.dtype()));
  for (int64_t i = 0; i < a.numel(); ++i) {
    const char* pa = static_cast<const char*>(a.data()) + offset_of(a, i) * size_of(a.dtype());
    const char* pb = static_cast<const char*>(b.data()) + offset_of(b, i) * size_of(b.dtype());
    if (std::memcmp(pa, pb, width) != 0) return false;
  }
  return true;
}

}  // namespace lapidary::test
