"""Recipes that are read, built and written."""

from coldpress import Recipe, RecipeError, read_recipe, write_recipe

recipe: Recipe = read_recipe("recipe.yaml", arguments={"group_size": 64})
try:
    text: str = write_recipe(recipe)
except RecipeError as error:
    text = str(error)
print([type(modifier).__name__ for modifier in recipe.modifiers], recipe.only("quant"))
read_recipe("recipe.yaml", argument={"group_size": 64})  # wrong
recipe.modifiers = ()  # wrong
lines: list[str] = write_recipe(recipe)  # wrong
