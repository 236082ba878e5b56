#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "lapidary/core/error.h"
#include "lapidary/data/tokenizer.h"

namespace lapidary::testing {

inline std::string fixture(const std::string& name) {
  return std::string(LAPIDARY_SOURCE_DIR) + "/tests/fixtures/text/" + name;
}

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path, "can't be read");
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// A folder of this process: tests run side by side. Ends in a slash; goes when the process ends.
inline const std::string& own_folder() {
  struct Folder {
    std::string path = ::testing::TempDir() + "lapidary-data-" + std::to_string(::getpid()) + "/";
    Folder() { std::filesystem::create_directories(path); }
    ~Folder() {
      std::error_code ignored;
      std::filesystem::remove_all(path, ignored);
    }
  };
  static const Folder folder;
  return folder.path;
}

inline std::string write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

// A tokenizer of the Gemma kind with a handful of tokens: ids 0-3 special, 4-259 bytes, then the
// characters and what the merges make of them.
inline nlohmann::json tiny_tokenizer_json() {
  nlohmann::json vocab = {{"<pad>", 0}, {"<eos>", 1}, {"<bos>", 2}, {"<unk>", 3}};
  for (int byte = 0; byte < 256; ++byte) {
    const char* digits = "0123456789ABCDEF";
    vocab[std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">"] = 4 + byte;
  }
  int next = 260;
  for (const char* token : {"▁", "a", "b", "c", ">", "ab", "▁a", "▁ab", "abc", "▁▁", ">▁"}) {
    vocab[token] = next++;
  }
  nlohmann::json added = nlohmann::json::array();
  for (const char* token : {"<pad>", "<eos>", "<bos>", "<unk>"}) {
    added.push_back({{"id", vocab[token]},
                     {"content", token},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  return {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}}},
      {"pre_tokenizer",
       {{"type", "Split"},
        {"pattern", {{"String", " "}}},
        {"behavior", "MergedWithPrevious"},
        {"invert", false}}},
      {"post_processor",
       {{"type", "TemplateProcessing"},
        {"single",
         {{{"SpecialToken", {{"id", "<bos>"}, {"type_id", 0}}}},
          {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
        {"special_tokens", {{"<bos>", {{"id", "<bos>"}, {"ids", {2}}, {"tokens", {"<bos>"}}}}}}}},
      {"decoder",
       {{"type", "Sequence"},
        {"decoders",
         {{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
          {{"type", "ByteFallback"}},
          {{"type", "Fuse"}}}}}},
      {"model",
       {{"type", "BPE"},
        {"unk_token", "<unk>"},
        {"fuse_unk", true},
        {"byte_fallback", true},
        {"vocab", vocab},
        {"merges",
         nlohmann::json::array(
             {{"a", "b"}, {"▁", "a"}, {"▁", "ab"}, {"ab", "c"}, {"▁", "▁"}, {">", "▁"}})}}}};
}

inline Tokenizer tiny_tokenizer() {
  return Tokenizer::from_json(tiny_tokenizer_json().dump(), "tiny");
}

// The message of the Error that f throws; empty when it throws none.
template <typename F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace lapidary::testing
