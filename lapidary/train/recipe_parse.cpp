#include "lapidary/train/recipe_parse.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "lapidary/train/recipe_scalar.h"

namespace lapidary {
namespace {

using Kind = RecipeNode::Kind;

std::string last_part(const std::string& text) { return text.substr(text.rfind('.') + 1); }

// Every key and every block that the table knows.
const std::set<std::string>& known_keys() {
  static const std::set<std::string> keys = [] {
    std::set<std::string> all;
    const auto add = [&](const std::string& key) {
      for (size_t dot = key.find('.'); dot != std::string::npos; dot = key.find('.', dot + 1)) {
        all.insert(key.substr(0, dot));
      }
      all.insert(key);
    };
    for (const Field& field : recipe_fields()) add(field.key);
    for (const auto& [alias, key] : recipe_aliases()) add(alias);
    return all;
  }();
  return keys;
}

bool has_keys_below(const std::string& block) {
  const auto next = known_keys().lower_bound(block + ".");
  return next != known_keys().end() && next->rfind(block + ".", 0) == 0;
}

// What to write instead of an unknown key: the nearest one, or all of its block.
std::string suggestion(const std::string& key) {
  std::string best;
  size_t best_score = 2 * std::max<size_t>(2, last_part(key).size() / 3) + 1;
  for (const std::string& known : known_keys()) {
    size_t score = 2 * edit_distance(key, known);
    // The right name in the wrong block is nearly as good as one wrong letter.
    if (last_part(key) == last_part(known)) score = std::min<size_t>(score, 3);
    if (score < best_score) {
      best = known;
      best_score = score;
    }
  }
  if (!best.empty()) return "did you mean " + best + "?";
  const std::string block = key.substr(0, key.find_last_of('.') + 1);
  std::vector<std::string> names;
  for (const std::string& known : known_keys()) {
    const std::string rest = known.rfind(block, 0) == 0 ? known.substr(block.size()) : ".";
    if (rest.find('.') == std::string::npos) names.push_back(rest);
  }
  return "use " + either(names);
}

// Reads one node into one slot; says what is wrong with it.
class Assign {
 public:
  Assign(const Field& field, const RecipeNode& node, Recipe& recipe, Problems& problems)
      : field_(field), node_(node), recipe_(recipe), problems_(problems) {}

  void run() {
    // "none" is nothing, unless it is one of the words that will do.
    if (node_.kind == Kind::null && !is_word(node_.text)) return;
    if (!field_.words.empty() && !check_word()) return;
    if (field_.slot) std::visit(*this, field_.slot(recipe_));
  }

  void operator()(std::monostate /*unused*/) {}

  void operator()(bool* slot) {
    const auto value = scalar() ? parse_bool(node_.text) : std::nullopt;
    if (value) *slot = *value;
    if (!value) problem("is not true or false", "use true or false");
  }

  void operator()(int64_t* slot) {
    const auto value = scalar() ? parse_integer(node_.text) : std::nullopt;
    if (!value) return problem("is not a whole number", "use " + range("a whole number"));
    if (in_range(static_cast<double>(*value))) *slot = *value;
  }

  void operator()(double* slot) {
    const auto value = number(node_);
    if (value && in_range(*value)) *slot = *value;
  }

  void operator()(std::string* slot) {
    if (!word_.empty()) {
      *slot = word_;
    } else if (node_.kind == Kind::scalar) {
      *slot = node_.text;
    } else {
      problem("is not text", "use a word or a path");
    }
  }

  template <class T>
  void operator()(std::optional<T>* slot) {
    T value{};
    const size_t before = problems_.messages().size();
    (*this)(&value);
    if (problems_.messages().size() == before) *slot = value;
  }

  void operator()(std::optional<Dtype>* slot) {
    if (scalar() && node_.text == "auto") return;
    try {
      const Dtype dtype = parse_dtype(scalar() ? node_.text : "");
      if (dtype == Dtype::f32 || dtype == Dtype::bf16) {
        *slot = dtype;
        return;
      }
    } catch (const Error&) {  // the message below says more
    }
    problem("is not a type of parameters", "use float32 or bfloat16");
  }

  void operator()(std::vector<double>* slot) {
    if (node_.kind != Kind::list) return problem("is not a list", "use e.g. [0.9, 0.95]");
    std::vector<double> values;
    for (const RecipeNode& item : node_.items) {
      const auto value = number(item);
      if (!value || !in_range(*value)) return;
      values.push_back(*value);
    }
    *slot = values;
  }

  void operator()(JsonText* slot) {
    if (node_.kind != Kind::mapping) return problem("is not a mapping", "use name: value lines");
    slot->text = to_json(node_);
  }

 private:
  bool scalar() const { return node_.kind == Kind::scalar && !node_.quoted; }

  std::optional<double> number(const RecipeNode& node) {
    const auto value = node.kind == Kind::scalar ? parse_number(node.text) : std::nullopt;
    if (!value) problem("is not a number", "use " + range("a number"));
    return value;
  }

  std::string range(const std::string& kind) const {
    std::string text = kind;
    if (std::isfinite(field_.min)) text += (field_.open ? " > " : " >= ") + shown(field_.min);
    if (std::isfinite(field_.max))
      text += (field_.open ? " and < " : " and <= ") + shown(field_.max);
    return text;
  }

  bool in_range(double value) {
    const bool inside = field_.open ? value > field_.min && value < field_.max
                                    : value >= field_.min && value <= field_.max;
    if (std::isfinite(value) && inside) return true;
    problem(std::isfinite(value) ? "is out of range" : "is not finite", "use " + range("a number"));
    return false;
  }

