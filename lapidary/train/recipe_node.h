#pragma once

#include <string>
#include <vector>

#include "lapidary/core/error.h"

namespace lapidary {

// One node of a YAML document, with the place it came from. Aliases and merge keys ("<<") are
// expanded, ${NAME} in scalars is replaced from the environment.
struct RecipeNode {
  enum class Kind { null, scalar, list, mapping };

  Kind kind = Kind::null;
  std::string text = {};   // of a scalar
  bool quoted = false;     // "true" in quotes is text
  std::string where = {};  // "recipes/x.yaml:14", or the option that set it: "--optimizer.lr"
  std::string key = {};    // its name, when it is an entry of a mapping
  std::vector<RecipeNode> items = {};    // of a list
  std::vector<RecipeNode> entries = {};  // of a mapping, in their order

  // A scalar, or the kind in words: "a list", "a mapping", "nothing".
  std::string shown() const;
  RecipeNode* find(const std::string& name);  // entry; null when there is none
  // Adds an entry, and returns it.
  RecipeNode& add(const std::string& name, RecipeNode value);
};

// Parses one document; `name` is the file's name in messages. Syntax errors, nesting and size
// beyond reason throw Error; duplicate keys and unset environment variables are added to problems.
RecipeNode parse_yaml(const std::string& text, const std::string& name, Problems& problems);

// Parses the value of an option `--key=value` as YAML and puts it at `key` (dotted), making the
// mappings on its way. Mistakes are added to problems.
void override_node(RecipeNode& root, const std::string& key, const std::string& value,
                   Problems& problems);

// The node as JSON text, scalars typed as YAML types them.
std::string to_json(const RecipeNode& node);

}  // namespace lapidary
