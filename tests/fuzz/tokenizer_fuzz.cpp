// Input: a tokenizer.json, a NUL byte, a text. Whatever loads must encode and decode without fault,
// the same way with and without spans and from the cache.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "lapidary/core/error.h"
#include "lapidary/data/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using lapidary::Tokenizer;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t split = input.find('\0');
  const std::string_view text = split == input.npos ? "ab <bos>\xC3\xA9" : input.substr(split + 1);
  try {
    const Tokenizer tokenizer = Tokenizer::from_json(input.substr(0, split), "fuzz");
    const std::vector<int64_t> ids = tokenizer.encode(text, true);
    if (tokenizer.encode(text, true) != ids) std::abort();
    if (tokenizer.encode_with_spans(text, true).ids != ids) std::abort();
    lapidary::StreamDecoder decoder(tokenizer, false);
    std::string streamed;
    for (const int64_t id : ids) {
      if (!tokenizer.token(id)) std::abort();
      streamed += decoder.push(id);
    }
    if (streamed + decoder.finish() != tokenizer.decode(ids, false)) std::abort();
  } catch (const lapidary::Error&) {
  }
  return 0;
}
