"""Firing hooks: modifiers in recipe order, one at a time, and which hook is running."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pluggy
from attrs import field, frozen

from coldpress import hookspecs
from coldpress.checkpoint.companion import WRITTEN, is_of_weights
from coldpress.errors import BrokenPluginError
from coldpress.modifier import Modifier
from coldpress.planned import Running
from coldpress.recipe.form import check_form
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
        for index, modifier in enumerate(self.modifiers):
            name = type(modifier).__name__
            check_form(type(modifier))
            try:
                manager.register(modifier, name=f"{index}:{name}")
            except pluggy.PluginValidationError as error:
                raise BrokenPluginError(f"a hook of {name} does not fit coldpress.hookspecs: {error}") from error
            except ValueError as error:
                raise BrokenPluginError(
                    f"two steps of a recipe that are {name} with equal settings would be one: decorate {name} with "
                    "@frozen(kw_only=True, eq=False)"
                ) from error
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

    def save(self, state: State, folder: Path) -> None:
        """Call `save` of every modifier, in recipe order.

        Raises:
            BrokenPluginError: it writes a file that core or the format will write.
        """
        for modifier in self.modifiers:
            with self.running(Running(modifier, "save", Stage.whole(state.model)), state):
                before = set(folder.rglob("*"))
                self._call("save", modifier, state=state, folder=folder)
                _check_files(modifier, folder, set(folder.rglob("*")) - before)

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


def _check_files(modifier: Modifier, folder: Path, written: Iterable[Path]) -> None:
    for path in sorted(written):
        if path.is_file() and path.parent == folder and (path.name in WRITTEN or is_of_weights(path.name)):
            raise BrokenPluginError(
                f"{type(modifier).__name__}.save writes {path.name}, which the run writes itself, after the hook: give "
                "the file another name; what config.json shall say is the format's business, Format.config"
            )
