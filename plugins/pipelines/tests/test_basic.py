"""basic: one stage, the model as it is."""

import pytest
import torch

from coldpress import CalibrationError
from coldpress.plugin import Pass, State
from coldpress.testing.models import batches, tiny_llama
from coldpress_pipelines import Basic


def state(data):
    return State(model=tiny_llama(), batches=data)


def test_the_model_is_one_stage():
    (stage,) = Basic().stages(state([]))

    assert (stage.name, stage.index) == ("model", 0)
    assert len(stage.layers(["Linear"])) == 15


def test_every_batch_runs_once_in_order():
    run, seen = state(batches(rows=5, batch_size=2)), []
    run.model.register_forward_pre_hook(lambda m, args, kw: seen.append(kw["input_ids"]), with_kwargs=True)
    (stage,) = Basic().stages(run)

    assert list(Basic().sweep(run, stage)) == [Pass(0), Pass(1), Pass(2)]
    assert torch.equal(torch.cat(seen), torch.cat([batch["input_ids"] for batch in run.batches]))


def test_a_batch_is_run_only_when_it_is_asked_for():
    run, seen = state(batches(rows=3)), []
    run.model.register_forward_pre_hook(lambda *_: seen.append(1))
    (stage,) = Basic().stages(run)
    sweep = Basic().sweep(run, stage)

    assert (next(sweep), len(seen)) == (Pass(0), 1)
    assert (next(sweep), len(seen)) == (Pass(1), 2)


@pytest.mark.parametrize(
    "batch",
    [
        {"input_ids": torch.full((1, 4), 10**6)},
        {"wrong": torch.zeros(1, 4, dtype=torch.long)},
    ],
    ids=["beyond the vocabulary", "no ids"],
)
def test_a_batch_that_the_model_refuses_is_named(batch):
    run = state([batches()[0], batch])
    (stage,) = Basic().stages(run)

    with pytest.raises(CalibrationError, match="the model refuses batch 1"):
        list(Basic().sweep(run, stage))
