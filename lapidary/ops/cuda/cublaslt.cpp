#include "lapidary/ops/cuda/cublaslt.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <vector>

#include "lapidary/core/error.h"

namespace lapidary::ops::cuda {
namespace {

constexpr const char* kVariable = "LAPIDARY_CUBLASLT";
constexpr size_t kMaxPlans = 4096;

std::vector<std::string> places() {
  if (const char* path = std::getenv(kVariable); path != nullptr && *path != '\0') return {path};
  return {"libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR), "libcublasLt.so",
          "/usr/local/cuda/lib64/libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR),
          "/usr/local/cuda/lib64/libcublasLt.so"};
}

[[noreturn]] void missing(const std::string& found) {
  fail("cuBLASLt",
       "products on the GPU need libcublasLt " + std::to_string(CUBLAS_VER_MAJOR) +
           ", which could not be opened:" + found,
       "install cuBLAS " + std::to_string(CUBLAS_VER_MAJOR) +
           " (part of the CUDA toolkit), or set " + kVariable + " to the path of libcublasLt.so");
}

// A library of the version that this was compiled for; its file stays open to the end.
void* open_library() {
  std::string found;
  for (const std::string& place : places()) {
    void* file = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (file == nullptr) {
      const char* why = dlerror();
      found += "\n  " + (why == nullptr ? place : std::string(why));
      continue;
    }
    const auto version = reinterpret_cast<size_t (*)()>(dlsym(file, "cublasLtGetVersion"));
    if (version != nullptr && version() / 10000 == CUBLAS_VER_MAJOR) return file;
    found += "\n  " + place + ": another version";
    dlclose(file);
  }
  missing(found);
}

struct Api {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtGetStatusString) status_string;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;

  Api() {
    void* file = open_library();
    const auto find = [file](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(file, name));
      if (function == nullptr) missing("\n  no function " + std::string(name) + " in it");
    };
    find(create, "cublasLtCreate");
    find(status_string, "cublasLtGetStatusString");
    find(matmul, "cublasLtMatmul");
    find(heuristic, "cublasLtMatmulAlgoGetHeuristic");
    find(desc_create, "cublasLtMatmulDescCreate");
    find(desc_destroy, "cublasLtMatmulDescDestroy");
    find(desc_set, "cublasLtMatmulDescSetAttribute");
    find(layout_create, "cublasLtMatrixLayoutCreate");
    find(layout_destroy, "cublasLtMatrixLayoutDestroy");
    find(preference_create, "cublasLtMatmulPreferenceCreate");
    find(preference_destroy, "cublasLtMatmulPreferenceDestroy");
    find(preference_set, "cublasLtMatmulPreferenceSetAttribute");
  }

  void check(const std::string& what, cublasStatus_t status) const {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    fail("matmul", "cuBLASLt: " + what + ": " + status_string(status));
  }
};

// A product as the library sees it: its matrices are column-major, so that ours appear transposed
// to it, and outᵀ = b'ᵀ a'ᵀ is what it computes, with our b first.
struct Operand {
  int64_t rows, columns, ld;  // as stored; a single row has the ld of a dense one
  int64_t alignment;          // largest power of two up to 16 that divides the address

  static Operand of(const ConstTensor& t) {
    // Nothing asks for more than 16 bytes: a higher class would only make the choice of algorithm,
    // and so the order of a sum, depend on where a tensor happens to lie.
    const auto address = reinterpret_cast<uintptr_t>(t.data()) | 16;
    return {t.dim(0), t.dim(1), t.dim(0) == 1 ? t.dim(1) : t.stride(0),
            static_cast<int64_t>(address & (~address + 1))};
  }
};

struct Product {
  Operand a, b, out;
  Dtype in_type, out_type;
  bool trans_a, trans_b, accumulate;

  // Everything that the choice of an algorithm may depend on; shapes follow from a and out.
  using Key = std::array<int64_t, 11>;
  Key key() const {
    const int64_t flags = (trans_a ? 1 : 0) | (trans_b ? 2 : 0) | (accumulate ? 4 : 0) |
                          (in_type == Dtype::bf16 ? 8 : 0) | (out_type == Dtype::bf16 ? 16 : 0);
    return {a.rows, a.columns,   b.rows,      b.columns,     a.ld, b.ld,
            out.ld, a.alignment, b.alignment, out.alignment, flags};
  }
};

std::string str(const Product& p) {
  const auto operand = [](const Operand& o) {
    return " [" + std::to_string(o.rows) + ", " + std::to_string(o.columns) + "] stride " +
           std::to_string(o.ld);
  };
  return "a" + operand(p.a) + (p.trans_a ? " transposed" : "") + ", b" + operand(p.b) +
         (p.trans_b ? " transposed" : "") + ", out" + operand(p.out);
}

template <class T>
using Owned = std::unique_ptr<T, cublasStatus_t (*)(T*)>;

// What a call needs beside its pointers. Calls only read it.
struct Plan {
  Owned<cublasLtMatmulDescOpaque_t> desc;
  Owned<cublasLtMatrixLayoutOpaque_t> first, second, out;
  cublasLtMatmulAlgo_t algo = {};
  bool usable = false;
};

cudaDataType_t type_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32: return CUDA_R_32F;
    case Dtype::bf16: return CUDA_R_16BF;
    default:
      fail("matmul", std::string("cannot compute in ") + name_of(dtype) + " on the GPU",
           "use fp32 or bf16");
  }
}

