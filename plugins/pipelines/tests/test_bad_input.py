"""What a pipeline is handed and cannot use is named, and leaves nothing behind; what it can use works."""

import greenlet
import pytest
import torch
from loose import Loose, Watcher, straight, untouched, vectors, watch
from torch import nn

from coldpress import CalibrationError, ModelError, NumericsError, TargetError
from coldpress.plugin import Stage
from coldpress.testing.models import batches, tiny_conv1d, tiny_llama
from coldpress.testing.trial import inputs_of
from coldpress_pipelines import Basic, Independent, LayerSequential, Sequential
from coldpress_pipelines.walking import placed

EVERY = pytest.mark.parametrize("pipeline", [Basic, Sequential, LayerSequential, Independent])
BLOCKWISE = pytest.mark.parametrize("pipeline", [Sequential, LayerSequential])


@EVERY
@pytest.mark.parametrize("make", [tiny_llama, tiny_conv1d])
def test_batches_of_unequal_length_are_no_trouble(make, pipeline):
    model, data = make(), []
    for rows, length in ((1, 16), (3, 5), (2, 1), (1, 30)):
        data += batches(rows=rows, length=length, batch_size=rows, seed=length)
    data[1]["attention_mask"][2, 3:] = 0

    seen, _ = watch(model, data, pipeline())

    expected = inputs_of(model, data)
    assert len(seen) == 4 * len(list(Watcher().layers(Stage.whole(model))))
    for name in {name for name, _ in seen}:
        torch.testing.assert_close(torch.cat([seen[name, index] for index in range(4)]), expected[name])


@EVERY
def test_the_layer_and_the_batch_of_a_bad_number_are_named_and_everything_is_unwound(pipeline):
    left = []

    def path(blocks, x):
        try:
            return straight(blocks, x)
        finally:
            left.append(len(x))

    model, data = Loose(path), vectors(3)
    data[1]["x"][0, 2, 3] = float("inf")

    with pytest.raises(NumericsError, match=r"the input of blocks\.0\.first has NaN or Inf in batch 1"):
        watch(model, data, pipeline())

    assert untouched(model)
    assert len(left) >= 2
    assert greenlet.getcurrent().parent is None


@BLOCKWISE
def test_a_bad_number_that_a_compressed_block_makes_is_named_where_it_is_read(pipeline):
    model = Loose(straight)
    model.blocks[0].second.register_forward_hook(lambda module, args, x: x / 0)

    with pytest.raises(NumericsError, match=r"the input of blocks\.1\.first has NaN or Inf in batch 0"):
        watch(model, vectors(), pipeline(offload_activations="disk", offload_limit=0))

    assert untouched(model)


@EVERY
@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (
            {"input_ids": torch.full((1, 4), 10**6)},
            r"\{'input_ids': \(1, 4\)\}\): IndexError.*go from 1000000 to 1000000 at up to 4 pos",
        ),
        ({"wrong": torch.ones(1, 4, dtype=torch.long)}, r"\{'wrong': \(1, 4\)\}\): "),
        ({"input_ids": torch.ones(1, 4)}, "RuntimeError"),
        ({"input_ids": None}, "None|exactly one"),
    ],
    ids=["beyond the vocabulary", "no ids", "no numbers of tokens", "nothing"],
)
def test_a_batch_that_the_model_refuses_is_named(pipeline, batch, says):
    model = tiny_llama()

    with pytest.raises(CalibrationError, match=f"the model refuses batch 2.*({says})"):
        watch(model, [*batches(rows=2), batch], pipeline(), targets=["re:.*up_proj"])

    assert untouched(model)


@BLOCKWISE
def test_a_batch_that_only_a_late_block_refuses_is_named(pipeline):
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            if len(x[0]) == 3:
                raise KeyError("three")
            return self.second(self.first(x))

    model = Loose(straight)
    model.blocks[2] = Last()

    with pytest.raises(
        CalibrationError, match=r"the model refuses batch 4 \(\{'x': \(1, 3, 8\)\}\): KeyError: 'three'"
    ):
        watch(model, [*vectors(), {"x": torch.ones(1, 3, 8)}], pipeline())

    assert untouched(model)


