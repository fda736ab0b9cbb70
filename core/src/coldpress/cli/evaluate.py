"""`coldpress evaluate`: perplexity of a model, and its distance from another one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from attrs import asdict

from coldpress.arguments import DEFAULT_DATASET
from coldpress.arguments.checks import path
from coldpress.cli.console import out, print_json
from coldpress.cli.option import DTYPE, Device, Dtype, Json, option
from coldpress.errors import ArgumentError

if TYPE_CHECKING:
    from coldpress.evaluation import Divergence, Perplexity

_MODEL = "A folder (compressed or not), a hub id, or a file or name that a source reads."


def evaluate(
    model: Annotated[str, typer.Argument(help=_MODEL, show_default=False)],
    *,
    against: Annotated[
        str | None, option(None, "--against", "MODEL", "Also compare with this one, say the original.")
    ] = None,
    text: Annotated[
        Path | None, option(None, "--text", "FILE", "UTF-8 text.", shown=f"held out of {DEFAULT_DATASET}")
    ] = None,
    window: Annotated[int, option(None, "--window", "N", "Tokens that the model sees at once.", least=2)] = 512,
    max_tokens: Annotated[
        int | None, option(None, "--max-tokens", "N", "Tokens of the text that are used.", shown="all", least=2)
    ] = None,
    dtype: Dtype = DTYPE,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure perplexity with its standard error and, with --against, KL divergence and top-1 agreement.

    A compressed checkpoint is decoded, and the quantization of its activations is simulated.
    """
    words = None if text is None else _read(Path(path(text)))
    from coldpress.evaluation import divergence, perplexity
    from coldpress.models import load_model, load_tokenizer, need_tokenizer
    from coldpress.report import Progress

    progress = Progress()
    subject = load_model(model, dtype=dtype, device=device)
    tokenizer = need_tokenizer(load_tokenizer(model, subject), "evaluation")
    settings: dict[str, Any] = {"window": window, "max_tokens": max_tokens, "progress": progress}
    found = perplexity(subject, tokenizer, words, **settings)
    reference, distance = None, None
    if against is not None:
        original = load_model(against, dtype=dtype, device=device)
        reference = perplexity(original, tokenizer, words, **settings)
        distance = divergence(subject, original, tokenizer, words, **settings)
    if as_json:
        content = {"model": model, "against": against, "text": str(text or DEFAULT_DATASET), "window": window}
        measured = {"perplexity": found, "reference_perplexity": reference, "divergence": distance}
        print_json({**content, **{k: None if v is None else asdict(v) for k, v in measured.items()}})
        return
    _show(found, reference, distance)


def _read(file: Path) -> str:
    """The text of a file.

    Raises:
        ArgumentError: it is no regular file, cannot be read, is not UTF-8, or is empty.
    """
    if file.exists() and not file.is_file():
        raise ArgumentError(f"--text: cannot read {file}: it is no regular file")
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"--text: cannot read {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ArgumentError(f"--text: {file} is not UTF-8 text (byte {error.start})") from error
    if not text.strip():
        raise ArgumentError(f"--text: {file} is empty")
    return text


def _show(found: "Perplexity", reference: "Perplexity | None", distance: "Divergence | None") -> None:
    from coldpress.report.table import facts
    from coldpress.report.words import in_error

    rows = [("perplexity", in_error(found.value, found.standard_error))]
    if reference is not None and distance is not None:
        rows += [
            ("of the other", in_error(reference.value, reference.standard_error)),
            ("KL divergence", f"{in_error(distance.kl, distance.kl_standard_error)} nats a token"),
            ("top-1 agreement", f"{distance.top1_agreement:.2%}"),
        ]
    out().print(facts([*rows, ("tokens", str(found.tokens))]))
