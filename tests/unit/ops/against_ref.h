#pragma once

#include <functional>
#include <string>
#include <vector>

#include "lapidary/core/context.h"
#include "tests/support/tensors.h"

// Runs one call of an operation on the backend under test (test_backend(): cpu, or cuda) and on the
// reference, from the same values.
namespace lapidary::test {

// Largest |difference| allowed, relative to the largest |expected| of a tensor:
//   one rounding of the result                            eps(stored)
//   a chain of up to 8 float roundings per element        8 eps(f32)
//   a sum of `terms` products, rounded at every addition: a random walk of sqrt(terms) steps of
//   half an eps, four deviations wide                     4 sqrt(terms) eps(f32)
//   one factor of the sum that was rounded to `factor`    eps(factor)
// with eps = 2^-23 (f32) and 2^-7 (bf16).
double tolerance(Dtype stored, int64_t terms = 1, Dtype factor = Dtype::f32);

class Call {
 public:
  // strided: every tensor of rank 2 and above has gaps between its rows (NaN but in the
  // reference's).
  Call(Dtype dtype, bool strided) : dtype_(dtype), strided_(strided) {}

  // Tensors of the call; the result is their index. Values are given in f64 and rounded to the
  // dtype of the model (`acc`: to its accumulate_dtype) before either backend sees them.
  int input(const OwnedTensor& value);
  int input_acc(const OwnedTensor& value);
  int integers(const OwnedTensor& value);  // the same for both backends
  // Outputs start as NaN (written) or from `start` (added, overwritten).
  int written(const char* name, const Shape& shape, double tolerance);
  int written_acc(const char* name, const Shape& shape, double tolerance);
  int written_integers(const char* name, Dtype dtype, const Shape& shape);  // must be equal
  int added(const char* name, const OwnedTensor& start, double tolerance);
  int added_acc(const char* name, const OwnedTensor& start, double tolerance);
  int added_as(Dtype stored, const char* name, const OwnedTensor& start, double tolerance);

  // The tensors of one run, by index; -1 is an undefined one.
  struct Args {
    std::vector<Tensor> tensors;
    Tensor operator[](int i) const { return i < 0 ? Tensor() : tensors[static_cast<size_t>(i)]; }
  };
  using Run = std::function<void(Context&, const Args&)>;
  // Runs both and compares every output. Also: a dry run on the meta backend counts exactly the
  // scratch memory that the backend takes; a second run gives the same bits; so does a run on one
  // thread of the cpu, unless the sums depend on their number (any_threads = false).
  void compare(const Run& run, bool any_threads = true) const;

 private:
  enum class Role { input, output };
  struct Item {
    Role role;
    Dtype stored;  // on the backend under test
    Dtype ref;
    std::string name;
    OwnedTensor start;  // undefined: NaN
    Shape shape;
    double tolerance;
  };
  struct Copies;
  static bool same(const Copies& a, const Copies& b);
  int add(Item item);
  Copies copies(bool reference) const;
  Copies run_once(const Run& run, int64_t scratch) const;

  Dtype dtype_;
  bool strided_;
  std::vector<Item> items_;
};

// f(dtype, strided) for f32 and bf16, dense and strided.
void for_each_form(const std::function<void(Dtype, bool)>& f);

}  // namespace lapidary::test
