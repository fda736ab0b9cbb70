"""What a person sees of a long job: bars on a terminal, lines in a pipe."""

import io
from itertools import count
from time import sleep

import pytest
from rich.console import Console

from coldpress.plugin import Modifier, Needs, hookimpl
from coldpress.recipe import Recipe
from coldpress.report import Progress
from coldpress.run.job import Job
from coldpress.state import State
from coldpress.testing.models import batches, tiny_llama
from coldpress.testing.trial import Parts

DRAWN = 0.15  # seconds; a terminal is drawn ten times in one


def screen(*, terminal: bool = True, width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def shown(console: Console) -> str:
    return console.file.getvalue()


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True), (False, True)])
def test_nothing_is_drawn_where_it_is_unwanted_or_soon_over(terminal, quiet):
    console = screen(terminal=terminal)

    assert list(Progress(quiet=quiet, console=console).track(range(3), description="counting")) == [0, 1, 2]
    assert shown(console) == ""


def test_a_pipe_gets_a_line_for_each_stage_and_none_for_what_is_inside():
    console = screen(terminal=False)
    progress = Progress(console=console)
    for _ in progress.track(iter("ab"), description="compressing", total=2, each=True):
        list(progress.track(range(4), description="calibrating", each=True))

    first, second = shown(console).splitlines()
    assert first.startswith("compressing (1 of 2): 0.")
    assert "s left, peak " in first
    assert second.startswith("compressing (2 of 2): ")
    assert "\r" not in shown(console)


def test_a_pipe_gets_a_line_now_and_then_of_what_has_many_steps(monkeypatch):
    seconds = count()  # between one look at the clock and the next
    monkeypatch.setattr("coldpress.report.progress.perf_counter", lambda: 4.0 * next(seconds))
    console = screen(terminal=False)
    for _ in Progress(console=console).track(range(6), description="evaluating"):
        pass

    assert [line.partition(":")[0] for line in shown(console).splitlines()] == [
        "evaluating (3 of 6)",
        "evaluating (6 of 6)",
    ]


def test_the_items_are_handed_on_with_their_number_the_time_left_and_the_peak_of_memory():
    console = screen()

    assert list(Progress(console=console).track(iter("abc"), description="spelling", total=3)) == ["a", "b", "c"]
    assert all(word in shown(console) for word in ("spelling", "/3", "left", "peak "))


def test_tokens_a_second_are_counted_where_items_have_tokens():
    console = screen()
    for _ in Progress(console=console).track(range(3), description="reading", tokens=lambda item: 1000):
        sleep(DRAWN)

    assert "tok/s" in shown(console)
    assert "peak" not in shown(console)


@pytest.mark.parametrize("width", [80, 120])
def test_a_line_is_a_line(width):
    console = screen(width=width)
    progress = Progress(console=console)
    for _ in progress.track(range(2), description="compressing", total=34):
        list(progress.track(range(2), description="calibrating model.layers.27", total=512, tokens=lambda item: 8192))

    lines = shown(console).splitlines()
    assert not [line for line in lines if line.strip() in ("MB", "GB", "tok/s", "left")]


def test_a_bar_is_gone_after_an_error():
    console = screen()
    progress = Progress(console=console)

    with pytest.raises(ZeroDivisionError):
        list(progress.track((1 / item for item in range(3)), description="dividing"))
    assert list(progress.track(range(1), description="again")) == [0]


def test_a_run_shows_its_stages_and_the_batches_of_each():
    class Reader(Modifier):
        def needs(self):
            return Needs(data=True)

        @hookimpl
        def calibrate_batch(self, state, stage, batch):
            sleep(DRAWN)

    console = screen()
    state = State(model=tiny_llama(), batches=batches(rows=4, batch_size=2))
    Job(recipe=Recipe(Reader()), state=state, pipeline=Parts(), progress=Progress(console=console)).run()

    assert all(word in shown(console) for word in ("compressing", "calibrating model.layers.1", "/2", "tok/s"))
