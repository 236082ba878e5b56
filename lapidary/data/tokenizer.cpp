#include "lapidary/data/tokenizer.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <mutex>

#include "lapidary/core/error.h"
#include "lapidary/data/added_tokens.h"
#include "lapidary/data/bpe.h"
#include "lapidary/data/tokenizer_json.h"
#include "lapidary/data/utf8.h"

namespace lapidary {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 31U;

std::string read_file(const std::string& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  if (error || !file) fail(path, "can't be read", "give a tokenizer.json or the folder with one");
  std::string text(size, '\0');
  file.read(text.data(), static_cast<std::streamsize>(size));
  if (!file) fail(path, "can't be read to its end");
  return text;
}

void replace_all(std::string& text, const Replacement& replacement) {
  size_t at = text.find(replacement.from);
  if (at == text.npos) return;
  std::string out;
  size_t done = 0;
  for (; at != text.npos; at = text.find(replacement.from, done)) {
    out.append(text, done, at - done).append(replacement.to);
    done = at + replacement.from.size();
  }
  out.append(text, done);
  text = std::move(out);
}

// The same on a text whose bytes remember where they come from: origin[i] is the offset of byte i
// in the original, origin[size] the original's size.
void replace_all(std::string& text, std::vector<int64_t>& origin, const Replacement& replacement) {
  std::string out;
  std::vector<int64_t> out_origin;
  for (size_t at = 0; at < text.size();) {
    if (text.compare(at, replacement.from.size(), replacement.from) == 0) {
      out.append(replacement.to);
      out_origin.insert(out_origin.end(), replacement.to.size(), origin[at]);
      at += replacement.from.size();
    } else {
      out.push_back(text[at]);
      out_origin.push_back(origin[at]);
      ++at;
    }
  }
  out_origin.push_back(origin.back());
  text = std::move(out);
  origin = std::move(out_origin);
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// The byte that a token <0xNN> stands for, -1 for any other token. A sign in front of one digit
// counts as a number, as in Hugging Face tokenizers.
int byte_of_token(std::string_view token) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
  const int high = token[3] == '+' ? 0 : hex_digit(token[3]);
  const int low = hex_digit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

// Where encoding leaves its result: ids, and spans when wanted.
struct Sink {
  std::vector<int64_t>& ids;
  std::vector<TokenSpan>* spans;
  void push(int64_t id, int64_t begin, int64_t end) {
    ids.push_back(id);
    if (spans != nullptr) spans->push_back({begin, end});
  }
};

struct Scratch {
  BpeScratch bpe;
  std::string normalized;
  std::vector<int64_t> origin;
  std::vector<Symbol> symbols;
};

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(TokenizerSpec&& given) : spec(std::move(given)), bpe(spec, spec.vocabulary) {
    special.resize(static_cast<size_t>(spec.vocabulary.size()));
    for (const AddedToken& token : spec.added) {
      special[static_cast<size_t>(token.id)] = token.special;
      std::string content = token.content;
      if (token.normalized) {
        for (const Replacement& r : spec.normalizer) replace_all(content, r);
      }
      if (!content.empty()) (token.normalized ? normal : raw).add(std::move(content), token.id);
    }
    raw.finish();
    normal.finish();
    spec.merges = {};
  }

  std::unique_ptr<Scratch> borrow() const {
    const std::lock_guard lock(mutex);
    if (idle.empty()) return std::make_unique<Scratch>();
    std::unique_ptr<Scratch> scratch = std::move(idle.back());
    idle.pop_back();
    return scratch;
  }
  void give_back(std::unique_ptr<Scratch> scratch) const {
    const std::lock_guard lock(mutex);
    idle.push_back(std::move(scratch));
  }

  void encode(std::string_view text, bool add_special_tokens, Sink sink) const;
  void encode_piece(std::string_view piece, int64_t offset, Scratch& scratch, Sink sink) const;
  void encode_normalized(size_t begin, size_t end, Scratch& scratch, Sink sink) const;

  TokenizerSpec spec;
  Bpe bpe;
  AddedTokenMatcher raw;
  AddedTokenMatcher normal;
  std::vector<bool> special;
  // Working memory goes from call to call, so that its cache of chunks stays warm; every call in
  // flight has its own.
  mutable std::mutex mutex;
  mutable std::vector<std::unique_ptr<Scratch>> idle;
};

void Tokenizer::Impl::encode_normalized(size_t begin, size_t end, Scratch& scratch,
                                        Sink sink) const {
  scratch.symbols.clear();
  bpe.encode(std::string_view(scratch.normalized).substr(begin, end - begin), scratch.bpe,
             scratch.symbols);
  if (sink.spans == nullptr) {
    for (const Symbol& symbol : scratch.symbols) sink.ids.push_back(symbol.id);
    return;
  }
  size_t at = begin;
  for (const Symbol& symbol : scratch.symbols) {
    sink.push(symbol.id, scratch.origin[at], scratch.origin[at + symbol.length]);
    at += symbol.length;
  }
}

void Tokenizer::Impl::encode_piece(std::string_view piece, int64_t offset, Scratch& scratch,
                                   Sink sink) const {
  scratch.normalized.assign(piece);
  if (sink.spans != nullptr) {
    scratch.origin.resize(piece.size() + 1);
    for (size_t i = 0; i <= piece.size(); ++i) {
      scratch.origin[i] = offset + static_cast<int64_t>(i);
    }
    for (const Replacement& r : spec.normalizer) replace_all(scratch.normalized, scratch.origin, r);
  } else {
    for (const Replacement& r : spec.normalizer) replace_all(scratch.normalized, r);
  }
  if (scratch.normalized.size() >= kMaxTextBytes) fail("tokenizer", "the text is 2 GiB or larger");
  size_t done = 0;
  while (!normal.empty()) {
    const AddedTokenMatcher::Match match = normal.find(scratch.normalized, done);
    if (match.length == 0) break;
    encode_normalized(done, match.begin, scratch, sink);
    const size_t end = match.begin + match.length;
    if (sink.spans != nullptr) {
      sink.push(match.id, scratch.origin[match.begin], scratch.origin[end]);
    } else {
      sink.ids.push_back(match.id);
    }
    done = end;
  }
  encode_normalized(done, scratch.normalized.size(), scratch, sink);
}

void Tokenizer::Impl::encode(std::string_view text, bool add_special_tokens, Sink sink) const {
  const auto size = static_cast<int64_t>(text.size());
  const int64_t bad = first_invalid_utf8(text);
  if (bad < size) {
    fail("tokenizer", fmt::format("the text is not UTF-8 at byte {}", bad), "convert it to UTF-8");
  }
  std::unique_ptr<Scratch> scratch = borrow();
  if (add_special_tokens) {
    for (const int64_t id : spec.prefix) sink.push(id, 0, 0);
  }
  size_t done = 0;
  while (done < text.size()) {
    const AddedTokenMatcher::Match match = raw.find(text, done);
    if (match.begin > done) {
      encode_piece(text.substr(done, match.begin - done), static_cast<int64_t>(done), *scratch,
                   sink);
    }
    done = match.begin + match.length;
    if (match.length > 0) {
      sink.push(match.id, static_cast<int64_t>(match.begin), static_cast<int64_t>(done));
    }
  }
  if (add_special_tokens) {
    for (const int64_t id : spec.suffix) sink.push(id, size, size);
  }
  give_back(std::move(scratch));
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&& other) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&& other) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::load(const std::string& path_or_dir) {
  std::string path = path_or_dir;
  if (std::filesystem::is_directory(path)) path += "/tokenizer.json";
  return from_json(read_file(path), path);
}

