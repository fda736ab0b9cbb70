"""Options of calibration and training data: the arguments of `DatasetArguments` that can be typed at a terminal.

An option has the name of its argument, and what both take is read by the same code: a name with settings behind a
colon, `old=new` and `name=value` texts.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from coldpress.arguments import DATA_COLLATORS, DEFAULT_DATASET, DatasetArguments
from coldpress.cli.option import option
from coldpress.errors import ArgumentError

PANEL = "Data"
DATA = DatasetArguments()
"""Defaults."""

Datasets = Annotated[
    list[str],
    option(
        PANEL,
        "--dataset",
        "NAME",
        "Name, file, folder or hub id; settings behind a colon, NAME:split=S,share=0.7; repeatable.",
        shown=DEFAULT_DATASET,
    ),
]
DatasetConfigName = Annotated[
    str | None, option(PANEL, "--dataset-config-name", "NAME", "Configuration of a data set of the hub.")
]
DatasetPath = Annotated[
    str | None, option(PANEL, "--dataset-path", "PATH", "A copy on disk of the data set that --dataset names.")
]
Splits = Annotated[str | None, option(PANEL, "--splits/--split", "SPLIT", "A split, or a part of one: train[:10%].")]
Shuffle = Annotated[
    bool,
    typer.Option(
        "--shuffle-calibration-samples/--no-shuffle-calibration-samples",
        help="Draw samples at random, or take the first.",
        rich_help_panel=PANEL,
    ),
]
Streaming = Annotated[bool, option(PANEL, "--streaming", None, "Read a data set of the hub as it comes.")]
MaxSeqLength = Annotated[
    int | None, option(PANEL, "--max-seq-length", "N", "Tokens a sample at most.", shown="the model's", least=1)
]
TextColumn = Annotated[str, option(PANEL, "--text-column", "NAME", "Column that holds the text.")]
ColumnMap = Annotated[list[str] | None, option(PANEL, "--column-map", "OLD=NEW", "Rename a column; repeatable.")]
ChatTemplate = Annotated[
    str | None, option(PANEL, "--chat-template", "FILE", "Jinja template.", shown="the tokenizer's")
]
ChatTemplateKwargs = Annotated[
    list[str] | None,
    option(PANEL, "--chat-template-kwargs", "NAME=VALUE", "What the chat template is given; repeatable."),
]
RawKwargs = Annotated[
    list[str] | None,
    option(PANEL, "--raw-kwargs", "NAME=VALUE", "More arguments of load_dataset, such as revision=main; repeatable."),
]
Concatenate = Annotated[
    bool | None,
    typer.Option(
        "--concatenate-data/--no-concatenate-data",
        help="Join texts and cut samples of --max-seq-length from them.",
        show_default="text files only",
        rich_help_panel=PANEL,
    ),
]
DataCollator = Annotated[
    str,
    option(PANEL, "--data-collator", "NAME", f"Samples of a batch: {' or '.join(DATA_COLLATORS)} to one length."),
]
PadToMaxLength = Annotated[bool, option(PANEL, "--pad-to-max-length", None, "Pad samples to --max-seq-length.")]
UseLossMask = Annotated[bool, option(PANEL, "--use-loss-mask", None, "Count only tokens that have a loss.")]
AllExperts = Annotated[
    bool,
    typer.Option(
        "--moe-calibrate-all-experts/--no-moe-calibrate-all-experts",
        help="Show every expert every token.",
        rich_help_panel=PANEL,
    ),
]

MinTokens = Annotated[
    int | None,
    option(PANEL, "--moe-min-tokens", "N", "Tokens of an expert at least.", shown="its input channels", least=1),
]
FewTokens = Annotated[
    str, option(PANEL, "--moe-few-tokens", "NAME", "Of experts that saw fewer: note, round or refuse.")
]


def dataset_of(named: Sequence[str]) -> str | dict[str, float]:
    """What `--dataset`, once or several times, means as an argument.

    Raises:
        ArgumentError: one name is there twice.
    """
    names = list(named) or [DEFAULT_DATASET]
    if len(names) == 1:
        return names[0]
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise ArgumentError(f"--dataset {twice[0]} is there twice")
    return dict.fromkeys(names, 1.0)


def as_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with values as arguments have them: several data sets as one, nothing where nothing is given."""
    found = {**options, "dataset": dataset_of(options["dataset"])}
    for name in ("column_map", "chat_template_kwargs", "raw_kwargs"):
        if name in found:
            found[name] = found[name] or {}
    return found
