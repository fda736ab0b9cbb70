"""What is said of a fit, in the report and aloud."""

import pytest
from torch import nn

from coldpress.layer_report import LayerReport
from coldpress.plugin import State, note_fit
from coldpress.stage import Layer


@pytest.fixture
def state():
    return State(model=nn.Module())


def layer(state, name, columns):
    state.report[name] = LayerReport(name, "Linear", (4, columns))
    return Layer(name, nn.Linear(columns, 4, bias=False), ("Linear",))


def fit(state, name, *, columns, tokens):
    note_fit(state, [layer(state, name, columns)], tokens=tokens, dampening=0.01, losses=[6.0])


def test_every_layer_has_its_tokens_dampening_and_error_of_a_token(state):
    layers = [layer(state, "q", 8), layer(state, "k", 8)]

    note_fit(state, layers, tokens=20, dampening=0.01, losses=[6.0, 2.0])

    assert state.report["q"].notes == {"tokens": 20, "dampening": 0.01, "output_error": 0.3}
    assert state.report["k"].notes["output_error"] == 0.1


def test_a_loss_is_told_beside_that_of_rounding_where_it_is_known(state):
    layers = [layer(state, "q", 8), layer(state, "k", 8)]

    note_fit(state, layers, tokens=20, dampening=0.01, losses=[6.0, 0.0], rounding_losses=[8.0, 0.0])

    assert state.report["q"].notes["rounding_ratio"] == 0.75
    assert "rounding_ratio" not in state.report["k"].notes  # nothing was lost by either


def test_few_tokens_are_warned_of_once_and_again_where_there_are_fewer_for_a_column(state, caplog):
    fit(state, "enough", columns=8, tokens=8)
    assert not caplog.messages
    fit(state, "few", columns=8, tokens=4)
    fit(state, "as few", columns=16, tokens=8)
    fit(state, "more", columns=8, tokens=5)
    fit(state, "fewer", columns=16, tokens=4)

    assert [line.split(";")[0] for line in caplog.messages] == [
        "few: 4 tokens for 8 columns",
        "fewer: 4 tokens for 16 columns",
    ]
