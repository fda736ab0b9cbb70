"""Firing hooks: modifiers in recipe order, one at a time, and which hook is running."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pluggy
from attrs import field, frozen

from coldpress import hookspecs
from coldpress.errors import BrokenPluginError
from coldpress.modifier import Modifier
from coldpress.planned import Running
from coldpress.run.blame import blaming
from coldpress.run.watch import Watch
from coldpress.stage import Stage
from coldpress.state import State


@frozen(eq=False)
class Hooks:
    """The hooks of a recipe's modifiers.

    Attributes:
        modifiers: in recipe order.
        manager: where they are registered; it checks that hooks exist and fit, the order of calls is ours.
    """

    modifiers: Sequence[Modifier]
    manager: pluggy.PluginManager = field(init=False)

    @manager.default
    def _register(self) -> pluggy.PluginManager:
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        try:
            for index, modifier in enumerate(self.modifiers):
                manager.register(modifier, name=f"{index}:{type(modifier).__name__}")
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise BrokenPluginError(f"a hook does not fit coldpress.hookspecs: {error}") from error
        return manager

    def fire(self, hook: str, modifier: Modifier, state: State, stage: Stage, **arguments: Any) -> None:
        """Call a hook of one modifier, if it implements it, and check what it has done to the stage.

        Raises:
            ColdpressError: one of its kinds, naming the modifier.
        """
        watch = arguments.pop("watch", None) or Watch.of(stage)
        with self.running(Running(modifier, hook, stage), state) as running:
            self._call(hook, modifier, state=state, stage=stage, **arguments)
            watch.settle(state, running)

    def save(self, state: State, folder: Any) -> None:
        """Call `save` of every modifier, in recipe order."""
        for modifier in self.modifiers:
            with self.running(Running(modifier, "save", Stage.whole(state.model)), state):
                self._call("save", modifier, state=state, folder=folder)

    @contextmanager
    def running(self, running: Running, state: State) -> Iterator[Running]:
        """Inside, this hook runs, and is to blame for exceptions."""
        state.begin_hook(running)
        try:
            with blaming(running):
                yield running
        finally:
            state.running = None

    def _call(self, hook: str, modifier: Modifier, **arguments: Any) -> None:
        others = [one for one in self.manager.get_plugins() if one is not modifier]
        self.manager.subset_hook_caller(hook, others)(**arguments)

    def reading_batches(self, modifiers: Sequence[Modifier]) -> list[Modifier]:
        """Those of some modifiers that implement `calibrate_batch`; inputs are kept for no other."""
        found = [one.plugin for one in self.manager.hook.calibrate_batch.get_hookimpls()]
        return [one for one in modifiers if one.needs().data and any(one is plugin for plugin in found)]
