#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "lapidary/core/dtype.h"

namespace lapidary {

constexpr int kMaxRank = 5;

// Up to kMaxRank dimensions. Rank 0 means "no tensor": a scalar is a tensor of shape [1].
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims);
  static Shape from(const int64_t* dims, int rank);

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[static_cast<size_t>(i)]; }
  int64_t& operator[](int i) { return dims_[static_cast<size_t>(i)]; }
  int64_t numel() const;    // 1 for rank 0
  std::string str() const;  // "[2, 24, 40]"
  bool operator==(const Shape& other) const = default;

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

// A trivially copyable view of memory that somebody else owns (a Buffer or an Arena). Strides are
// in elements; the last dimension is dense. On the meta backend the pointer is null while the
// shape is set: ask defined(), not data().
class ConstTensor {
 public:
  ConstTensor() = default;
  ConstTensor(const void* data, Dtype dtype, const Shape& shape);  // contiguous

  bool defined() const { return shape_.rank() > 0; }
  Dtype dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  int64_t dim(int i) const { return shape_[i < 0 ? shape_.rank() + i : i]; }
  int64_t stride(int i) const {
    return strides_[static_cast<size_t>(i < 0 ? shape_.rank() + i : i)];
  }
  int64_t numel() const { return defined() ? shape_.numel() : 0; }
  int64_t bytes() const { return numel() * size_of(dtype_); }
  bool contiguous() const;
  const void* data() const { return data_; }

  // Typed pointer; throws Error if T is not the element type.
  template <class T>
  const T* as() const {
    require(dtype_of<T>());
    return static_cast<const T*>(data_);
  }

  // Same elements, other shape; contiguous tensors only.
  ConstTensor view(const Shape& shape) const;
  // `length` entries of dimension `dim` from `start` on.
  ConstTensor slice(int dim, int64_t start, int64_t length) const;
  // All dimensions but the last merged: [N, last]. The merged dimensions must be evenly spaced.
  ConstTensor rows() const;

 protected:
  void require(Dtype dtype) const;
  void* data_ = nullptr;
  Dtype dtype_ = Dtype::f32;
  Shape shape_;
  std::array<int64_t, kMaxRank> strides_{};
};

class Tensor : public ConstTensor {
 public:
  Tensor() = default;
  Tensor(void* data, Dtype dtype, const Shape& shape) : ConstTensor(data, dtype, shape) {}

  void* data() const { return data_; }
  template <class T>
  T* as() const {
    require(dtype_of<T>());
    return static_cast<T*>(data_);
  }
  Tensor view(const Shape& shape) const { return Tensor(ConstTensor::view(shape)); }
  Tensor slice(int dim, int64_t start, int64_t length) const {
    return Tensor(ConstTensor::slice(dim, start, length));
  }
  Tensor rows() const { return Tensor(ConstTensor::rows()); }

 private:
  explicit Tensor(const ConstTensor& t) : ConstTensor(t) {}
};

}  // namespace lapidary
