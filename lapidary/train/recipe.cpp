#include "lapidary/train/recipe.h"

#include <fstream>
#include <sstream>

#include "lapidary/train/recipe_parse.h"

namespace lapidary {

std::string Recipe::where(const std::string& key) const {
  const auto place = places.find(key);
  return (place == places.end() ? file : place->second) + ": " + key;
}

LrSchedule Recipe::lr_schedule(int64_t total_steps) const {
  if (!lr_scheduler.given) return LrSchedule::constant(optimizer.lr);
  return LrSchedule::make(lr_scheduler.options, lr_scheduler.max_lr.value_or(optimizer.lr),
                          total_steps);
}

RecipeOverrides parse_overrides(const std::vector<std::string>& arguments) {
  RecipeOverrides overrides;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument.size() < 3 || argument.rfind("--", 0) != 0) {
      fail("arguments", "unexpected \"" + argument + "\"",
           "write changes to the recipe as --section.name=value");
    }
    const size_t equals = argument.find('=');
    if (equals != std::string::npos) {
      overrides.emplace_back(argument.substr(2, equals - 2), argument.substr(equals + 1));
    } else if (i + 1 < arguments.size() && arguments[i + 1].rfind("--", 0) != 0) {
      overrides.emplace_back(argument.substr(2), arguments[++i]);
    } else {
      overrides.emplace_back(argument.substr(2), "true");
    }
  }
  return overrides;
}

Recipe parse_recipe(const std::string& text, const std::string& name,
                    const RecipeOverrides& overrides, int64_t world_size) {
  Problems problems;
  RecipeNode root = parse_yaml(text, name, problems);
  rename_aliases(root, problems);
  for (const auto& [key, value] : overrides) {
    override_node(root, canonical_key(key), value, problems);
  }
  Recipe recipe;
  recipe.file = name;
  recipe.mesh.world_size = world_size;
  fill_recipe(root, recipe, problems);
  finish_recipe(recipe, problems);
  problems.throw_if_any(name);
  return recipe;
}

Recipe load_recipe(const std::string& path, const RecipeOverrides& overrides, int64_t world_size) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  if (!file || text.str().empty()) fail(path, "cannot be read", "name a recipe, a YAML file");
  return parse_recipe(text.str(), path, overrides, world_size);
}

}  // namespace lapidary
