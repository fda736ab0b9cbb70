"""How a model is trained, beside what transformers' own `TrainingArguments` say."""

from collections.abc import Sequence
from typing import Any

from attrs import Attribute, field, frozen

from coldpress.arguments.checks import at_least, is_a, path
from coldpress.errors import ArgumentError


@frozen(kw_only=True, eq=False)
class TrainingArguments:
    """What `coldpress.train` takes beside the model, the recipe, the data and all of transformers' TrainingArguments.

    Attributes:
        distill_teacher: a model in memory, or a folder, hub id or name of one, for modifiers that distill.
        checkpoint_dir: folder of the Trainer's checkpoints; None is `<output_dir>.checkpoints`.
        resume_from_checkpoint: one of these checkpoints, or True for the last one.
        run_stages: run the stages of the recipe one after the other, each with an output of its own in `output_dir`;
            a stage without a modifier that acts in training is run in one shot.
        max_train_samples: how many samples are trained on; None takes all.
        peft_config: of PEFT; adapters are trained, and the weights, compressed or not, stay frozen.
        merge_adapters: add the adapters to the weights at the end, rounded to the grids that these have; False saves
            the adapters alone.
        callbacks: more callbacks of the Trainer, `TrainerCallback` each.
        measure: perplexity on held-out text before and after, the held-out half of `coldpress/short`.
    """

    distill_teacher: Any = field(default=None, converter=path)
    checkpoint_dir: str | None = field(default=None, converter=path, validator=is_a(str, optional=True))
    resume_from_checkpoint: Any = field(default=None, converter=path, validator=is_a(str, bool, optional=True))
    run_stages: bool = field(default=False, validator=is_a(bool))
    max_train_samples: int | None = field(default=None, validator=at_least(1, optional=True))
    peft_config: Any = None
    merge_adapters: bool = field(default=True, validator=is_a(bool))
    callbacks: Sequence[Any] = ()
    measure: bool = field(default=True, validator=is_a(bool))

    @merge_adapters.validator
    def _check_adapters(self, attribute: "Attribute[Any]", merge: bool) -> None:
        if not merge and self.peft_config is None:
            raise ArgumentError("merge_adapters=False goes with peft_config, which is missing")
