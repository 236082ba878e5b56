#include "lapidary/train/recipe_node.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "lapidary/train/recipe_scalar.h"

namespace lapidary {
namespace {

// Far above any recipe, far below what hurts: aliases can make a small text expand without bound.
constexpr size_t kMaxBytes = size_t{4} << 20;
constexpr int kMaxNodes = 100000;
constexpr int kMaxDepth = 64;

class Reader {
 public:
  Reader(std::string name, bool lines, Problems& problems)
      : name_(std::move(name)), lines_(lines), problems_(problems) {}

  RecipeNode read(const YAML::Node& node, int depth) {
    RecipeNode out;
    out.where = where(node.Mark());
    if (depth > kMaxDepth) fail(out.where, "nested too deeply", "use fewer levels");
    if (++nodes_ > kMaxNodes) fail(name_, "too many values", "use fewer aliases");
    if (node.IsScalar()) {
      out.kind = RecipeNode::Kind::scalar;
      out.quoted = node.Tag() == "!";
      out.text = expand(node.Scalar(), out.where);
      if (!out.quoted && is_null_word(out.text)) out.kind = RecipeNode::Kind::null;
    } else if (node.IsSequence()) {
      out.kind = RecipeNode::Kind::list;
      for (const YAML::Node& item : node) out.items.push_back(read(item, depth + 1));
    } else if (node.IsMap()) {
      out.kind = RecipeNode::Kind::mapping;
      read_mapping(node, depth, out);
    }
    return out;
  }

  std::string where(const YAML::Mark& mark) const {
    return lines_ && !mark.is_null() ? name_ + ":" + std::to_string(mark.line + 1) : name_;
  }

 private:
  void read_mapping(const YAML::Node& node, int depth, RecipeNode& out) {
    std::vector<RecipeNode> merged;
    for (const auto& entry : node) {
      const std::string at = where(entry.first.Mark());
      if (!entry.first.IsScalar()) {
        problems_.add(at, "a key is a list or a mapping", "use a word");
        continue;
      }
      const std::string key = entry.first.Scalar();
      RecipeNode value = read(entry.second, depth + 1);
      if (key == "<<") {
        merged.push_back(std::move(value));
      } else if (out.find(key) != nullptr) {
        problems_.add(at, key + " is given twice", "keep one of them");
      } else {
        // A value may start on the line below its key, or be nothing at all.
        value.where = at;
        out.add(key, std::move(value));
      }
    }
    for (const RecipeNode& source : merged) merge(source, out);
  }

  // Entries of a merge key come after, and give way to, those written in the mapping itself.
  void merge(const RecipeNode& source, RecipeNode& out) {
    for (const RecipeNode& item : source.items) merge(item, out);
    for (const RecipeNode& entry : source.entries) {
      if (out.find(entry.key) == nullptr) out.entries.push_back(entry);
    }
  }

  // ${NAME}, ${NAME,default}, ${oc.env:NAME}, ${oc.env:NAME,default}.
  std::string expand(const std::string& text, const std::string& at) {
    std::string out;
    size_t from = 0;
    while (true) {
      const size_t open = text.find("${", from);
      const size_t close = open == std::string::npos ? open : text.find('}', open);
      if (close == std::string::npos) return out + text.substr(from);
      out += text.substr(from, open - from) + variable(text.substr(open + 2, close - open - 2), at);
      from = close + 1;
    }
  }

  std::string variable(std::string name, const std::string& at) {
    if (name.rfind("oc.env:", 0) == 0) name = name.substr(7);
    const size_t comma = name.find(',');
    const std::string key = name.substr(0, comma);
    if (const char* value = std::getenv(key.c_str())) return value;
    if (comma != std::string::npos) return name.substr(comma + 1);
    problems_.add(at, "the environment has no " + key, "set it, or write ${" + key + ",default}");
    return "";
  }

  std::string name_;
  bool lines_;
  Problems& problems_;
  int nodes_ = 0;
};

RecipeNode parse(const std::string& text, const std::string& name, bool lines, Problems& problems) {
  if (text.size() > kMaxBytes) fail(name, "too large for a recipe", "use at most 4 MiB");
  Reader reader(name, lines, problems);
  try {
    return reader.read(YAML::Load(text), 0);
  } catch (const YAML::Exception& error) {
    fail(reader.where(error.mark), "not YAML: " + error.msg, "check indentation, colons, quotes");
  }
}

nlohmann::json json_of(const RecipeNode& node) {
  switch (node.kind) {
    case RecipeNode::Kind::null: return nullptr;
    case RecipeNode::Kind::list: {
      nlohmann::json list = nlohmann::json::array();
      for (const RecipeNode& item : node.items) list.push_back(json_of(item));
      return list;
    }
    case RecipeNode::Kind::mapping: {
      nlohmann::json mapping = nlohmann::json::object();
      for (const RecipeNode& entry : node.entries) mapping[entry.key] = json_of(entry);
      return mapping;
    }
    case RecipeNode::Kind::scalar: break;
  }
  if (node.quoted) return node.text;
  if (const auto value = parse_bool(node.text)) return *value;
  if (const auto value = parse_integer(node.text)) return *value;
  const auto value = parse_number(node.text);
  if (value && std::isfinite(*value)) return *value;
  return node.text;
}

}  // namespace

std::string RecipeNode::shown() const {
  switch (kind) {
    case Kind::null: return "nothing";
    case Kind::list: return "a list";
    case Kind::mapping: return "a mapping";
    case Kind::scalar: break;
  }
  return "\"" + text + "\"";
}

RecipeNode* RecipeNode::find(const std::string& name) {
  const auto found = std::find_if(entries.begin(), entries.end(),
                                  [&](const RecipeNode& entry) { return entry.key == name; });
  return found == entries.end() ? nullptr : &*found;
}

RecipeNode& RecipeNode::add(const std::string& name, RecipeNode value) {
  value.key = name;
  return entries.emplace_back(std::move(value));
}

RecipeNode parse_yaml(const std::string& text, const std::string& name, Problems& problems) {
  return parse(text, name, true, problems);
}

void override_node(RecipeNode& root, const std::string& key, const std::string& value,
                   Problems& problems) {
  const std::string where = "--" + key;
  RecipeNode* node = &root;
  for (size_t from = 0; from <= key.size();) {
    const size_t dot = std::min(key.find('.', from), key.size());
    const std::string part = key.substr(from, dot - from);
    from = dot + 1;
    if (part.empty()) {
      problems.add(where, "an empty part in the key", "write --section.name=value");
      return;
    }
    if (node->kind != RecipeNode::Kind::mapping) {
      *node = {.kind = RecipeNode::Kind::mapping, .where = where, .key = node->key};
    }
    RecipeNode* next = node->find(part);
    if (next == nullptr) next = &node->add(part, RecipeNode{});
    node = next;
  }
  RecipeNode parsed = parse(value, where, false, problems);
  parsed.where = where;
  parsed.key = node->key;
  *node = std::move(parsed);
}

std::string to_json(const RecipeNode& node) {
  return json_of(node).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace lapidary
