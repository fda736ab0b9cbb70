"""`coldpress demo`: the embedded model compressed several ways, measured before and after, in one table."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from attrs import asdict, frozen

from coldpress.arguments import DEFAULT_DATASET, DEFAULT_IGNORE, DEMO_MODEL, parse_arguments
from coldpress.cli.console import out, print_json
from coldpress.cli.option import Json, option
from coldpress.errors import ArgumentError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from coldpress.evaluation import Divergence, Perplexity
    from coldpress.report import Progress

_MODEL = DEMO_MODEL
_SCHEMES = ("rtn:W4A16:64", "gptq:W4A16:64", "W8A8", "FP8_DYNAMIC")
_PROMPT = "The capital of France is"
_NEW_TOKENS = 24
_FULL = {"max_tokens": 4096, "window": 512}  # of the held-out text
_QUICK = {"max_tokens": 1024, "window": 128}
_DATA = {
    "dataset": DEFAULT_DATASET,
    "num_calibration_samples": 32,
    "max_seq_length": 256,
}  # of recipes that read some


def demo(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Measure on less text: less exact.")] = False,
    output: Annotated[
        Path | None, option(None, "--output/-o", "DIR", "Keep the checkpoints in here.", shown="thrown away")
    ] = None,
    schemes: Annotated[
        list[str] | None,
        option(
            None,
            "--schemes/-s",
            "NAME",
            "A preset, as ALGORITHM:NAME:GROUP_SIZE or a part of that; repeatable.",
            shown=" ".join(_SCHEMES),
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compress the embedded model several ways, GPTQ beside rounding, and show what came of it in one table.

    Needs no network: the model comes with the extra `demo`, the text is inside coldpress.
    """
    recipes = {name: _recipe(name) for name in schemes or _SCHEMES}
    from coldpress.models import load_model, load_tokenizer
    from coldpress.report import Progress

    progress = Progress()
    model = load_model(_MODEL, dtype="bfloat16")
    extent = _QUICK if quick else _FULL
    judge = Judge(model, load_tokenizer(_MODEL, model), extent, progress=progress)
    with _folder(output) as folder:
        before = judge.original()
        rows = [judge.compress(name, recipe, folder / _folder_name(name)) for name, recipe in recipes.items()]
    if as_json:
        found = [asdict(one) for one in (before, *rows)]
        print_json("demo", {"window": extent["window"], "prompt": _PROMPT, "rows": found})
        return
    for part in _shown(before, rows, window=extent["window"]):
        out().print(part)
    if output is not None:
        out().print(f"\ncheckpoints in {output}", soft_wrap=True)


@frozen
class Measured:
    """One line of the table.

    Attributes:
        name: of the scheme, or of the model.
        nbytes: of the tensors on disk; of the original, in memory.
        bits: per weight.
        perplexity: on the held-out text.
        divergence: from the original; None for the original.
        seconds: to compress and write; None for the original.
        memory: peak while doing so, in bytes; None where it is not known.
        sentence: the greedy continuation of the prompt.
    """

    name: str
    nbytes: int
    bits: float
    perplexity: "Perplexity"
    divergence: "Divergence | None"
    seconds: float | None
    memory: int | None
    sentence: str


