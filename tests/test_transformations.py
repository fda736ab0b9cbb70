"""Equivalent transformations in `initialize`: before any batch runs through the stage, prologue included."""

from functools import partial
from typing import ClassVar

import pytest
import torch
from attrs import frozen
from torch import Tensor

from coldpress import load_model, oneshot, testing
from coldpress.errors import BrokenPluginError
from coldpress.plugin import TRANSFORMS, Modifier, Needs, Stage, State, hookimpl
from coldpress.registry import find
from coldpress.testing.interrupt import interrupted
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer

WRITERS, READERS = ("o_proj", "down_proj"), ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")


@frozen(kw_only=True, eq=False)
class FlipSigns(Modifier):
    """Flip the signs of random channels of a Llama's residual stream: a rotation that commutes with its norms."""

    traits: ClassVar[frozenset[str]] = frozenset({TRANSFORMS})

    seed: int = 0

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        for layer in stage.every_layer:
            last, weight = layer.name.rpartition(".")[2], layer.weight  # [O, I]
            if last in WRITERS:
                weight.mul_(self._signs(len(weight))[:, None])
            elif last in READERS or last == "embed_tokens":
                weight.mul_(self._signs(weight.shape[1]))

    def _signs(self, width: int) -> Tensor:
        return torch.randint(2, (width,), generator=torch.Generator().manual_seed(self.seed)) * 2.0 - 1


run = partial(testing.run, data=batches(rows=4, batch_size=2), pipeline="sequential")


def quantizer(name="GPTQModifier", **settings):
    return find("modifiers", name)(**{"scheme": "W4A16", "group_size": 32, "ignore": ["lm_head"], **settings})


@pytest.mark.parametrize("pipeline", ["sequential", "layer_sequential", "basic", "data_free"])
def test_the_function_of_the_model_is_kept(pipeline):
    model, data = tiny_llama(), batches(rows=2)
    before, weight = logits(model, data), model.model.embed_tokens.weight.clone()

    run(FlipSigns(), model=model, pipeline=pipeline)

    torch.testing.assert_close(logits(model, data), before, rtol=1e-4, atol=1e-5)
    assert not torch.equal(model.model.embed_tokens.weight, weight)


@pytest.mark.parametrize("pipeline", ["sequential", "layer_sequential", "basic"])
def test_batches_run_through_what_was_transformed(pipeline):
    plain, flipped, data = tiny_llama(), tiny_llama(), batches(rows=4)

    run(quantizer(scheme="FP8_DYNAMIC", group_size=None), model=plain, pipeline=pipeline)
    run(FlipSigns(), quantizer(scheme="FP8_DYNAMIC", group_size=None), model=flipped, pipeline=pipeline)

    # Signs commute with the grid of a float, so GPTQ on flipped inputs and weights is GPTQ, flipped afterwards.
    torch.testing.assert_close(logits(flipped, data), logits(plain, data), rtol=1e-4, atol=1e-4)


def test_it_is_streamed_and_resumed(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    data = {"dataset": ["some text to calibrate with", "and more"], "num_calibration_samples": 2, "quiet": True}
    recipe = [FlipSigns(), quantizer()]
    oneshot(str(tmp_path / "model"), recipe, output_dir=tmp_path / "whole", stream_weights=False, **data)

    with interrupted(2):
        oneshot(str(tmp_path / "model"), recipe, output_dir=tmp_path / "out", **data)
    oneshot(str(tmp_path / "model"), recipe, output_dir=tmp_path / "out", **data)

    whole, found = (load_model(tmp_path / name, device="cpu").state_dict() for name in ("whole", "out"))
    assert all(torch.equal(tensor, found[name]) for name, tensor in whole.items())


def test_who_does_not_say_so_may_not_change_weights_in_initialize():
    class Eager(Modifier):
        def needs(self):
            return Needs()

        @hookimpl
        def initialize(self, state, stage):
            for layer in self.layers(stage):
                layer.weight.mul_(2)

    with pytest.raises(BrokenPluginError, match=r"Eager.initialize at .* changed .*q_proj.weight.*trait TRANSFORMS"):
        run(Eager(), model=tiny_llama())
