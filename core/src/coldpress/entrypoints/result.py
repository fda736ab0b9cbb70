"""What a model that was compressed knows of its run: `model.coldpress`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from coldpress.evaluation import Divergence, Perplexity, divergence, perplexity
from coldpress.models import load_model, need_tokenizer
from coldpress.report import Report
from coldpress.report.words import html_table

NAME = "coldpress"


@frozen(kw_only=True, eq=False, repr=False)
class Result:
    """The run that a model came of.

        model = oneshot("smollm2", "recipe.yaml", output_dir="out")
        model.coldpress.report.layers[0].weight_error
        model.coldpress.divergence("smollm2").kl

    Attributes:
        report: every layer and what became of it, the recipe that makes the same checkpoint again, seconds, stages;
            `report.to_dict()` is the content of `report.json`.
        output_dir: folder of the checkpoint; None where none was written.
        tokenizer: that the run had; None where it had none.
    """

    report: Report
    output_dir: Path | None
    tokenizer: Any
    _model: Any

    @property
    def recipe(self) -> str:
        """YAML that makes the same checkpoint again."""
        return self.report.recipe

    def perplexity(self, text: str | Sequence[str] | None = None, **settings: Any) -> Perplexity:
        """`coldpress.perplexity` of the model as it is now, with the tokenizer of the run.

        Args:
            text: as there; None reads the held-out half of `coldpress/short`.
            **settings: `window`, `max_tokens`, `batch_size`.
        """
        return perplexity(self._model, need_tokenizer(self.tokenizer, "evaluation"), text, **settings)

    def divergence(self, reference: Any, text: str | Sequence[str] | None = None, **settings: Any) -> Divergence:
        """`coldpress.divergence` of the model as it is now from a reference.

        Args:
            reference: a model, or what `load_model` reads; as a rule the original.
            text: as for `perplexity`.
            **settings: as for `perplexity`.
        """
        other = load_model(reference) if isinstance(reference, (str, Path)) else reference
        tokenizer = need_tokenizer(self.tokenizer, "evaluation")
        return divergence(self._model, other, tokenizer, text, **settings)

    def __repr__(self) -> str:
        return f"<coldpress: {'; '.join(f'{name} {words}' for name, words in self._facts())}>"

    def _repr_html_(self) -> str:
        """For notebooks."""
        return html_table(self._facts())

    def _facts(self) -> list[tuple[str, str]]:
        return [*self.report.facts(), ("output", str(self.output_dir or "not written"))]


def offer_result(model: Any, report: Report, output_dir: str | None, tokenizer: Any) -> None:
    """Make `model.coldpress` say what the run did."""
    folder = None if output_dir is None else Path(output_dir)
    vars(model)[NAME] = Result(report=report, output_dir=folder, tokenizer=tokenizer, model=model)