Tokenizer Tokenizer::from_json(std::string_view json, const std::string& where) {
  return Tokenizer(std::make_unique<Impl>(parse_tokenizer_json(json, where)));
}

std::vector<int64_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  std::vector<int64_t> ids;
  impl_->encode(text, add_special_tokens, {ids, nullptr});
  return ids;
}

Encoding Tokenizer::encode_with_spans(std::string_view text, bool add_special_tokens) const {
  Encoding encoding;
  impl_->encode(text, add_special_tokens, {encoding.ids, &encoding.spans});
  return encoding;
}

std::string Tokenizer::decode(std::span<const int64_t> ids, bool skip_special_tokens) const {
  std::string text;
  StreamDecoder decoder(*this, skip_special_tokens);
  for (const int64_t id : ids) decoder.push_to(id, text);
  decoder.flush_bytes(text);
  return text;
}

std::optional<int64_t> Tokenizer::id_of(std::string_view token) const {
  const std::optional<uint32_t> id = impl_->spec.vocabulary.find(token);
  return id ? std::optional<int64_t>(*id) : std::nullopt;
}

std::optional<std::string_view> Tokenizer::token(int64_t id) const {
  if (!impl_->spec.vocabulary.has(id)) return std::nullopt;
  return impl_->spec.vocabulary.token(id);
}

bool Tokenizer::is_special(int64_t id) const {
  return impl_->spec.vocabulary.has(id) && impl_->special[static_cast<size_t>(id)];
}

int64_t Tokenizer::vocab_size() const { return impl_->spec.vocabulary.size(); }

void StreamDecoder::flush_bytes(std::string& out) {
  if (bytes_.empty()) return;
  if (first_invalid_utf8(bytes_) == static_cast<int64_t>(bytes_.size())) {
    out += bytes_;
  } else {
    for (size_t i = 0; i < bytes_.size(); ++i) out += "\xEF\xBF\xBD";
  }
  bytes_.clear();
}

void StreamDecoder::push_to(int64_t id, std::string& out) {
  const Tokenizer::Impl& impl = *tokenizer_.impl_;
  if (!impl.spec.vocabulary.has(id)) return;
  if (skip_special_ && impl.special[static_cast<size_t>(id)]) return;
  std::string text(impl.spec.vocabulary.token(id));
  for (const Replacement& replacement : impl.spec.decoder) replace_all(text, replacement);
  const int byte = impl.spec.decode_bytes ? byte_of_token(text) : -1;
  if (byte >= 0) {
    bytes_.push_back(static_cast<char>(byte));
    return;
  }
  flush_bytes(out);
  out += text;
}

std::string StreamDecoder::push(int64_t id) {
  std::string out;
  push_to(id, out);
  return out;
}

std::string StreamDecoder::finish() {
  std::string out;
  flush_bytes(out);
  return out;
}

}  // namespace lapidary
