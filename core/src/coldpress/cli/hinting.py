"""A command that knows what an option that it does not have may have meant."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

from coldpress.spelling import elsewhere, near

_LIKE_SETTINGS = {"num_bits": "bits", "output_dir": "output"}  # settings and arguments that have a shorter option

_IN_PLACE = {"dataset": "text"}  # options that other commands have


_COMMANDS = {  # what other tools call ours
    **dict.fromkeys(("quantize", "quant", "prune", "oneshot", "run", "gptq", "awq", "llm-compressor"), "compress"),
    **dict.fromkeys(("eval", "perplexity", "ppl", "bench", "lm-eval", "lm_eval"), "evaluate"),
    **dict.fromkeys(("export", "pack", "save", "merge", "dequantize"), "convert"),
    **dict.fromkeys(("info", "show", "stat", "stats", "ls"), "inspect"),
    **dict.fromkeys(("estimate", "dry-run", "dryrun"), "plan"),
    **dict.fromkeys(("finetune", "fine-tune", "qat"), "train"),
    **{"list": "plugins", "presets": "schemes", "compare": "diff", "config": "defaults"},
}


class HintingGroup(TyperGroup):
    """The group of typer, whose message about an unknown command names the one that other tools call so."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer does it."""
        try:
            return super().resolve_command(ctx, args)
        except Exception as error:
            meant = _COMMANDS.get(args[0].lower())
            if meant is not None and type(error).__name__ in ("UsageError", "NoSuchCommand"):
                error.message = f"No such command {args[0]!r}. Did you mean {meant!r}?"  # type: ignore[attr-defined]
            raise


class HintingCommand(TyperCommand):
    """The command of typer, whose message about an unknown option names the one that was meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does it."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if type(error).__name__ == "NoSuchOption":  # of click, or of typer's own copy of it
                _hint(error, [option for one in self.params for option in one.opts])
            raise


def _hint(error: Any, options: list[str]) -> None:
    """Name the option, or say that a setting of a modifier stands in a recipe."""
    name = error.option_name.lstrip("-").replace("-", "_")
    meant = elsewhere(name)
    known = {option.lstrip("-").replace("-", "_"): option for option in options if option.startswith("--")}
    like = (_LIKE_SETTINGS.get(meant, meant), _IN_PLACE.get(name, ""))
    found = [known[one] for one in (*like, *near(name, known)) if one in known]
    if "model" in (name, meant) and "--model" not in options:
        error.possibilities = []
        error.message += ". The model stands without an option: coldpress COMMAND MODEL"
    elif found:
        error.possibilities = list(dict.fromkeys(found))[:1]
    elif meant:
        error.message += (
            f". In a recipe it is the setting {meant!r}: `coldpress plugins NAME` lists those of a modifier"
        )
