// The shape of the source tree: which folder may include which, and how long a file may be.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

const std::vector<std::string> kOrder = {"core", "comm",   "checkpoint", "ops",   "parallel",
                                         "nn",   "models", "data",       "train", "cli"};
constexpr size_t kMaxLines = 600;

size_t rank_of(const std::string& folder) {
  return static_cast<size_t>(std::find(kOrder.begin(), kOrder.end(), folder) - kOrder.begin());
}

bool may_include(const std::string& from, const std::string& to) {
  if (from == to) return true;
  // Files and checkpoints know nothing of models or operations, so that they serve alone.
  if (from == "data" || from == "checkpoint") return to == "core" || to == "comm";
  return rank_of(to) < rank_of(from);
}

// What is wrong with the text of lapidary/FOLDER/...: one message for each line or file.
std::vector<std::string> complaints(const std::string& folder, const std::string& text) {
  static const std::regex include(R"re(^\s*#\s*include\s*"([^"]*)")re");
  std::vector<std::string> found;
  std::istringstream stream(text);
  size_t number = 0;
  std::string first;
  for (std::string line; std::getline(stream, line);) {
    if (++number <= 5) first += line + "\n";
    const std::string at = std::to_string(number) + ": ";
    if (!line.empty() && line.back() == '\r') found.push_back(at + "carriage return");
    if (line.find('\t') != std::string::npos) found.push_back(at + "tab");
    std::smatch match;
    if (!std::regex_search(line, match, include)) continue;
    const fs::path path(match[1].str());
    auto part = path.begin();
    if (part == path.end() || *part != "lapidary") {
      found.push_back(at + "quoted include outside lapidary/");
      continue;
    }
    const std::string target = (++part)->string();
    if (rank_of(target) == kOrder.size()) {
      found.push_back(at + "unknown folder " + target);
    } else if (!may_include(folder, target)) {
      found.push_back(at + folder + " may not include " + target);
    }
  }
  // A longer file says why in its first lines: "Length: ...".
  if (number > kMaxLines && first.find("Length:") == std::string::npos) {
    found.push_back(std::to_string(number) + " lines and no reason");
  }
  return found;
}

// Decodes UTF-8 strictly: no overlong forms, no surrogates, no control characters but newline
// (tabs are reported by line), nothing above U+10FFFF.
bool is_clean_utf8(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const int extra = lead < 0x80 ? 0 : lead < 0xc2 ? -1 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
    if (extra < 0 || lead > 0xf4 || i + static_cast<size_t>(extra) >= text.size()) return false;
    uint32_t code = extra == 0 ? lead : lead & (0x3fU >> extra);
    for (int k = 1; k <= extra; ++k) {
      const auto next = static_cast<unsigned char>(text[i + static_cast<size_t>(k)]);
      if ((next & 0xc0) != 0x80) return false;
      code = (code << 6) | (next & 0x3fU);
    }
    if (extra == 2 && (code < 0x800 || (code >= 0xd800 && code < 0xe000))) return false;
    if (extra == 3 && (code < 0x10000 || code > 0x10ffff)) return false;
    if (code == 0x7f || code == 0xfeff || (code < 0x20 && code != '\n' && code != '\t')) {
      return false;
    }
    i += static_cast<size_t>(extra) + 1;
  }
  return true;
}

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(Layers, EveryFileKeepsTheOrderAndTheLength) {
  const fs::path root = fs::path(LAPIDARY_SOURCE_DIR) / "lapidary";
  std::vector<std::string> found;
  size_t files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    const fs::path relative = fs::relative(entry.path(), root);
    const std::string extension = relative.extension().string();
    if (extension != ".h" && extension != ".cpp" && extension != ".cu" && extension != ".cuh") {
      continue;
    }
    ++files;
    const std::string folder = relative.begin()->string();
    const std::string text = read(entry.path());
    if (rank_of(folder) == kOrder.size()) found.push_back(relative.string() + ": unknown folder");
    if (!is_clean_utf8(text)) found.push_back(relative.string() + ": not clean UTF-8");
    for (const std::string& message : complaints(folder, text)) {
      found.push_back(relative.string() + ":" + message);
    }
  }
  EXPECT_GT(files, 20U);
  EXPECT_THAT(found, IsEmpty());
}

TEST(Layers, TheCheckItselfFindsMistakes) {
  EXPECT_THAT(complaints("ops", "#include \"lapidary/core/error.h\"\n#include <vector>\n"),
              IsEmpty());
  EXPECT_THAT(complaints("ops", "\n#include \"lapidary/nn/linear.h\"\n"),
              ElementsAre("2: ops may not include nn"));
  EXPECT_THAT(complaints("data", "#include \"lapidary/ops/norm.h\"\n"),
              ElementsAre("1: data may not include ops"));
  EXPECT_THAT(complaints("checkpoint", "# include \"lapidary/data/jsonl.h\"\n"),
              ElementsAre("1: checkpoint may not include data"));
  EXPECT_THAT(complaints("train", "#include \"lapidary/data/jsonl.h\"\n"), IsEmpty());
  EXPECT_THAT(complaints("nn", "#include \"linear.h\"\n#include \"lapidary/misc/x.h\"\n"),
              ElementsAre("1: quoted include outside lapidary/", "2: unknown folder misc"));
  std::string lines;
  for (size_t i = 0; i <= kMaxLines; ++i) lines += "\n";
  EXPECT_THAT(complaints("nn", lines), ElementsAre("601 lines and no reason"));
  EXPECT_THAT(complaints("nn", "// Length: one table.\n" + lines), IsEmpty());
}

TEST(Layers, TheUtf8CheckFindsMistakes) {
  EXPECT_TRUE(is_clean_utf8("a\n\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"));
  EXPECT_FALSE(is_clean_utf8("\xc0\xaf"));          // overlong
  EXPECT_FALSE(is_clean_utf8("\xe0\x80\xaf"));      // overlong
  EXPECT_FALSE(is_clean_utf8("\xed\xa0\x80"));      // surrogate
  EXPECT_FALSE(is_clean_utf8("\xf4\x90\x80\x80"));  // above U+10FFFF
  EXPECT_FALSE(is_clean_utf8("\xe2\x82"));          // cut short
  EXPECT_FALSE(is_clean_utf8(std::string("a\0b", 3)));
}

}  // namespace
