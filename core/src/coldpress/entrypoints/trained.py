"""What is left of a training run: a checkpoint as `oneshot` writes it, with recipe, report, curve and manifest."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import evolve, field, frozen

from coldpress import registry
from coldpress.arguments import DEFAULT_PIPELINE
from coldpress.bases.quantized_training import whole_weight
from coldpress.checkpoint import CheckpointWriter, Format
from coldpress.checkpoint.output import Output
from coldpress.entrypoints.job import format_choice, origin_of, output_format
from coldpress.entrypoints.opening import Opened, report_extra
from coldpress.entrypoints.saving import finished_run, offer_saving
from coldpress.entrypoints.training_arguments import TrainArguments
from coldpress.recipe import Recipe, write_recipe
from coldpress.report import Report, manifest_of
from coldpress.report.curve import NAME as CURVE
from coldpress.report.curve import training_curve
from coldpress.report.page import PAGE, page_of
from coldpress.run.job import Job
from coldpress.stage import find_layers
from coldpress.state import State

How = Literal["trained", "adapters were merged"]
_ON_GRID: dict[How, str] = {
    "trained": "trained on its grid",
    "adapters were merged": "adapters were merged, and it was rounded again",
}


@frozen(eq=False)
class Trained:
    """A trained model.

    Attributes:
        model: plain, with the weights that are saved.
        metrics: numbers of the run, losses on the way among them.
        recipe: that it was trained by.
        seconds: of the whole run.
        moved: names of the modules that were trained.
        how: as the report says it.
    """

    model: Any
    metrics: Mapping[str, Any]
    recipe: Recipe
    seconds: float = 0.0
    moved: frozenset[str] = frozenset()
    how: How = "trained"


@frozen(kw_only=True, eq=False)
class WritingJob(Job):
    """Writes a model as it is, and tells how it was trained.

    Attributes:
        trained: the model and its training.
    """

    trained: Trained = field()

    def _plan(self) -> None:
        super()._plan()
        layers = {one.name: one for one in find_layers(self.state.model.named_modules())}
        for name, line in self.state.report.items():
            if name not in layers:
                continue
            weight = whole_weight(layers[name])
            line.sparsity = 1 - weight.count_nonzero().item() / weight.numel()
            if name not in self.trained.moved:
                line.reason = "not trained"
            elif line.status == "untouched":
                line.status, line.reason = "changed", self.trained.how
            else:
                line.reason = _ON_GRID[self.trained.how]

    def files(self, form: Format, report: Report) -> dict[str, Any]:
        """Recipe of the training, report and manifest with its numbers, and its curve."""
        metrics, recipe = self.trained.metrics, write_recipe(self.trained.recipe)
        report = evolve(report, recipe=recipe, training=metrics, seconds=self.trained.seconds)
        parts = (*self.trained.recipe.modifiers, self.pipeline, form)
        manifest = manifest_of(self.state, report, binding=self.binding, parts=parts)
        page = page_of(report.to_dict(), recipe=recipe, manifest=manifest)
        return {
            "recipe.yaml": recipe,
            "report.json": report.to_dict(),
            PAGE: page,
            CURVE: training_curve(metrics.get("history", [])),
            "manifest.json": manifest,
        }


def write_trained(trained: Trained, arguments: TrainArguments, *, opened: Opened, tokenizer: Any) -> None:
    """Write the checkpoint, and let the model's own `save_pretrained` write such a one later.

    Args:
        trained: in memory.
        arguments: of the run.
        opened: where the model came from.
        tokenizer: of the model.
    """
    common = arguments.common
    recipe = evolve(trained.recipe, modifiers=[], stages=[], format=format_choice(trained.recipe, common))
    form, origin = output_format(recipe), origin_of(common.model, opened)
    assert common.output.output_dir is not None
    writer = CheckpointWriter(common.output.output_dir, overwrite=common.output.overwrite, restart=True)
    state = State(model=trained.model, tokenizer=tokenizer, seed=common.recipe.seed)
    report_extra(state, opened.extra)
    job = WritingJob(
        recipe=recipe,
        state=state,
        pipeline=registry.find("pipelines", DEFAULT_PIPELINE)(),
        output=Output(writer, form, origin),
        form=form,
        origin=origin,
        trained=trained,
    )
    job.plan()
    report = job.run()
    offer_saving(trained.model, finished_run(job, job.files(form, report), form))


def save_adapters(model: Any, arguments: TrainArguments, trained: Trained) -> None:
    """Write adapters alone, as PEFT does, beside recipe, report and curve; the model's own folder stays as it is."""
    folder = Path(str(arguments.common.output.output_dir))
    if folder.exists() and arguments.common.output.overwrite:
        shutil.rmtree(folder)
    model.save_pretrained(folder)
    (folder / "recipe.yaml").write_text(write_recipe(trained.recipe), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps({"training": dict(trained.metrics)}, indent=2), encoding="utf-8")
    (folder / CURVE).write_text(training_curve(trained.metrics.get("history", [])), encoding="utf-8")
