"""What acts on a module's forward acts once on every batch, whatever pipeline runs it."""

from typing import ClassVar

import pytest
import torch
from attrs import frozen
from loose import SEEN, Loose, Watcher, straight, vectors

from coldpress import registry
from coldpress.plugin import Attachment, State, hookimpl
from coldpress.recipe import Recipe
from coldpress.run.job import Job
from coldpress_pipelines import Basic, Independent, LayerSequential, Sequential

PIPELINES = [
    Basic(),
    LayerSequential(),
    Sequential(true_sequential=True),
    Sequential(true_sequential=False),
    Sequential(propagate_error=False),
    Independent(),
]


@frozen(kw_only=True)
class Shifted(Attachment):
    kind: ClassVar[str] = "shifted"

    def outputs(self, module, y):
        return y + 1


@frozen(kw_only=True)
class Tripled(Attachment):
    kind: ClassVar[str] = "tripled"

    def inputs(self, module, x):
        return 3 * x


@frozen(kw_only=True, eq=False)
class Attacher(Watcher):
    """Shifts what blocks and their first layers output, and triples the inputs of the second ones."""

    def attachments(self, stage):
        shifted = [(name, Shifted()) for name in stage.modules if name.endswith((".0", ".1", ".2", "first"))]
        return shifted + [(name, Tripled()) for name in stage.modules if name.endswith("second")]

    @hookimpl
    def initialize(self, state, stage):
        for name, attachment in self.attachments(stage):
            state.attach(name, attachment)


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Both attachments, installed by their kinds."""
    find, own = registry.find, {one.kind: one for one in (Shifted, Tripled)}
    monkeypatch.setattr(registry, "find", lambda kind, name: own.get(name) or find(kind, name))


def by_hand(model, x):
    """What the layers of the model see, by name."""
    seen = {}
    for i, block in enumerate(model.blocks):
        seen[f"blocks.{i}.first"] = x
        seen[f"blocks.{i}.second"] = 3 * torch.relu(block.first(x) + 1)
        x = x + block.second(seen[f"blocks.{i}.second"]) + 1
    return {**seen, "head": x}


@pytest.mark.parametrize("pipeline", PIPELINES, ids=repr)
def test_inputs_and_outputs_are_changed_once(pipeline):
    torch.manual_seed(0)
    model, plain, data = Loose(straight), Loose(straight), vectors()
    plain.load_state_dict(model.state_dict())

    state = State(model=model, batches=data)
    Job(recipe=Recipe(Attacher()), state=state, pipeline=pipeline).run()

    seen = {entry[SEEN]: entry["input"] for entry in state.log if SEEN in entry}
    for index, batch in enumerate(data):
        for name, x in by_hand(plain, batch["x"]).items():
            torch.testing.assert_close(seen[name, index], x.flatten(0, 1).detach(), msg=f"{name}, batch {index}")
