"""CompressionCallback: modifiers in any Trainer of transformers, or in a loop of one's own.

    Trainer(..., callbacks=[CompressionCallback(recipe)])     also TRL's SFTTrainer, and what subclasses either

    callback = CompressionCallback(recipe)                    a loop of one's own
    callback.attach(model)
    optimizer = AdamW(model.parameters())
    for batch in batches:
        model(**batch).loss.backward()                        the loss is that of the modifiers
        optimizer.step()
        callback.step()
        optimizer.zero_grad()
    callback.detach()

A distilled loss needs nothing of the loop: a hook on the model's forward puts it in place of the model's own.
"""

import json
import logging
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback

from coldpress.errors import ArgumentError, CheckpointError
from coldpress.models import load_model
from coldpress.models.location import locate
from coldpress.recipe import read_recipe
from coldpress.training.lifecycles import Lifecycles
from coldpress.training.progress import learning_rate_problem, num_epochs_of
from coldpress.training.state_file import read_state, write_state

log = logging.getLogger(__name__)


class CompressionCallback(TrainerCallback):  # type: ignore[misc]
    """The modifiers of a recipe, active while a model is trained.

    Args:
        recipe: whatever `coldpress.oneshot` takes; each modifier must act in training.  None keeps what a model that
            was quantized before has: it is trained on its grids.
        distill_teacher: a model, or the name of one, for modifiers that distill.
        recipe_args: values of the recipe's `${name}` placeholders.
        stage: only the stages of the recipe whose names begin so.

    Attributes:
        lifecycles: of the model; None before `attach`.

    Raises:
        RecipeError: everything that is wrong with the recipe.
    """

    def __init__(
        self, recipe: Any = None, *, distill_teacher: Any = None, recipe_args: Any = None, stage: str | None = None
    ) -> None:
        self.recipe = read_recipe([] if recipe is None else recipe, arguments=recipe_args, stage=stage)
        self.lifecycles: Lifecycles | None = None
        self._teacher = distill_teacher

    # --- a loop of one's own

    def attach(
        self, model: nn.Module, optimizer: Any = None, *, num_steps: int | None = None, num_epochs: float | None = None
    ) -> None:
        """Begin to train a model.

        Args:
            model: as the loop calls it.
            optimizer: if it is there already; where scales are learned, it must be made after this call.
            num_steps: optimizer steps of the whole run.
            num_epochs: passes over the data of the whole run.  Schedules, such as that of gradual pruning, need it and
                `num_steps`, or `num_epochs` and the `epoch` of `step`, or an `end` of their own and the `epoch`.

        Raises:
            ColdpressError: one of its kinds; the model is as it was then.
        """
        if self.lifecycles is not None and self.lifecycles.attached:
            raise ArgumentError("the callback is attached already: detach() it first, or make another one")
        self.lifecycles = Lifecycles(self.recipe.modifiers, model, self._load_teacher(model))
        training = self.lifecycles.training
        training.num_steps, training.num_epochs = num_steps, num_epochs
        self.lifecycles.attach()
        if optimizer is not None:
            self._check_optimizer(optimizer)

    def loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """The loss of a batch, for loops that compute it from logits: `compute_loss_func` of a Trainer.

        TRL's SFTTrainer computes its loss from the head's inputs and never reads that of the model; with
        `compute_loss_func=callback.loss` it is this one.

        Args:
            outputs: of the model, called without labels.
            labels: [B, S], -100 where a token has no loss.
            num_items_in_batch: labels of the whole optimizer step; None for a mean over the batch.
        """
        lifecycles = self.lifecycles if self.lifecycles is not None else self._begun()
        if not lifecycles.training.model.training:  # also after training
            model: Any = lifecycles.training.model
            return model.loss_function(outputs.logits, labels, model.config.get_text_config().vocab_size)
        return self._begun().loss(outputs, labels, num_items_in_batch)

    def step(self, epoch: float | None = None) -> None:
        """After each `optimizer.step()`.

        Args:
            epoch: passes over the data that are done, with their fraction; None takes the share of `num_steps`, or
                leaves it unknown where `num_steps` or `num_epochs` is.
        """
        lifecycles = self._begun()
        training = lifecycles.training
        training.step += 1
        if epoch is not None:
            training.epoch = epoch
        elif training.num_steps and training.num_epochs:
            training.epoch = training.step / training.num_steps * training.num_epochs
        lifecycles.step()

    def detach(self) -> None:
        """End; quantized layers have the codes of their new weights, and the model is saved as `oneshot` saves it."""
        if self.lifecycles is not None:
            self.lifecycles.detach()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of a loop of one's own must hold beside the weights."""
        return self._begun().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, after `attach` and after the weights were loaded."""
        self._begun().load_state_dict(state)

    # --- a Trainer

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Attach, before the optimizer is made and before a checkpoint is loaded."""
        self._check_rate(args)
        if self.lifecycles is None or not self.lifecycles.attached:
            self.attach(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach where a Trainer was given this callback later; go on from a checkpoint's state."""
        self._check_rate(args)
        if self.lifecycles is None or not self.lifecycles.attached:
            self.attach(kwargs["model"])
        lifecycles = self._begun()
        if kwargs.get("optimizer") is not None:
            self._check_optimizer(kwargs["optimizer"])
        training = lifecycles.training
        training.num_steps = state.max_steps
        training.num_epochs = num_epochs_of(args, state, kwargs.get("train_dataloader"))
        training.step = state.global_step
        if state.global_step:
            lifecycles.load_state_dict(read_state(_checkpoint(args, state)))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count batches anew."""
        self._begun().begin_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put zeros back, prune further, before anything reads the weights."""
        self.step(epoch=None if self._begun().training.num_epochs else state.epoch)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Let the Trainer's history have what modifiers measure, such as a sparsity."""
        if state.log_history and self.lifecycles is not None and self.lifecycles.attached:
            state.log_history[-1].update(self.lifecycles.training.metrics)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what is not in the weights into the Trainer's checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        found = self._begun().state_dict()  # on all ranks: shards are gathered
        if state.is_world_process_zero and folder.is_dir():
            write_state(folder, found)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Detach."""
        self.detach()

    def _check_rate(self, args: Any) -> None:
        problem = learning_rate_problem(args.learning_rate)
        if problem is not None:
            raise ArgumentError(problem)

    def _check_optimizer(self, optimizer: Any) -> None:
        try:
            self._begun().check_optimizer(optimizer)
        except ArgumentError:
            self.detach()
            raise

    def _begun(self) -> Lifecycles:
        if self.lifecycles is None or not self.lifecycles.attached:
            raise ArgumentError("the callback is not attached: call attach(model) first, or hand it to a Trainer")
        return self.lifecycles

    def _load_teacher(self, model: nn.Module) -> nn.Module | None:
        found: nn.Module | None = self._teacher
        if not isinstance(self._teacher, str | Path):
            return found
        locate(str(self._teacher))
        log.info("loading the teacher %s", self._teacher)
        self._teacher = load_model(self._teacher, device=next(model.parameters()).device)
        found = self._teacher
        return found


def _checkpoint(args: Any, state: Any) -> Path:
    """The folder that a Trainer goes on from.

    Raises:
        CheckpointError: it is not where it is expected, or what is there is the checkpoint of another run.
    """
    own = Path(args.output_dir) / f"checkpoint-{state.global_step}"
    named = getattr(args, "resume_from_checkpoint", None)
    if isinstance(named, str) and named.lower() not in ("true", "1") and Path(named).is_dir():
        return Path(named)
    advice = "set resume_from_checkpoint of its TrainingArguments to the folder that it goes on from"
    if not own.is_dir():
        raise CheckpointError(f"the run goes on at step {state.global_step}, and there is no {own}: {advice}")
    if not _is_of(own, state):
        raise CheckpointError(
            f"the run goes on at step {state.global_step}, and {own} is that of another run: {advice}"
        )
    return own


def _is_of(folder: Path, state: Any) -> bool:
    """Whether a checkpoint has the history that a Trainer goes on with."""
    try:
        found = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return json.dumps(found.get("log_history")) == json.dumps(state.log_history)