  bool is_word(const std::string& word) const {
    return std::find(field_.words.begin(), field_.words.end(), word) != field_.words.end();
  }

  // Is the text one of the words that will do? Keeps it, in its short form, for the slot.
  bool check_word() {
    if (node_.kind == Kind::scalar || node_.kind == Kind::null) {
      word_ = field_.last_part ? last_part(node_.text) : node_.text;
      const auto truth = parse_bool(word_);
      if (!is_word(word_) && truth) word_ = *truth ? "true" : "false";
      if (is_word(word_)) return true;
    }
    const std::string fix = field_.hint.empty() ? "use " + either(field_.words) : field_.hint;
    if (field_.soft) {
      recipe_.notes.push_back(node_.where + ": " + field_.key + " " + node_.shown() +
                              " has no effect: " + field_.doc);
    } else {
      problem(field_.later ? "is not in this version" : "is unknown", fix);
    }
    return false;
  }

  void problem(const std::string& what, const std::string& fix) {
    problems_.add(node_.where, field_.key + " " + node_.shown() + " " + what, fix);
  }

  const Field& field_;
  const RecipeNode& node_;
  Recipe& recipe_;
  Problems& problems_;
  std::string word_;
};

class Filler {
 public:
  Filler(Recipe& recipe, Problems& problems) : recipe_(recipe), problems_(problems) {}

  void walk(const RecipeNode& mapping, const std::string& prefix) {
    for (const RecipeNode& entry : mapping.entries) visit(prefix + entry.key, entry);
  }

 private:
  // A key may take a word or a mapping: one field for each.
  static const Field* find(const std::string& key, const RecipeNode& node) {
    const Field* found = nullptr;
    Recipe probe;
    for (const Field& field : recipe_fields()) {
      if (field.key != key) continue;
      const bool takes_mapping = field.slot && std::holds_alternative<JsonText*>(field.slot(probe));
      if (found == nullptr || takes_mapping == (node.kind == Kind::mapping)) found = &field;
    }
    return found;
  }

  void visit(const std::string& key, const RecipeNode& node) {
    recipe_.places[key] = node.where;
    const Field* field = find(key, node);
    const Effect effect = field != nullptr ? field->effect : Effect::block;
    if (effect == Effect::ignored) return;
    if (effect == Effect::refused) {
      const bool asked = node.kind != Kind::null &&
                         (node.kind != Kind::list || !node.items.empty()) &&
                         (node.kind != Kind::scalar || parse_bool(node.text) != false);
      if (asked)
        problems_.add(node.where, key + ": " + field->doc + " not in this version", field->hint);
      return;
    }
    if (effect == Effect::used) return Assign(*field, node, recipe_, problems_).run();
    if (field == nullptr && !has_keys_below(key)) {
      problems_.add(node.where, "unknown key " + key, suggestion(key));
      return;
    }
    if (node.kind == Kind::null) return;
    if (node.kind != Kind::mapping) {
      problems_.add(node.where, key + " is " + node.shown() + ", not a mapping",
                    "use name: value lines");
      return;
    }
    if (field != nullptr) *std::get<bool*>(field->slot(recipe_)) = true;
    walk(node, key + ".");
  }

  Recipe& recipe_;
  Problems& problems_;
};

// Takes the node at a dotted key out of the tree; nullopt when there is none.
std::optional<RecipeNode> take(RecipeNode& root, const std::string& key) {
  RecipeNode* node = &root;
  size_t from = 0;
  for (size_t dot = key.find('.'); dot != std::string::npos; dot = key.find('.', from)) {
    node = node->find(key.substr(from, dot - from));
    if (node == nullptr) return std::nullopt;
    from = dot + 1;
  }
  RecipeNode* found = node->find(key.substr(from));
  if (found == nullptr) return std::nullopt;
  RecipeNode out = std::move(*found);
  node->entries.erase(node->entries.begin() + (found - node->entries.data()));
  return out;
}

}  // namespace

std::string either(const std::vector<std::string>& words) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) {
    if (i > 0) text += i + 1 == words.size() ? " or " : ", ";
    text += words[i];
  }
  return text;
}

std::string canonical_key(const std::string& key) {
  for (const auto& [alias, name] : recipe_aliases()) {
    if (key == alias) return name;
  }
  return key;
}

void rename_aliases(RecipeNode& root, Problems& problems) {
  for (const auto& [alias, name] : recipe_aliases()) {
    std::optional<RecipeNode> node = take(root, alias);
    if (!node) continue;
    const std::optional<RecipeNode> old = take(root, name);
    if (old && old->kind != Kind::mapping) {
      problems.add(node->where, alias + " is another name of " + name + ", given as well",
                   "keep one of them");
    }
    // The block exists: the alias was in it.
    RecipeNode* block = &root;
    size_t from = 0;
    for (size_t dot = name.find('.'); dot != std::string::npos; dot = name.find('.', from)) {
      block = block->find(name.substr(from, dot - from));
      from = dot + 1;
    }
    block->add(name.substr(from), std::move(*node));
  }
}

void fill_recipe(const RecipeNode& root, Recipe& recipe, Problems& problems) {
  if (root.kind == Kind::null) return;
  if (root.kind != Kind::mapping) {
    problems.add(root.where, "a recipe is a mapping, this is " + root.shown(),
                 "write name: value lines");
    return;
  }
  Filler(recipe, problems).walk(root, "");
}

}  // namespace lapidary
