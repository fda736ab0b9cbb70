"""`coldpress recipes`: ready recipes with what each costs and gives, and the text of one."""

from typing import TYPE_CHECKING, Annotated

import typer
from attrs import asdict

from coldpress.cli.console import out, print_json, write
from coldpress.cli.option import Json

if TYPE_CHECKING:
    from coldpress.recipe import ReadyRecipe


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print the text of this one, to be changed.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List recipes that are taken by name, with what each costs and gives.

    coldpress compress smollm2 --recipe gptq-w4a16 --recipe-arg group_size=64 --output out
    """
    from coldpress.recipe import ready_recipe, ready_recipes

    if name is not None:
        found = ready_recipe(name)
        if as_json:
            print_json("recipe", {"name": name, **_row(found)})
        else:
            write(found.text)
        return
    every = ready_recipes()
    if as_json:
        print_json("recipes", {"recipes": [{"name": key, **_row(one)} for key, one in every.items()]})
        return
    from rich.text import Text

    whole = {key: one for key, one in every.items() if not one.takes_scheme()}
    algorithms = {key: one for key, one in every.items() if one.takes_scheme()}
    for title, part in (("recipes, for --recipe", whole), ("algorithms, for --algorithm beside --scheme", algorithms)):
        out().print(Text(f"\n{title}" if part is algorithms else title, style="bold"))
        out().print(_table(part))
    out().print(
        Text(
            "\nKL: mean KL divergence to the original in nats a token, and perplexity, on\n"
            "SmolLM2 with groups of 64; --json says where each number is from.",
            style="dim",
        )
    )


def _row(recipe: "ReadyRecipe") -> dict[str, object]:
    return {**asdict(recipe), "takes_scheme": recipe.takes_scheme()}


def _table(found: "dict[str, ReadyRecipe]") -> object:
    from coldpress.report.table import grid

    rows = [
        (
            name,
            one.title,
            "reads" if one.reads_data else "",
            "" if one.measured is None else f"{one.measured.kl:.3f}",
            "" if one.measured is None else f"{one.measured.perplexity:.2f}",
        )
        for name, one in found.items()
    ]
    return grid(("name", "what it does", "data", "KL", "perplexity"), rows, numbers=("KL", "perplexity"))
