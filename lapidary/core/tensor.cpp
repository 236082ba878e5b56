#include "lapidary/core/tensor.h"

#include "lapidary/core/error.h"

namespace lapidary {

Shape::Shape(std::initializer_list<int64_t> dims)
    : Shape(from(dims.begin(), static_cast<int>(dims.size()))) {}

Shape Shape::from(const int64_t* dims, int rank) {
  if (rank > kMaxRank) fail("shape", "rank " + std::to_string(rank) + " is above 5");
  Shape shape;
  shape.rank_ = rank;
  for (int i = 0; i < rank; ++i) {
    if (dims[i] < 0) fail("shape", "negative dimension " + std::to_string(dims[i]));
    shape[i] = dims[i];
  }
  return shape;
}

int64_t Shape::numel() const {
  int64_t n = 1;
  for (int i = 0; i < rank_; ++i) n *= (*this)[i];
  return n;
}

std::string Shape::str() const {
  std::string text = "[";
  for (int i = 0; i < rank_; ++i) text += (i > 0 ? ", " : "") + std::to_string((*this)[i]);
  return text + "]";
}

ConstTensor::ConstTensor(const void* data, Dtype dtype, const Shape& shape)
    : data_(const_cast<void*>(data)), dtype_(dtype), shape_(shape) {
  int64_t stride = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    strides_[static_cast<size_t>(i)] = stride;
    stride *= shape[i];
  }
}

bool ConstTensor::contiguous() const {
  int64_t expected = 1;
  for (int i = rank() - 1; i >= 0; --i) {
    if (dim(i) != 1 && stride(i) != expected) return false;
    expected *= dim(i);
  }
  return true;
}

void ConstTensor::require(Dtype dtype) const {
  if (dtype == dtype_) return;
  fail("tensor " + shape_.str(), std::string("is ") + name_of(dtype_) + ", not " + name_of(dtype));
}

ConstTensor ConstTensor::view(const Shape& shape) const {
  if (!contiguous() || shape.numel() != numel()) {
    fail("tensor " + shape_.str(), "cannot be viewed as " + shape.str());
  }
  return {data_, dtype_, shape};
}

ConstTensor ConstTensor::slice(int dim, int64_t start, int64_t length) const {
  const int d = dim < 0 ? rank() + dim : dim;
  if (start < 0 || length < 0 || start + length > shape_[d]) {
    fail("tensor " + shape_.str(), "has no slice " + std::to_string(start) + " .. " +
                                       std::to_string(start + length) + " of dimension " +
                                       std::to_string(d));
  }
  ConstTensor out = *this;
  out.shape_[d] = length;
  if (data_ != nullptr) {
    out.data_ = static_cast<char*>(data_) + start * stride(d) * size_of(dtype_);
  }
  return out;
}

ConstTensor ConstTensor::rows() const {
  if (rank() == 0) fail("tensor", "an undefined tensor has no rows");
  if (rank() == 1) {
    ConstTensor row = *this;
    row.shape_ = {1, dim(0)};
    row.strides_ = {dim(0), 1};
    return row;
  }
  // From the inside out: n rows so far, `spacing` apart. A dimension of size 1 has no say, whatever
  // its stride.
  int64_t n = 1;
  int64_t spacing = stride(rank() - 2);
  for (int i = rank() - 2; i >= 0; --i) {
    if (dim(i) == 1) continue;
    if (n == 1) spacing = stride(i);
    if (n > 1 && stride(i) != spacing * n) {
      fail("tensor " + shape_.str(), "has rows that are not evenly spaced");
    }
    n *= dim(i);
  }
  ConstTensor out = *this;
  out.shape_ = {n, dim(-1)};
  out.strides_ = {spacing, 1};
  return out;
}

}  // namespace lapidary
