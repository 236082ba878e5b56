#pragma once

#include "lapidary/train/recipe_fields.h"
#include "lapidary/train/recipe_node.h"

namespace lapidary {

// Puts the values of a document into a recipe, by the table of fields. Mistakes go to problems.
void fill_recipe(const RecipeNode& root, Recipe& recipe, Problems& problems);

// Checks that need more than one value, and the values that follow from others.
void finish_recipe(Recipe& recipe, Problems& problems);

// The key as the table of fields has it.
std::string canonical_key(const std::string& key);
// Moves values that go by another name to the key of the table.
void rename_aliases(RecipeNode& root, Problems& problems);

// "a, b or c".
std::string either(const std::vector<std::string>& words);

}  // namespace lapidary
