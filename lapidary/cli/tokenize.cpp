#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "lapidary/cli/commands.h"
#include "lapidary/core/error.h"
#include "lapidary/data/tokenizer.h"

namespace lapidary::cli {
namespace {

std::string text_of(const std::string& line, int64_t number) {
  const std::string where = "standard input:" + std::to_string(number);
  const auto json = nlohmann::json::parse(line, nullptr, false);
  if (json.is_discarded() || !json.is_object()) fail(where, "is not a JSON object");
  const auto text = json.find("text");
  if (text == json.end() || !text->is_string()) {
    fail(where, "has no \"text\"", "write {\"text\": \"...\"}");
  }
  return text->get<std::string>();
}

void run(const std::string& path) {
  const Tokenizer tokenizer = Tokenizer::load(path);
  std::string line;
  for (int64_t number = 1; std::getline(std::cin, line); ++number) {
    if (line.empty()) continue;
    const std::vector<int64_t> ids = tokenizer.encode(text_of(line, number));
    nlohmann::ordered_json out;
    out["ids"] = ids;
    out["decoded"] = tokenizer.decode(ids, false);
    std::cout << out.dump() << "\n";
  }
  std::cout.flush();
}

}  // namespace

void add_tokenize(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "tokenize", "JSON lines {\"text\": ..} in, {\"ids\": [..], \"decoded\": ..} out");
  const auto path = std::make_shared<std::string>();
  command->add_option("--tokenizer", *path, "tokenizer.json or the folder that holds it")
      ->required();
  command->callback([=] { run(*path); });
}

}  // namespace lapidary::cli