class Library {
 public:
  // Lives as long as the process: nothing of it may be torn down after the driver was.
  static Library& get() {
    static Library& library = *new Library;
    return library;
  }

  bool run(const Product& p, const MatmulArgs& args, void* workspace, gpu::Stream stream) {
    const std::shared_ptr<const Plan> plan = plan_of(p);
    if (!plan->usable) return false;
    const float alpha = 1.0F, beta = p.accumulate ? 1.0F : 0.0F;
    api_.check(str(p),
               api_.matmul(handle_, plan->desc.get(), &alpha, args.b.data(), plan->first.get(),
                           args.a.data(), plan->second.get(), &beta, args.out.data(),
                           plan->out.get(), args.out.data(), plan->out.get(), &plan->algo,
                           workspace, static_cast<size_t>(kWorkspaceBytes), stream));
    return true;
  }

 private:
  Library() { api_.check("start", api_.create(&handle_)); }

  std::shared_ptr<const Plan> plan_of(const Product& p) {
    const Product::Key key = p.key();
    const std::lock_guard lock(mutex_);
    const auto known = plans_.find(key);
    if (known != plans_.end()) return known->second;
    // Sequences of every length would fill it without end; running calls keep theirs.
    if (plans_.size() >= kMaxPlans) plans_.clear();
    return plans_[key] = std::make_shared<const Plan>(make_plan(p));
  }
  Plan make_plan(const Product& p) const;
  void choose(const Product& p, Plan& plan) const;
  Owned<cublasLtMatmulDescOpaque_t> describe(const Product& p) const;
  Owned<cublasLtMatrixLayoutOpaque_t> layout(const Operand& o, Dtype dtype) const;

  Api api_;
  cublasLtHandle_t handle_ = nullptr;
  std::mutex mutex_;
  std::map<Product::Key, std::shared_ptr<const Plan>> plans_;
};

Owned<cublasLtMatmulDescOpaque_t> Library::describe(const Product& p) const {
  cublasLtMatmulDesc_t desc = nullptr;
  // COMPUTE_32F neither rounds f32 operands to TF32 nor sums bf16 products in less than f32.
  api_.check("describe", api_.desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  Owned<cublasLtMatmulDescOpaque_t> owned(desc, api_.desc_destroy);
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, bool transposed) {
    const int32_t value = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    api_.check("describe", api_.desc_set(desc, attribute, &value, sizeof value));
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, p.trans_b);
  set(CUBLASLT_MATMUL_DESC_TRANSB, p.trans_a);
  return owned;
}

Owned<cublasLtMatrixLayoutOpaque_t> Library::layout(const Operand& o, Dtype dtype) const {
  cublasLtMatrixLayout_t made = nullptr;
  api_.check("layout", api_.layout_create(&made, type_of(dtype), static_cast<uint64_t>(o.columns),
                                          static_cast<uint64_t>(o.rows), o.ld));
  return {made, api_.layout_destroy};
}

Plan Library::make_plan(const Product& p) const {
  Plan plan{.desc = describe(p),
            .first = layout(p.b, p.in_type),
            .second = layout(p.a, p.in_type),
            .out = layout(p.out, p.out_type)};
  choose(p, plan);
  return plan;
}

void Library::choose(const Product& p, Plan& plan) const {
  cublasLtMatmulPreference_t preference = nullptr;
  api_.check("preference", api_.preference_create(&preference));
  const Owned<cublasLtMatmulPreferenceOpaque_t> owner(preference, api_.preference_destroy);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    api_.check("preference", api_.preference_set(preference, attribute, &value, sizeof value));
  };
  const auto alignment = [](const Operand& o) { return static_cast<uint32_t>(o.alignment); };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(p.b));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(p.a));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(p.out));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(p.out));
  // Parts of a sum split along K may only meet in f32, in the workspace, in a step of their own:
  // that fixes their order and rounds the result once.
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  if (p.in_type == Dtype::f32) {
    // Whatever the environment says of TF32 and emulation: true f32 has no tensor operations.
    set(CUBLASLT_MATMUL_PREF_IMPL_MASK,
        ~static_cast<uint64_t>(CUBLASLT_NUMERICAL_IMPL_FLAGS_TENSOR_OP_MASK));
  }
  std::array<cublasLtMatmulHeuristicResult_t, 8> results = {};
  int count = 0;
  const cublasStatus_t status = api_.heuristic(
      handle_, plan.desc.get(), plan.first.get(), plan.second.get(), plan.out.get(), plan.out.get(),
      preference, static_cast<int>(results.size()), results.data(), &count);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return;
  api_.check(str(p), status);
  for (int i = 0; i < count && !plan.usable; ++i) {
    const cublasLtMatmulHeuristicResult_t& result = results[static_cast<size_t>(i)];
    plan.usable = result.state == CUBLAS_STATUS_SUCCESS;
    plan.algo = result.algo;
  }
}

}  // namespace

bool cublaslt_matmul(const MatmulArgs& a, void* workspace, gpu::Stream stream) {
  const Product product{.a = Operand::of(a.a),
                        .b = Operand::of(a.b),
                        .out = Operand::of(a.out),
                        .in_type = a.a.dtype(),
                        .out_type = a.out.dtype(),
                        .trans_a = a.trans_a,
                        .trans_b = a.trans_b,
                        .accumulate = a.accumulate};
  return Library::get().run(product, a, workspace, stream);
}

}  // namespace lapidary::ops::cuda
