"""What a notebook or a debugger shows: short, what was given, and nothing that a page would run."""

import pytest
from attrs import field, frozen

from coldpress import QuantizationArgs, Recipe, Scheme, oneshot, plan, preset
from coldpress.layer_report import LayerReport
from coldpress.modifier import Modifier
from coldpress.report import Report
from coldpress.testing.models import tiny_llama
from coldpress.testing.rounding import Rounding


@frozen(kw_only=True, eq=False)
class Own(Modifier):
    """One of somebody else's."""

    strength: float = 0.5
    words: list[str] = field(factory=list)


def test_a_modifier_shows_what_differs_from_its_defaults():
    assert repr(Own()) == "Own()"
    assert repr(Own(ignore="lm_head", strength=0.25)) == "Own(ignore=['lm_head'], strength=0.25)"
    assert repr(Own(words=["a"] * 9)) == "Own(words=['a', 'a', 'a', 'a', 'a', 'a', ...])"


def test_a_repr_of_its_own_stays():
    @frozen(kw_only=True, eq=False)
    class Named(Modifier):
        """Has one."""

        def __repr__(self):
            return "mine"

    assert repr(Named()) == "mine"


def test_a_recipe_shows_its_steps_and_a_notebook_its_yaml():
    recipe = Recipe([Rounding(scheme="W8A8", ignore=["<b>"])], format="dense")

    assert repr(recipe) == "Recipe([Rounding(ignore=['<b>'], scheme='W8A8')], format='dense')"
    assert "&lt;b&gt;" in recipe._repr_html_()
    assert "<b>" not in recipe._repr_html_()


def test_a_scheme_can_be_pasted_back():
    found = preset("W4A16")

    assert len(repr(found)) < 160
    assert eval(repr(found), {"Scheme": Scheme, "QuantizationArgs": QuantizationArgs}) == found
    assert repr(QuantizationArgs()) == "QuantizationArgs(num_bits=8, type='int', strategy='tensor')"


def test_a_report_is_a_line_and_a_table_and_names_are_escaped():
    lines = (LayerReport("<i>a", "Linear", (2, 2), "quantized", weight_error=0.125),)
    report = Report(lines, "", 1.5)

    assert repr(report) == "<Report: layers 1 quantized; weight error mean 12.50%, largest 12.50% in <i>a; time 1.50 s>"
    assert "largest 12.50% in &lt;i&gt;a</td>" in report._repr_html_()


@pytest.mark.parametrize("make", [oneshot, plan])
def test_what_the_doors_return_is_short_too(make):
    found = make(tiny_llama(), Rounding(scheme="W8A8", ignore=["lm_head"]))
    shown = found if make is plan else found.coldpress

    assert len(repr(shown)) < 200
    assert shown._repr_html_().startswith("<table><tr><th>")
