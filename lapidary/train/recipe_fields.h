#pragma once

#include <functional>
#include <limits>
#include <string>
#include <variant>
#include <vector>

#include "lapidary/train/recipe.h"

namespace lapidary {

// Where a value goes; its type is the type that the recipe's text must have.
using Slot =
    std::variant<std::monostate, bool*, int64_t*, double*, std::string*, std::optional<int64_t>*,
                 std::optional<double>*, std::optional<Dtype>*, std::vector<double>*, JsonText*>;

enum class Effect {
  used,     // goes to its slot
  ignored,  // known to NeMo, without effect here; whatever is below it is not looked at
  block,    // a mapping whose presence matters; its slot is a bool
  refused,  // a mapping that asks for something that this version does not do
};

// One key of the recipe: everything that is known of it, in one place. The table of all fields
// parses, checks, prints and documents recipes.
struct Field {
  std::string key;
  std::string doc;
  std::function<Slot(Recipe&)> slot = {};
  Effect effect = Effect::used;

  std::vector<std::string> words = {};  // the values that will do; empty: any
  bool last_part = false;               // of a dotted path only the last part counts
  bool later = false;                   // other words: "not in this version"
  bool soft = false;                    // other words: a note, and the default stays
  std::string hint = {};                // what to write instead of another word

  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool open = false;  // min and max themselves will not do

  Field& one_of(std::vector<std::string> values);
  Field& target(std::vector<std::string> values);  // last part, other words come later
  Field& only(std::vector<std::string> values);    // other words come later
  Field& note_unless(std::vector<std::string> values);
  Field& instead(std::string text);  // sets hint
  Field& at_least(double value);
  Field& above(double value);
  Field& between(double low, double high, bool exclusive);
};

// In the order in which they are printed: the keys of a block are together.
const std::vector<Field>& recipe_fields();

// Other names of keys, as some of NeMo's recipes write them: {"dataset.seq_length",
// "dataset.max_length"}.
const std::vector<std::pair<std::string, std::string>>& recipe_aliases();

std::string type_name(const Slot& slot);  // "whole number", "text", ...
// The value as YAML; "null" when unset.
std::string value_text(const Slot& slot);

}  // namespace lapidary
