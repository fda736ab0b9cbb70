"""What is done to the model."""

from typing import Any

from attrs import field, frozen

from coldpress.arguments.checks import at_least, is_a


@frozen(kw_only=True, eq=False)
class RecipeArguments:
    """What is done to the model.

    Attributes:
        recipe: a modifier, a list of them, a `Recipe`, a YAML or JSON file, or YAML text.
        recipe_args: values of the recipe's `${name}` placeholders, as a dict or as `["name=value", ...]`.
            (In llm-compressor they are stored and never used.)
        clear_sparse_session: no effect.
        stage: only the stages of the recipe whose name begins so.
        seed: of everything that is drawn at random; the same seed gives the same bytes.
    """

    recipe: Any = None
    recipe_args: dict[str, Any] | list[str] | None = field(
        default=None, validator=is_a(dict, list, tuple, optional=True)
    )
    clear_sparse_session: bool = field(default=False, validator=is_a(bool))
    stage: str | None = field(default=None, validator=is_a(str, optional=True))
    seed: int = field(default=0, validator=at_least(0))
