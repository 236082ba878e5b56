// Any bytes either parse, and then every element can be read, or throw lapidary::Error.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "lapidary/checkpoint/safetensors.h"
#include "lapidary/core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lapidary;
  try {
    const SafetensorsHeader header = parse_safetensors(reinterpret_cast<const std::byte*>(data),
                                                       static_cast<int64_t>(size), "fuzz");
    for (const TensorEntry& entry : header.entries) {
      const int64_t n = entry.shape.numel();
      const std::optional<Dtype> core = core_dtype_of(entry.dtype);
      const bool integer =
          !core || *core == Dtype::i64 || *core == Dtype::i32 || *core == Dtype::u8;
      std::vector<double> out(static_cast<size_t>(n) + 1);
      convert(entry, Tensor(out.data(), integer ? Dtype::i64 : Dtype::f64, entry.shape));
    }
  } catch (const Error&) {
  }
  return 0;
}
