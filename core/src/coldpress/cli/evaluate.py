"""`coldpress evaluate`: perplexity of a model, and its distance from another one."""

import logging
from collections.abc import Mapping, Sequence
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from attrs import asdict

from coldpress.arguments import DEFAULT_DATASET
from coldpress.arguments.checks import path
from coldpress.cli.console import finite, out, print_json
from coldpress.cli.option import DTYPE, Device, Dtype, Json, TrustRemoteCode, option
from coldpress.errors import ArgumentError

if TYPE_CHECKING:
    from coldpress.evaluation import Divergence, Perplexity
    from coldpress.evaluation.tasks import Tasks

log = logging.getLogger(__name__)

_MODEL = "A folder (compressed or not), a hub id, or a file or name that a source reads."


def evaluate(
    model: Annotated[str, typer.Argument(help=_MODEL, show_default=False)],
    *,
    against: Annotated[
        str | None,
        option(None, "--against", "MODEL", "The reference, as a rule the original."),
    ] = None,
    text: Annotated[
        Path | None, option(None, "--text", "FILE", "UTF-8 text.", shown=f"held out of {DEFAULT_DATASET}")
    ] = None,
    window: Annotated[int, option(None, "--window", "N", "Tokens that the model sees at once.", least=2)] = 512,
    max_tokens: Annotated[
        int | None, option(None, "--max-tokens", "N", "Tokens of the text that are used.", shown="all", least=2)
    ] = None,
    tasks: Annotated[
        str | None, option(None, "--tasks", "NAMES", "Also run these of lm-eval: names or YAML files, with commas.")
    ] = None,
    limit: Annotated[
        int | None, option(None, "--limit", "N", "Documents of each task that are used.", shown="all", least=1)
    ] = None,
    report: Annotated[
        Path | None, option(None, "--report", "DIR", "Keep the numbers in this output, and show them on its page.")
    ] = None,
    dtype: Dtype = DTYPE,
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Measure perplexity with its standard error and, with --against, KL divergence and top-1 agreement.

    A compressed checkpoint is decoded, and the quantization of its activations is simulated.
    """
    if limit is not None and tasks is None:
        raise ArgumentError("--limit goes with --tasks; --max-tokens limits the text")
    words = None if text is None else _read(Path(path(text)))
    names = None if tasks is None else [name.strip() for name in tasks.split(",") if name.strip()]
    from coldpress.evaluation.tasks import check_tasks
    from coldpress.models import load_model, load_tokenizer, need_tokenizer
    from coldpress.report.page.folder import keep_evaluation, render_folder

    if names is not None:
        check_tasks(names)
    if report is not None:
        render_folder(Path(path(report)))  # what has no report is refused before a model is read
    content = {"model": model, "against": against, "text": str(text or DEFAULT_DATASET), "window": window}
    models = [
        load_model(one, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        for one in (model, against)
        if one is not None
    ]
    found_tokenizer = load_tokenizer(model, models[0], trust_remote_code=trust_remote_code)
    tokenizer = need_tokenizer(found_tokenizer, "evaluation")
    measured: dict[str, Any] = _on_text(models, tokenizer, words, {"window": window, "max_tokens": max_tokens})
    if names is not None:
        measured |= _on_tasks(models, tokenizer, names, limit)
    found = {**content, **{name: None if one is None else asdict(one) for name, one in measured.items()}}
    if report is not None:
        keep_evaluation(Path(path(report)), finite(found))
    if as_json:
        print_json("evaluate", found)
        return
    distance = measured["divergence"]
    if distance is not None and distance.log_ratio < -3 * distance.log_ratio_standard_error:
        log.warning("%s predicts the text better than its reference, %s: --against takes the original", model, against)
    _show(measured, model, against)


def _on_text(
    models: Sequence[Any], tokenizer: Any, text: str | None, settings: Mapping[str, Any]
) -> dict[str, "Perplexity | Divergence | None"]:
    """Perplexities of the model and of another one, and their distance; None where there is no other one."""
    from coldpress.evaluation import divergence, perplexity
    from coldpress.report import Progress

    progress = Progress()
    found = [perplexity(model, tokenizer, text, progress=progress, **settings) for model in models]
    if len(models) == 1:
        return {"perplexity": found[0], "reference_perplexity": None, "divergence": None}
    distance = divergence(models[0], models[1], tokenizer, text, progress=progress, **settings)
    return {"perplexity": found[0], "reference_perplexity": found[1], "divergence": distance}


def _on_tasks(
    models: Sequence[Any], tokenizer: Any, names: Sequence[str], limit: int | None
) -> "dict[str, Tasks | None]":
    """What the model, and another one if there is one, reach in tasks."""
    from coldpress.evaluation.tasks import run_tasks

    found = [run_tasks(model, tokenizer, names, limit=limit) for model in models]
    return {"tasks": found[0], "reference_tasks": found[1] if len(found) > 1 else None}


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
        why = f"{error.strerror or error}; --text takes a file of UTF-8 text"
        raise ArgumentError(f"--text: cannot read {file}: {why}") from error
    except UnicodeDecodeError as error:
        raise ArgumentError(f"--text: {file} is not UTF-8 text (byte {error.start})") from error
    if not text.strip():
        raise ArgumentError(f"--text: {file} is empty")
    return text


def _show(measured: Mapping[str, Any], model: str, against: str | None) -> None:
    from coldpress.report.table import facts
    from coldpress.report.words import in_decimals, in_error

    found, reference, distance = (measured[k] for k in ("perplexity", "reference_perplexity", "divergence"))
    rows = [("model", model), ("perplexity", in_decimals(found.value, found.standard_error))]
    if reference is not None and distance is not None:
        ratio = exp(distance.log_ratio)
        rows += [
            ("reference", str(against)),
            ("its perplexity", in_decimals(reference.value, reference.standard_error)),
            ("perplexity ratio", in_decimals(ratio, ratio * distance.log_ratio_standard_error)),
            ("KL divergence", f"{in_decimals(distance.kl, distance.kl_standard_error)} nats a token"),
            ("top-1 agreement", f"{distance.top1_agreement:.2%}"),
        ]
    rows.append(("tokens", str(found.tokens)))
    for key, words in (("tasks", ""), ("reference_tasks", ", reference")):
        tasks = measured.get(key)
        for name, result in {} if tasks is None else tasks.results.items():
            scores = {metric: in_error(one.value, one.standard_error or 0) for metric, one in result.metrics.items()}
            rows += [(f"{name}, {metric}{words}", score) for metric, score in scores.items()]
    out().print(facts(rows))
