"""The command line as a whole: its commands and its global options."""

from typing import Annotated

import typer

from coldpress import __version__
from coldpress.cli.border import exit_code_of, guarded
from coldpress.cli.compress import compress
from coldpress.cli.datasets import datasets
from coldpress.cli.defaults import commands_of, default_map, defaults
from coldpress.cli.demo import demo
from coldpress.cli.diff import diff
from coldpress.cli.evaluate import evaluate
from coldpress.cli.hinting import HintingCommand, HintingGroup
from coldpress.cli.inspect import inspect
from coldpress.cli.model_free import convert
from coldpress.cli.new import new
from coldpress.cli.option import Debug
from coldpress.cli.plan import plan
from coldpress.cli.plugins import plugins
from coldpress.cli.port import port
from coldpress.cli.recipes import recipes
from coldpress.cli.report import report
from coldpress.cli.schemes import schemes
from coldpress.cli.trace import trace
from coldpress.cli.train import train
from coldpress.errors import ColdpressError

app = typer.Typer(
    name="coldpress",
    cls=HintingGroup,
    help="Make large language models small after training: quantize, measure, look inside.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # what a user should see is decided in border.py
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

_COMMANDS = (
    compress,
    plan,
    recipes,
    schemes,
    datasets,
    convert,
    train,
    evaluate,
    inspect,
    report,
    diff,
    trace,
    plugins,
    new,
    port,
    defaults,
    demo,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"coldpress {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Debug = False,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make large language models small after training: quantize, measure, look inside."""
    try:
        found = default_map(commands_of(context))
    except ColdpressError as error:
        raise typer.Exit(exit_code_of(error, debug=debug)) from error
    if debug:  # before the command means the same as after it
        found |= {command.__name__: {**found.get(command.__name__, {}), "debug": True} for command in _COMMANDS}
    context.default_map = found


for _command in _COMMANDS:
    app.command(name=_command.__name__, cls=HintingCommand)(guarded(_command))