class Judge:
    """The original model and the text that everything is measured on.

    Args:
        model: the original; it is never changed.
        tokenizer: of the model.
        extent: `window` and `max_tokens` of every measurement.
        progress: shows how far it is.
    """

    def __init__(self, model: Any, tokenizer: Any, extent: Mapping[str, int], *, progress: "Progress") -> None:
        self._model, self._tokenizer, self._progress = model, tokenizer, progress
        self._settings: dict[str, Any] = {**extent, "progress": progress}

    def original(self) -> Measured:
        """The model as it is."""
        from coldpress.evaluation import perplexity
        from coldpress.report.contents import bits_per_weight

        nbytes = sum(parameter.nbytes for parameter in self._model.parameters())
        weights = sum(parameter.numel() for parameter in self._model.parameters())
        found = perplexity(self._model, self._tokenizer, **self._settings)
        bits, sentence = bits_per_weight(nbytes, weights), self._continue(self._model)
        return Measured(_MODEL, nbytes, bits, found, None, None, None, sentence)

    def compress(self, name: str, recipe: Any, folder: Path) -> Measured:
        """A fresh copy of the model, compressed, written and measured."""
        from coldpress.entrypoints.oneshot import run
        from coldpress.evaluation import divergence, perplexity
        from coldpress.report.contents import contents_of
        from coldpress.report.memory import peak_memory, reset_peak_memory

        copy = deepcopy(self._model)
        wanted = {"model": copy, "tokenizer": self._tokenizer, "recipe": recipe, "output_dir": folder}
        if any(modifier.needs_data() for modifier in recipe.modifiers):
            wanted |= _DATA
        arguments = parse_arguments(wanted)
        reset_peak_memory()
        start = perf_counter()
        model: Any = run(arguments, progress=self._progress).model
        seconds, memory = perf_counter() - start, peak_memory()
        contents = contents_of(folder)
        return Measured(
            name=name,
            nbytes=contents.nbytes(),
            bits=contents.bits(),
            perplexity=perplexity(model, self._tokenizer, **self._settings),
            divergence=divergence(model, self._model, self._tokenizer, **self._settings),
            seconds=seconds,
            memory=memory,
            sentence=self._continue(model),
        )

    def _continue(self, model: Any) -> str:
        """The prompt and what the model says next, one most likely token after the other."""
        import torch

        ids = self._tokenizer(_PROMPT, return_tensors="pt").to(model.device)
        with torch.no_grad():
            generated = model.generate(**ids, max_new_tokens=_NEW_TOKENS, do_sample=False)
        return " ".join(self._tokenizer.decode(generated[0], skip_special_tokens=True).split())


def _recipe(name: str) -> Any:
    """The recipe of `gptq:W4A16:64`: an algorithm where one is named, a preset, and a group size where one is given.

    Raises:
        ArgumentError: it is of another form.
    """
    from coldpress.entrypoints.scheme_recipe import recipe_for
    from coldpress.schemes import preset_names

    parts = name.split(":")
    algorithm = parts.pop(0) if len(parts) > 1 and parts[0].upper() not in preset_names() else None
    size = parts.pop() if len(parts) > 1 else None
    if len(parts) != 1 or (size is not None and not size.lstrip("-").isdecimal()):
        raise ArgumentError(f"--schemes: {name!r} is not of the form NAME:GROUP_SIZE or ALGORITHM:NAME:GROUP_SIZE")
    group_size = None if size is None else int(size)
    ignore = [DEFAULT_IGNORE[0]]
    return recipe_for(parts[0], model=_MODEL, algorithm=algorithm, group_size=group_size, ignore=ignore).recipe


def _folder_name(name: str) -> str:
    """`gptq-W4A16-g64` of `gptq:W4A16:64`."""
    *others, last = name.split(":")
    return "-".join([*others, f"g{last}" if others and last.lstrip("-").isdecimal() else last])


@contextmanager
def _folder(output: Path | None) -> Iterator[Path]:
    """Where the checkpoints go: a folder of the user's, or one that is removed at the end."""
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        yield output
        return
    with TemporaryDirectory(prefix="coldpress-demo-") as folder:
        yield Path(folder)


def _shown(before: Measured, rows: list[Measured], *, window: int) -> "list[RenderableType]":
    from rich.text import Text

    from coldpress.report.table import facts, grid

    columns = ("", "on disk", "bits", "perplexity", "KL", "top-1", "time", "memory")
    every = [before, *rows]
    table = grid(columns, [_row(line) for line in every], numbers=columns[1:])
    note = (
        f"{before.perplexity.tokens} held-out tokens in windows of {window}; ± is one standard error.\n"
        "KL (nats a token) and top-1 agreement: against the original, in bfloat16.\n"
        "time and peak memory: to compress and to write the checkpoint."
    )
    heading = Text(f"\n{_PROMPT!r}, continued greedily", style="bold")
    return [table, Text(note, style="dim"), heading, facts([(line.name, line.sentence) for line in every])]


def _row(line: Measured) -> tuple[str, ...]:
    from coldpress.report.words import in_bytes, in_error

    apart = line.divergence
    return (
        line.name,
        in_bytes(line.nbytes),
        f"{line.bits:.2f}",
        in_error(line.perplexity.value, line.perplexity.standard_error),
        in_error(apart.kl, apart.kl_standard_error, digits=1) if apart else "",
        f"{apart.top1_agreement:.1%}" if apart else "",
        f"{line.seconds:.1f} s" if line.seconds is not None else "",
        in_bytes(line.memory) if line.seconds is not None else "",
    )
