"""data_free: block by block, and nothing runs."""

import pytest

from coldpress import CalibrationError
from coldpress.plugin import State
from coldpress.testing.models import tiny_conv1d, tiny_llama
from coldpress_pipelines import DataFree


def test_stages_are_prologue_blocks_and_epilogue():
    names = [stage.name for stage in DataFree().stages(State(model=tiny_llama(layers=3)))]

    assert names == ["prologue", "model.layers.0", "model.layers.1", "model.layers.2", "epilogue"]


@pytest.mark.parametrize("model", [tiny_llama, tiny_conv1d])
def test_the_model_is_not_run(model):
    model = model()
    model.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))

    assert len(list(DataFree().stages(State(model=model)))) == 4


def test_a_sweep_is_refused():
    state = State(model=tiny_llama())
    stage = next(DataFree().stages(state))

    with pytest.raises(CalibrationError, match="runs no batches"):
        DataFree().sweep(state, stage)
