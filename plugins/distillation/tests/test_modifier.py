"""OutputDistillationModifier: settings, and what it makes of a loss."""

import pytest
import torch

from coldpress import SchemeError, TargetError
from coldpress.errors import RecipeError
from coldpress.testing.models import batches, tiny_llama
from coldpress.testing.trial import run
from coldpress.training import Lifecycles
from coldpress_distillation import OutputDistillationModifier
from coldpress_distillation.algorithm import kl_divergence, square_head

BLOCKS = {"targets": "LlamaDecoderLayer", "comparison": "square_head"}


def loss_of(*modifiers, labels=None, model=None, **inputs):
    model = tiny_llama() if model is None else model
    lifecycles = Lifecycles(modifiers, model, tiny_llama(seed=1))
    lifecycles.attach()
    (batch,) = batches(rows=2, batch_size=2)
    output = model.train()(**batch, labels=batch["input_ids"] if labels is None else labels, **inputs)
    lifecycles.detach()
    return output.loss


def seen(model, **more):
    (batch,) = batches(rows=2, batch_size=2)
    with torch.no_grad():
        return model(**batch, labels=batch["input_ids"], **more)


def test_the_loss_is_the_models_own_and_the_divergence_per_token():
    student, teacher = seen(tiny_llama()), seen(tiny_llama(seed=1))
    term = kl_divergence(student.logits[:, :-1].flatten(0, 1), teacher.logits[:, :-1].flatten(0, 1)) / 30

    found = loss_of(OutputDistillationModifier(orig_scale=0.25, distill_scale=0.5))

    assert found.item() == pytest.approx((0.25 * student.loss + 0.5 * term).item(), rel=1e-5)
    assert found.requires_grad


def test_two_modifiers_add_up_and_the_teacher_runs_once():
    one, both = OutputDistillationModifier(), OutputDistillationModifier(**BLOCKS)

    plain = seen(tiny_llama()).loss.item()
    parts = [loss_of(one).item() - plain, loss_of(both).item() - plain]

    assert loss_of(one, both).item() == pytest.approx(plain + sum(parts), rel=1e-5)


def test_hidden_states_are_compared_block_by_block_with_their_weights():
    states = [seen(model, output_hidden_states=True).hidden_states for model in (tiny_llama(), tiny_llama(seed=1))]
    first = square_head(*(one[1][:, :-1] for one in states)).item()

    found = loss_of(OutputDistillationModifier(orig_scale=0.0, layer_weights=[2.0, 0.0], **BLOCKS))

    assert found.item() == pytest.approx(2 * first, rel=1e-5)


def test_tokens_without_a_label_do_not_count():
    (batch,) = batches(rows=2, batch_size=2)
    labels = batch["input_ids"].clone()
    labels[0] = -100
    student, teacher = seen(tiny_llama()), seen(tiny_llama(seed=1))
    wanted = kl_divergence(student.logits[1, :-1], teacher.logits[1, :-1]) / 15

    assert loss_of(OutputDistillationModifier(orig_scale=0.0), labels=labels).item() == pytest.approx(
        wanted.item(), rel=1e-5
    )


def test_a_sum_is_divided_by_the_labels_of_the_whole_step():
    whole = loss_of(OutputDistillationModifier(orig_scale=0.0))

    part = loss_of(OutputDistillationModifier(orig_scale=0.0), num_items_in_batch=torch.tensor(120))

    assert part.item() == pytest.approx(whole.item() / 4, rel=1e-5)


def test_what_is_logged_is_a_mean_over_tokens_whatever_the_loss_is_divided_by():
    logged = []
    for inputs in ({}, {"num_items_in_batch": torch.tensor(120)}):
        lifecycles = Lifecycles([OutputDistillationModifier()], tiny_llama().train(), tiny_llama(seed=1))
        lifecycles.attach()
        (batch,) = batches(rows=2, batch_size=2)
        lifecycles.training.model(**batch, labels=batch["input_ids"], **inputs)
        logged.append(lifecycles.training.metrics["distillation_loss"])

    assert logged[1] == pytest.approx(logged[0], rel=1e-5)


def test_without_gradients_nothing_is_distilled():
    model = tiny_llama()
    lifecycles = Lifecycles([OutputDistillationModifier()], model, tiny_llama(seed=1))
    lifecycles.attach()

    with torch.no_grad():
        assert seen(model.train()).loss == seen(tiny_llama()).loss


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"comparison": "square_head"}, SchemeError, "name modules in targets"),
        ({"targets": ["LlamaMLP"]}, SchemeError, "have no targets"),
        ({"temperature": 0}, ValueError, "temperature"),
        ({"distill_scale": 0}, ValueError, "distill_scale"),
        ({"top_k": 0}, ValueError, "top_k"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, error, said):
    with pytest.raises(error, match=said):
        OutputDistillationModifier(**settings)


def test_weights_must_be_as_many_as_modules():
    with pytest.raises(TargetError, match="layer_weights has 1 numbers, and targets match 2"):
        loss_of(OutputDistillationModifier(layer_weights=[1.0], **BLOCKS))


def test_in_one_shot_it_is_refused():
    with pytest.raises(RecipeError, match=r"acts while a model is trained.*coldpress\.train"):
        run(OutputDistillationModifier())
