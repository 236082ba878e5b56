#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lapidary {

// The bytes [begin, end) of the encoded text that a token stands for.
struct TokenSpan {
  int64_t begin = 0;
  int64_t end = 0;
};

struct Encoding {
  std::vector<int64_t> ids;
  // As many as ids, in order; they tile the text where every code point has a token, bytes or an
  // `unk` (without any of the three a code point leaves no trace, and later spans are too early).
  std::vector<TokenSpan> spans;
};

// A tokenizer as a Hugging Face tokenizer.json describes it: byte-pair encoding with byte fallback
// and added tokens (the Gemma kind), exact to the id. Immutable after loading; every method may be
// called from several threads at once. A moved-from object may only be destroyed or assigned to.
class Tokenizer {
 public:
  // A tokenizer.json or the folder that holds one. Throws Error (with the field's name) for a file
  // that is missing, malformed, or asks for what this class does not do.
  static Tokenizer load(const std::string& path_or_dir);
  // From the text of a tokenizer.json; `where` names it in errors.
  static Tokenizer from_json(std::string_view json, const std::string& where);

  Tokenizer(Tokenizer&& other) noexcept;
  Tokenizer& operator=(Tokenizer&& other) noexcept;
  ~Tokenizer();

  // Added tokens are recognised in the text, special ones too. add_special_tokens puts what the
  // file's post_processor says around the text (Gemma: <bos> before it).
  // Throws Error when the text is not UTF-8 or not below 2 GiB.
  std::vector<int64_t> encode(std::string_view text, bool add_special_tokens = false) const;
  Encoding encode_with_spans(std::string_view text, bool add_special_tokens = false) const;

  // Ids that name no token give no text. A run of byte tokens that is not UTF-8 as a whole becomes
  // one U+FFFD per byte.
  std::string decode(std::span<const int64_t> ids, bool skip_special_tokens) const;

  std::optional<int64_t> id_of(std::string_view token) const;
  // The token's own text; nullopt when no token has this id.
  std::optional<std::string_view> token(int64_t id) const;
  bool is_special(int64_t id) const;
  // The largest id + 1.
  int64_t vocab_size() const;

 private:
  friend class StreamDecoder;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Decodes ids one at a time. What push() and finish() return, one after the other, is exactly what
// Tokenizer::decode gives for all ids at once; so a run of byte tokens is held back until it ends.
class StreamDecoder {
 public:
  // `tokenizer` must outlive this.
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
      : tokenizer_(tokenizer), skip_special_(skip_special_tokens) {}

  std::string push(int64_t id);
  // The text that is still held back; the decoder is then as new.
  std::string finish();

 private:
  friend class Tokenizer;
  void push_to(int64_t id, std::string& out);
  void flush_bytes(std::string& out);

  const Tokenizer& tokenizer_;
  bool skip_special_;
  std::string bytes_;  // the run of byte tokens so far
};

}  // namespace lapidary