@EVERY
def test_a_batch_without_a_token_is_named_before_anything_runs(pipeline):
    data = batches(rows=4)
    data[1] = {"input_ids": torch.ones(1, 0, dtype=torch.long), "attention_mask": torch.ones(1, 0, dtype=torch.long)}
    data[3]["attention_mask"][:] = 0
    model = tiny_llama()
    model.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))

    with pytest.raises(CalibrationError, match="2 of 4 batches hold no token: 1, 3; leave them out"):
        watch(model, data, pipeline())


def test_a_model_without_a_list_of_blocks_says_how_to_name_them(caplog):
    model = nn.Sequential(nn.ReLU(), nn.Linear(8, 8))
    data = [{"input": torch.ones(2, 8)}]

    with pytest.raises(ModelError, match=r"Sequential has no list of blocks.*sequential_targets=\[\.\.\.\]"):
        watch(model, data, LayerSequential(), targets=["1"])
    watch(model, data, Sequential(), targets=["1"])

    assert "Sequential has no list of blocks, so it is one stage; name them with sequential_targets" in caplog.text


@BLOCKWISE
def test_blocks_that_are_named_wrongly_are_corrected(pipeline):
    with pytest.raises(TargetError, match="no module is a block named 'LlamaDecodeLayer'; did you mean 'LlamaDecoder"):
        watch(tiny_llama(), batches(), pipeline(sequential_targets=["LlamaDecodeLayer"]))


@EVERY
def test_a_model_on_several_devices_is_refused_by_name(pipeline):
    model = tiny_llama()
    model.model.layers[1].to("meta")

    with pytest.raises(
        ModelError,
        match=r"model\.embed_tokens\.weight is on cpu and model\.layers\.1\.\S+ is on meta: .* several devices",
    ):
        watch(model, batches(), pipeline())


@EVERY
def test_batches_are_brought_to_the_device_of_the_model(pipeline, accelerator):
    model = tiny_llama()
    plain, _ = watch(model, batches(), Basic())
    seen, _ = watch(model.to(accelerator), batches(), pipeline())

    assert seen.keys() == plain.keys()
    assert all(x.device.type == accelerator.type for x in seen.values())
    for key in plain:
        torch.testing.assert_close(seen[key].cpu(), plain[key], rtol=1e-3, atol=1e-4)


def test_tensors_that_are_there_are_not_copied():
    (batch,) = batches(rows=1)

    assert all(
        x is batch[name] for name, x in placed({**batch, "use_cache": False}, tiny_llama()).items() if name in batch
    )
    assert placed({"use_cache": False}, tiny_llama()) == {"use_cache": False}
    assert placed(batch, tiny_llama().to("meta"))["input_ids"] is batch["input_ids"]


@pytest.fixture
def accelerator():
    if not torch.accelerator.is_available():
        pytest.skip("needs an accelerator")
    return torch.accelerator.current_accelerator()


@EVERY
def test_forwards_that_were_replaced_on_instances_run_and_are_there_afterwards(pipeline):
    model, data = tiny_llama(), batches(rows=2)
    block, layer = model.model.layers[0], model.model.layers[1].mlp.up_proj
    plain, inner = block.forward, layer.forward
    doubled = block.forward = lambda *args, **more: 2 * plain(*args, **more)
    halved = layer.forward = lambda x: inner(x) / 2

    seen, _ = watch(model, data, pipeline())

    assert block.__dict__["forward"] is doubled
    assert layer.__dict__["forward"] is halved
    expected = inputs_of(model, data)
    for name in {name for name, _ in seen}:
        torch.testing.assert_close(torch.cat([seen[name, index] for index in range(2)]), expected[name])
