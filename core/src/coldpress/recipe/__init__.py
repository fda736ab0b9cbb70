"""Recipes: YAML, JSON or objects to a frozen `Recipe` and back, with line and column in every error.

text --document--> nodes --placeholder--> nodes --grammar--> steps --structure--> modifiers
modifiers --writing--> text
"""

from coldpress.recipe.reading import read_recipe
from coldpress.recipe.ready import Measured, ReadyRecipe, ready_recipe, ready_recipes
from coldpress.recipe.recipe import SEVERAL, Choice, Recipe
from coldpress.recipe.structure import structure_settings
from coldpress.recipe.writing import write_recipe

__all__ = [
    "SEVERAL",
    "Choice",
    "Measured",
    "ReadyRecipe",
    "Recipe",
    "read_recipe",
    "ready_recipe",
    "ready_recipes",
    "structure_settings",
    "write_recipe",
]
