// What the documentation says of the sources: files, functions, commands and keys that it names.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "lapidary/train/recipe.h"

namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

const fs::path kRoot = LAPIDARY_SOURCE_DIR;

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<fs::path> pages() {
  std::vector<fs::path> out = {kRoot / "README.md", kRoot / "CONTRIBUTING.md",
                               kRoot / "CHANGELOG.md"};
  for (const auto& entry : fs::recursive_directory_iterator(kRoot / "docs")) {
    if (entry.path().extension() == ".md") out.push_back(entry.path());
  }
  return out;
}

// Every match of the expression's first group.
std::vector<std::string> matches(const std::string& text, const std::regex& expression) {
  std::vector<std::string> out;
  for (std::sregex_iterator it(text.begin(), text.end(), expression), end; it != end; ++it) {
    out.push_back((*it)[1].str());
  }
  return out;
}

// The text between a line that begins with `heading` and the next heading of the same or a higher
// level.
std::string section(const std::string& text, const std::string& heading) {
  const size_t start = text.find("\n" + heading);
  if (start == std::string::npos) return "";
  const std::string level = "\n" + heading.substr(0, heading.find(' ') + 1);
  return text.substr(start, text.find(level, start + heading.size() + 1) - start);
}

using Words = std::set<std::string>;

Words words_of(const std::string& text) {
  Words out;
  std::string word;
  for (const char c : text + " ") {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_') {
      word += c;
    } else if (!word.empty()) {
      out.insert(std::move(word));
      word.clear();
    }
  }
  return out;
}

// The words of every source file, file by file, comments included.
const std::vector<Words>& sources() {
  static const std::vector<Words> files = [] {
    std::vector<Words> out;
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / "lapidary")) {
      const std::string extension = entry.path().extension().string();
      if (extension == ".h" || extension == ".cpp") out.push_back(words_of(text_of(entry.path())));
    }
    return out;
  }();
  return files;
}

// Whether one source file has all parts of a name such as Gemma4TextModel::forward.
bool in_sources(const std::string& name) {
  const Words parts = words_of(name);
  return std::any_of(sources().begin(), sources().end(), [&](const Words& file) {
    return std::includes(file.begin(), file.end(), parts.begin(), parts.end());
  });
}

// Names in backticks that sources could have: identifiers, with :: between them or not.
std::vector<std::string> code_names(const std::string& text) {
  static const std::regex name("`([A-Za-z_][A-Za-z0-9_]*(?:::[A-Za-z_][A-Za-z0-9_]*)*)`");
  return matches(text, name);
}

// Cells of the rows of the first table of a text, without its head.
std::vector<std::vector<std::string>> table(const std::string& text) {
  std::vector<std::vector<std::string>> rows;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    if (line.empty() || line[0] != '|') {
      if (!rows.empty()) break;
      continue;
    }
    static const std::regex cell("\\|\\s*([^|]*[^|\\s])\\s*(?=\\|)");
    rows.push_back(matches(line, cell));
  }
  if (rows.size() >= 2) rows.erase(rows.begin(), rows.begin() + 2);
  return rows;
}

std::set<std::string> subcommands() {
  std::set<std::string> out;
  static const std::regex expression("add_subcommand\\(\\s*\"([a-z]+)\"");
  for (const auto& entry : fs::directory_iterator(kRoot / "lapidary/cli")) {
    for (const std::string& name : matches(text_of(entry.path()), expression)) out.insert(name);
  }
  return out;
}

TEST(Docs, LinkedFilesExist) {
  static const std::regex link("\\]\\(([^)#]+)(?:#[^)]*)?\\)");
  std::vector<std::string> broken;
  size_t count = 0;
  for (const fs::path& page : pages()) {
    for (const std::string& target : matches(text_of(page), link)) {
      if (target.rfind("http", 0) == 0) continue;
      ++count;
      if (!fs::exists(page.parent_path() / target)) {
        broken.push_back(fs::relative(page, kRoot).string() + ": " + target);
      }
    }
  }
  EXPECT_THAT(broken, IsEmpty());
  EXPECT_GT(count, 50U);
}

TEST(Docs, NamesOfTheWalkAreInTheSources) {
  const std::string walk = section(text_of(kRoot / "docs/architecture.md"), "## One token");
  const std::vector<std::string> names = code_names(walk);
  ASSERT_GT(names.size(), 50U);
  std::vector<std::string> unknown;
  std::copy_if(names.begin(), names.end(), std::back_inserter(unknown),
               [](const std::string& name) { return !in_sources(name); });
  EXPECT_THAT(unknown, IsEmpty());
}

TEST(Docs, QualifiedNamesAreInTheSources) {
  std::vector<std::string> unknown;
  for (const fs::path& page : pages()) {
    for (const std::string& name : code_names(text_of(page))) {
      if (name.find("::") == std::string::npos || name.rfind("std::", 0) == 0) continue;
      if (!in_sources(name)) unknown.push_back(fs::relative(page, kRoot).string() + ": " + name);
    }
  }
  EXPECT_THAT(unknown, IsEmpty());
}

TEST(Docs, SearchTellsNamesApart) {
  EXPECT_TRUE(in_sources("Gemma4TextModel::forward"));
  EXPECT_FALSE(in_sources("Gemma4TextModel::frobnicate"));
  EXPECT_FALSE(in_sources("no_such_function"));
}

TEST(Docs, CommandsOfTheReadmeAreTheCommandsOfTheProgram) {
  std::set<std::string> named;
  static const std::regex command("`lapidary ([a-z]+)");
  const std::string commands = section(text_of(kRoot / "README.md"), "## Commands");
  for (const auto& row : table(commands)) {
    ASSERT_THAT(row, Not(IsEmpty()));
    const std::vector<std::string> found = matches(row[0], command);
    ASSERT_THAT(found, Not(IsEmpty())) << row[0];
    named.insert(found.begin(), found.end());
  }
  EXPECT_EQ(named, subcommands());
}

TEST(Docs, ExampleCommandsAreCommandsOfTheProgram) {
  static const std::regex use("build/bin/lapidary ([a-z]+)");
  size_t count = 0;
  for (const fs::path& page : pages()) {
    for (const std::string& name : matches(text_of(page), use)) {
      EXPECT_THAT(subcommands(), Contains(name)) << page;
      ++count;
    }
  }
  EXPECT_GT(count, 3U);
}

// docs/recipes.md carries the table of `lapidary recipe --keys`, byte for byte.
TEST(Docs, RecipeKeysAreThoseOfTheProgram) {
  const std::string page = text_of(kRoot / "docs/recipes.md");
  EXPECT_NE(page.find(lapidary::recipe_reference()), std::string::npos)
      << "replace the table of docs/recipes.md by the output of `lapidary recipe --keys`";
}

TEST(Docs, RecipesOfThePagesAreRight) {
  static const std::regex block("```yaml\\n([^`]*)```");
  const std::string page = text_of(kRoot / "README.md");
  const std::vector<std::string> recipes = matches(page, block);
  ASSERT_THAT(recipes, SizeIs(1));
  const lapidary::Recipe recipe = lapidary::parse_recipe(recipes[0], "README.md");
  EXPECT_THAT(recipe.notes, IsEmpty());
}

}  // namespace
