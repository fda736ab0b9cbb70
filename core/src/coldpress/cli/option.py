"""Options that several commands share."""

from collections.abc import Callable
from typing import Annotated, Any

import typer
from attrs import Factory, fields_dict

from coldpress.arguments import PRECISIONS, ModelArguments, RecipeArguments
from coldpress.spelling import suggest


def default_of(arguments: type, name: str) -> Any:
    """The default of an argument of `oneshot`, so that it is written down once."""
    found: Any = fields_dict(arguments)[name].default
    return found.factory() if isinstance(found, Factory) else found  # type: ignore[arg-type]  # a class


_KINDS = {  # options whose values a shell completes, and the kind of plugin that they name
    **{"--recipe": "recipes", "--algorithm": "recipes", "--dataset": "datasets"},
    **{"--pipeline": "pipelines", "--format": "formats"},
}


def option(
    panel: str | None,
    flags: str,
    metavar: str | None,
    text: str,
    *,
    shown: str | None = None,
    least: int | None = None,
) -> Any:
    """One option.

    Args:
        panel: heading that it stands under in the help.
        flags: `--name`, or `--name/-n` for one with a short form.
        metavar: what stands for the value in the help; None for a switch.
        text: what it does.
        shown: what the help says of the default, where that is None.
        least: the smallest number that is accepted.
    """
    shows: bool | str = shown if shown is not None else True
    names = flags.split("/")
    more = {"metavar": metavar, "help": text, "show_default": shows, "min": least, "rich_help_panel": panel}
    kind = _KINDS.get(names[0])
    return typer.Option(*names, **more, autocompletion=None if kind is None else _names_of(kind))  # type: ignore[arg-type]


def _names_of(kind: str) -> Callable[[str], list[str]]:
    """What completes the names of installed plugins; none of them is imported."""

    def named(incomplete: str) -> list[str]:
        from coldpress.registry import names

        return sorted(name for name in names(kind) if name.startswith(incomplete))

    return named


def _known_dtype(value: str) -> str:
    if value not in PRECISIONS:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(PRECISIONS)}{suggest(value, PRECISIONS)}")
    return value


DTYPE: str = default_of(ModelArguments, "precision")
SEED: int = default_of(RecipeArguments, "seed")

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary: only the folder's name.")]

Dtype = Annotated[
    str,
    typer.Option(callback=_known_dtype, metavar="NAME", help=f"Weights in memory: {', '.join(PRECISIONS)}."),
]

Device = Annotated[
    str | None, option(None, "--device", "NAME", "cpu, cuda, cuda:1, ...", shown="an accelerator, or cpu")
]

TrustRemoteCode = Annotated[
    bool, option(None, "--trust-remote-code", None, "Run Python code that comes with the model or its tokenizer.")
]

Seed = Annotated[int, option(None, "--seed", "N", "Random seed.", least=0)]
