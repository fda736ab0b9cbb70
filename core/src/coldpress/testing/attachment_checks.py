"""What an attachment promises: it acts on a forward and changes nothing else, and is recorded, recalled and copied.

The setting `tensors` is a function that is handed the module and returns the buffers that the attachment names.
"""

import json
import pickle
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from coldpress.attachment import Attachment, attach, attachments_on, detach
from coldpress.testing.check import Check
from coldpress.testing.models import batches, logits, tiny_llama
from coldpress.testing.settings_checks import has_a_module, import_is_quiet, settings_class
from coldpress.testing.subject import Subject
from coldpress.testing.trace import changed, differences, same_bits, trace_of, weights_of
from coldpress.testing.trial import inputs_of

# Where each method is tried, in a tiny Llama.
_PLACES = {
    "inputs": "model.layers.0.mlp.down_proj",
    "weight": "model.layers.0.mlp.down_proj",
    "outputs": "model.layers.0.mlp",
    "attention": "model.layers.0.self_attn",
}


def acts(subject: Subject) -> None:
    """Its kind is the name of its entry point, and it overrides one of `inputs`, `weight`, `outputs`, `attention`."""
    kind = subject.cls.kind
    assert kind, "it has no kind: kind: ClassVar[str] = the name of its entry point"
    assert not subject.installed or kind == subject.name, f"its kind is {kind!r} and its entry point {subject.name!r}"
    found = _methods(subject)
    assert found, "it overrides none of inputs, weight, outputs and attention, so it does nothing"
    assert len(found) == 1, f"it overrides {' and '.join(found)}: one attachment acts in one place"


def recorded(subject: Subject) -> None:
    """JSON holds its record, from which an equal attachment is made, that gives the same bits."""
    one = _attachment(subject)
    try:
        record = json.loads(json.dumps(one.to_record(), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"its record is nothing that JSON can hold: {error}") from error
    other = type(one).from_record(record)
    assert json.dumps(other.to_record()) == json.dumps(one.to_record()), "what is recalled has another record"
    expected, again = (_logits_with(subject, attachment) for attachment in (one, other))
    assert same_bits(expected, again), "what is recalled acts in another way"


def keeps_the_form(subject: Subject) -> None:
    """What it gives has the shape and dtype of what it is given, and is finite, in float32, bfloat16 and float16."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = tiny_llama(dtype=dtype)
        _attach(subject, model)
        with torch.no_grad():
            found = model(**batches(rows=1)[0]).logits
        assert found.dtype == dtype, f"the model's outputs are {found.dtype}, not {dtype}"
        assert torch.isfinite(found).all(), f"in {dtype} the model's outputs are not finite"


def writes_into_nothing(subject: Subject) -> None:
    """Neither weights nor what it is handed are written into, and twice the same gives the same bits."""
    model = tiny_llama()
    _attach(subject, model)
    before = weights_of(model)
    once, twice = logits(model, batches(rows=2)), logits(model, batches(rows=2))
    touched = changed(before, model)
    assert not touched, f"a forward changes {', '.join(touched[:4])}"
    assert same_bits(once, twice), "the second forward gives other bits than the first"
    method = _methods(subject)[0]
    if method != "attention":
        module = model.get_submodule(_PLACES[method])
        x = inputs_of(tiny_llama(), batches(rows=1))[_PLACES["inputs"]]  # [T, I]
        kept = x.clone()
        (one,) = attachments_on(module)
        getattr(one, method)(module, x)
        assert torch.equal(x, kept), f"{method} writes into the tensor that it is handed"


def goes_with_the_model(subject: Subject) -> None:
    """A copy and a pickle of the model compute what the model computes."""
    model = tiny_llama()
    _attach(subject, model)
    expected = logits(model, batches(rows=1))
    for how, other in (("copied", deepcopy(model)), ("pickled", pickle.loads(pickle.dumps(model)))):
        assert same_bits(logits(other, batches(rows=1)), expected), f"the model that is {how} computes something else"


def can_be_taken_off(subject: Subject) -> None:
    """Attached and taken off again, it leaves the model as it was; attached twice, it acts once."""
    model = tiny_llama()
    trace, weights, expected = trace_of(model), weights_of(model), logits(model, batches(rows=1))
    _attach(subject, model)
    once = logits(model, batches(rows=1))
    _attach(subject, model)
    assert same_bits(logits(model, batches(rows=1)), once), "attached again, in place of itself, it acts otherwise"
    detach(model.get_submodule(_PLACES[_methods(subject)[0]]), subject.cls.kind)
    found = differences(trace, trace_of(model)) + changed(weights, model)
    assert not found, "left behind:\n  " + "\n  ".join(found[:8])
    assert same_bits(logits(model, batches(rows=1)), expected), "the model computes something else than before"


def passes_gradients(subject: Subject) -> None:
    """Gradients reach what comes before it, so that a model that has it can be trained."""
    model = tiny_llama()
    _attach(subject, model)
    with torch.enable_grad():
        model(**batches(rows=1)[0]).logits.sum().backward()
    before = "model.layers.0.mlp.up_proj" if _methods(subject)[0] != "attention" else "model.layers.0.self_attn.v_proj"
    gradient = model.get_submodule(before).weight.grad
    assert gradient is not None, f"no gradient reaches {before}"
    assert gradient.any(), f"the gradient of {before} is zero"
    assert torch.isfinite(gradient).all(), f"the gradient of {before} is not finite"


def _methods(subject: Subject) -> list[str]:
    return [name for name in _PLACES if getattr(subject.cls, name) is not getattr(Attachment, name)]


def _attachment(subject: Subject) -> Attachment:
    made: Attachment = subject.make()
    return made


def _attach(subject: Subject, model: nn.Module, attachment: Attachment | None = None) -> None:
    one = attachment or _attachment(subject)
    module = model.get_submodule(_PLACES[_methods(subject)[0]])
    tensors: Any = subject.settings.get("tensors")
    assert tensors is not None or not one.buffers(), (
        f"it names the buffers {', '.join(one.buffers())}: give the setting tensors, a function from the module to them"
    )
    attach(module, one, None if tensors is None else tensors(module))


def _logits_with(subject: Subject, attachment: Attachment) -> Tensor:
    model = tiny_llama()
    _attach(subject, model, attachment)
    return logits(model, batches(rows=1))


_ACTS = ("acts", "recorded")

CHECKS = (
    Check(settings_class),
    Check(import_is_quiet, applies=has_a_module),
    Check(acts),
    Check(recorded, after=("acts",)),
    Check(keeps_the_form, after=_ACTS),
    Check(writes_into_nothing, after=(*_ACTS, "keeps_the_form")),
    Check(goes_with_the_model, after=(*_ACTS, "writes_into_nothing")),
    Check(can_be_taken_off, after=(*_ACTS, "writes_into_nothing")),
    Check(passes_gradients, after=(*_ACTS, "keeps_the_form")),
)
