"""How the built-in templates are made: recipes as data, and the code that carries one out.

`recipe` what a recipe is · `builtin` the recipes · `debian` the machine's apt sources → mmdebstrap ·
`pip_settings` the machine's pip settings → inside · `build` carries one out. The store of what was built is
`atoll.images.store`.
"""

from atoll.images.recipes.builtin import RECIPES
from atoll.images.recipes.recipe import OnProgress, Progress, Recipe

__all__ = ["RECIPES", "OnProgress", "Progress", "Recipe"]
