"""oneshot: compress a model in one call."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.arguments import Arguments, OutputArguments, parse_arguments
from coldpress.arguments.keywords import OneshotKeywords, with_signature
from coldpress.attachment import copy_attachments
from coldpress.checkpoint import CheckpointWriter
from coldpress.checkpoint.several import SeveralFormats
from coldpress.distributed.start import joined
from coldpress.entrypoints.job import output_format, prepare
from coldpress.entrypoints.modes import plain_modes
from coldpress.entrypoints.places import check_log
from coldpress.entrypoints.result import offer_result
from coldpress.entrypoints.saving import finished_run, offer_saving
from coldpress.errors import ArgumentError
from coldpress.experts import linear_experts, linearize_experts
from coldpress.format import Format
from coldpress.models import load_model
from coldpress.planning import predict
from coldpress.planning.prediction import summary_of
from coldpress.report import Progress
from coldpress.run.every_tensor import check_every_tensor, saying_where
from coldpress.state import State

if TYPE_CHECKING:
    from typing_extensions import Unpack


def oneshot(model: Any = None, recipe: Any = None, **arguments: "Unpack[OneshotKeywords]") -> Any:
    """Compress a model after training, without changing a line of its code.

        oneshot("smollm2", QuantizationModifier(scheme="W4A16", group_size=64, ignore=["lm_head"]), output_dir="out")

    Args:
        model: a folder, a hub id, a file or name that an installed source reads, such as `smollm2`, or a model that is
            already in memory, which is changed.
        recipe: a modifier, a list of them, a `Recipe`, a YAML or JSON file, or YAML text.
        **arguments: everything else; see `ModelArguments`, `RecipeArguments`, `DatasetArguments` and
            `OutputArguments`, whose attributes they are.  The names and defaults are those of llm-compressor.

    Returns:
        The compressed model: dequantized weights, and quantization of activations simulated on its forward, so that
        what is evaluated is what will be served.  Where weights were streamed, it is loaded from the output.  Its
        attribute `coldpress` is the run: report, recipe, output folder, evaluation.  None with `return_model=False`.

    Raises:
        ColdpressError: one of its kinds, saying what is wrong, where, and what to do.  No output is left behind but for
            finished stages, in `<output_dir>.partial`, after which the same call resumes.
    """
    parsed = parse_arguments({"model": model, "recipe": recipe, **arguments})
    state = run(parsed)
    return state.model if parsed.output.return_model else None


with_signature(oneshot, OneshotKeywords)


def run(arguments: Arguments, *, progress: Progress | None = None) -> State:
    """The same, from parsed arguments; returns the whole state, with the report of every layer.

    With `return_model=False` the weights of the state's model may be missing (on the meta device).
    """
    check_log(arguments)
    with joined() as ranks, _logged(arguments.output.log_dir if ranks.leads else None), plain_modes():
        job = prepare(arguments, progress=progress, ranks=ranks)
        if job.output is not None and job.output.writes:
            job.predicted.update(summary_of(predict(job)))
        if job.weights is None or arguments.model.check_tensors:
            check_every_tensor(job)
        with saying_where(job):
            report = job.run()
    state = job.state
    if arguments.output.return_model:
        form = output_format(job.recipe)
        if job.weights is not None:
            with plain_modes():
                state.model = _finished(arguments, state, form)
        offer_saving(state.model, finished_run(job, job.files(form, report), form))
        offer_result(state.model, report, arguments.output.output_dir, state.tokenizer)
    return state


def _finished(arguments: Arguments, state: State, form: Format) -> Any:
    """The compressed model, loaded from the output; what a format does not keep is taken from the run."""
    settings, before = arguments.model, state.model
    source: Any = before.config
    folder = Path(str(arguments.output.output_dir))
    model = load_model(
        str(folder / form.first if isinstance(form, SeveralFormats) else folder),
        dtype=next((parameter.dtype for parameter in before.parameters()), "auto"),
        device=settings.device,
        trust_remote_code=settings.trust_remote_code_model,
    )
    if linear_experts(before):
        linearize_experts(model)
    copy_attachments(before, model)
    model.config._name_or_path = source._name_or_path  # where it came from, not where it is
    return model


def check_writable(arguments: OutputArguments) -> None:
    """Complain about an output that is in the way, before any work is done."""
    if arguments.output_dir is not None:
        CheckpointWriter(arguments.output_dir, overwrite=arguments.overwrite, restart=True)


@contextmanager
def _logged(folder: str | None) -> Iterator[None]:
    """What this package logs, also written to a file in `folder`."""
    if folder is None:
        yield
        return
    path = Path(folder) / "oneshot.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"log_dir: cannot write {path}: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("coldpress")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
