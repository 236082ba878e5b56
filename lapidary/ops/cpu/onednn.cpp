#ifdef LAPIDARY_ONEDNN
#include "lapidary/ops/cpu/onednn.h"

#include <omp.h>

#include <array>
#include <list>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>

#include "lapidary/core/buffer.h"
#include "lapidary/core/error.h"

namespace lapidary::ops::cpu {
namespace {

constexpr size_t kMaxPrimitives = 512;

using Key = std::array<int64_t, 8>;

struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t hash = 0xcbf29ce484222325U;
    for (const int64_t word : key) {
      hash = (hash ^ static_cast<uint64_t>(word)) * 0x9e3779b97f4a7c15U;
      hash ^= hash >> 29;
    }
    return hash;
  }
};

// A row stride says nothing where there is one row; a canonical one keeps descriptors valid.
int64_t stride_of(int64_t ld, int64_t rows, int64_t columns) { return rows == 1 ? columns : ld; }

Key key_of(const Gemm& g) {
  const int64_t flags = (g.trans_a ? 1 : 0) | (g.trans_b ? 2 : 0) | (g.accumulate ? 4 : 0) |
                        (g.in == Dtype::bf16 ? 8 : 0) | (g.out == Dtype::bf16 ? 16 : 0);
  const int64_t threads = omp_in_parallel() != 0 ? 1 : omp_get_max_threads();
  return {g.m,
          g.n,
          g.k,
          g.trans_a ? stride_of(g.lda, g.k, g.m) : stride_of(g.lda, g.m, g.k),
          g.trans_b ? stride_of(g.ldb, g.n, g.k) : stride_of(g.ldb, g.k, g.n),
          stride_of(g.ldc, g.m, g.n),
          flags,
          threads};
}

dnnl::memory::data_type type_of(Dtype dtype) {
  return dtype == Dtype::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

dnnl::memory::desc matrix(int64_t rows, int64_t columns, Dtype dtype, int64_t ld, bool transposed) {
  using Dims = dnnl::memory::dims;
  return {Dims{rows, columns}, type_of(dtype), transposed ? Dims{1, ld} : Dims{ld, 1}};
}

// The constructor changed between oneDNN 2 (Debian 12) and 3 (Ubuntu 24.04).
dnnl::matmul::primitive_desc describe(const dnnl::engine& engine, const dnnl::memory::desc& a,
                                      const dnnl::memory::desc& b, const dnnl::memory::desc& c,
                                      const dnnl::primitive_attr& attr) {
#if DNNL_VERSION_MAJOR >= 3
  return {engine, a, b, c, attr, true};
#else
  return {dnnl::matmul::desc(a, b, c), attr, engine, true};
#endif
}

const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// A primitive with memory objects that are pointed at the operands of each call.
struct Product {
  explicit Product(const Gemm& g, const Key& key) {
    const dnnl::engine& engine = cpu_engine();
    const auto a_desc = matrix(g.m, g.k, g.in, key[3], g.trans_a);
    const auto b_desc = matrix(g.k, g.n, g.in, key[4], g.trans_b);
    const auto c_desc = matrix(g.m, g.n, g.out, key[5], false);
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (g.accumulate) {
      dnnl::post_ops ops;
      ops.append_sum(1.0F);
      attr.set_post_ops(ops);
    }
    const auto desc = describe(engine, a_desc, b_desc, c_desc, attr);
    if (!desc) return;
    primitive = dnnl::matmul(desc);
    a = dnnl::memory(a_desc, engine, nullptr);
    b = dnnl::memory(b_desc, engine, nullptr);
    c = dnnl::memory(c_desc, engine, nullptr);
    scratch = dnnl::memory(desc.scratchpad_desc(), engine, nullptr);
    scratch_bytes = static_cast<int64_t>(desc.scratchpad_desc().get_size());
  }

  dnnl::primitive primitive;  // empty: no kernel
  dnnl::memory a, b, c, scratch;
  int64_t scratch_bytes = 0;
};

class Products {
 public:
  // The product for a call, made at its first use; the one unused for longest makes room.
  Product& get(const Gemm& g) {
    const Key key = key_of(g);
    const auto found = index_.find(key);
    if (found != index_.end()) {
      entries_.splice(entries_.begin(), entries_, found->second);
      return entries_.front().product;
    }
    entries_.push_front({key, Product(g, key)});
    index_[key] = entries_.begin();
    if (entries_.size() > kMaxPrimitives) {
      index_.erase(entries_.back().key);
      entries_.pop_back();
    }
    return entries_.front().product;
  }

  void run(Product& p, const Gemm& g) {
    if (p.scratch_bytes > buffer_.bytes()) buffer_ = Buffer(Backend::cpu, p.scratch_bytes);
    p.a.set_data_handle(const_cast<void*>(g.a));
    p.b.set_data_handle(const_cast<void*>(g.b));
    p.c.set_data_handle(g.c);
    p.scratch.set_data_handle(buffer_.data());
    const std::array<dnnl_exec_arg_t, 4> args = {{{DNNL_ARG_SRC, p.a.get()},
                                                  {DNNL_ARG_WEIGHTS, p.b.get()},
                                                  {DNNL_ARG_DST, p.c.get()},
                                                  {DNNL_ARG_SCRATCHPAD, p.scratch.get()}}};
    dnnl::error::wrap_c_api(dnnl_primitive_execute(p.primitive.get(), stream_.get(),
                                                   static_cast<int>(args.size()), args.data()),
                            "could not execute a product");
    stream_.wait();
  }

 private:
  struct Entry {
    Key key;
    Product product;
  };
  dnnl::stream stream_{cpu_engine()};
  std::list<Entry> entries_;
  std::unordered_map<Key, std::list<Entry>::iterator, KeyHash> index_;
  Buffer buffer_;
};

}  // namespace

bool onednn_gemm(const Gemm& g) {
  try {
    static thread_local Products products;
    Product& product = products.get(g);
    if (!product.primitive) return false;
    products.run(product, g);
    return true;
  } catch (const dnnl::error& e) {
    fail("gemm [" + std::to_string(g.m) + ", " + std::to_string(g.k) + "] x [" +
             std::to_string(g.k) + ", " + std::to_string(g.n) + "]",
         std::string("oneDNN: ") + e.what());
  }
}

}  // namespace lapidary::ops::cpu
#endif
