"""Messages name options at a terminal, and arguments in Python."""

import inspect

import pytest
from attrs import fields

from coldpress.arguments import WITHOUT_EFFECT, DatasetArguments
from coldpress.cli.compress import compress
from coldpress.cli.data_option import dataset_of
from coldpress.cli.train import train
from coldpress.cli.words import in_options
from coldpress.errors import ArgumentError


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("pass restart=True to begin anew", "pass --restart to begin anew"),
        ("name it with text_column=, please", "name it with --text-column, please"),
        ("max_seq_length=512 was asked for", "--max-seq-length 512 was asked for"),
        ("splits='train[:x]': no", "--splits 'train[:x]': no"),
        ("concatenate_data=False keeps lines", "--no-concatenate-data keeps lines"),
        ("precision='half', output_dir=...", "--dtype 'half', --output ..."),
        ("trust_remote_code_model=True", "--trust-remote-code"),
        ("pass tokenizer=, or data", "pass tokenizer=, or data"),  # which has no option
        ("'/a/restart=True/b' and --recipe-arg seed=3", "'/a/restart=True/b' and --recipe-arg seed=3"),
        ("overwrite=False", "overwrite=False"),  # no option says that
    ],
)
def test_arguments_are_named_by_their_options(message, words):
    assert in_options(compress)(message) == words


def test_all_arguments_of_the_data_that_can_be_typed_are_options():
    names = {field.name for field in fields(DatasetArguments)} - set(WITHOUT_EFFECT)

    assert names - set(inspect.signature(compress).parameters) == {"preprocessing_func"}


def test_each_command_has_its_own_options():
    assert in_options(train)("resume_from_checkpoint=True, batch_size=3") == "--resume, --batch-size 3"
    assert in_options(compress)("resume_from_checkpoint=True") == "resume_from_checkpoint=True"


def test_an_error_and_a_warning_are_in_the_words_of_the_terminal(coldpress, model, text, tmp_path):
    words = ("compress", model, "-s", "W8A8", "-a", "gptq", "--max-seq-length", 32, "-o", tmp_path / "out")
    lacking = tmp_path / "rows.jsonl"
    lacking.write_text('{"words": "one"}\n')

    refused = coldpress(*words, "--dataset", lacking)
    fewer = coldpress(*words, "--dataset", text, "--no-concatenate-data")

    assert refused.code == 2
    assert "--text-column" in refused.err
    assert "text_column=" not in refused.err
    assert "gives 1 sample, and 512 were asked for" in fewer.err


def test_several_data_sets_are_read_in_proportion(coldpress, model, text, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "one two three"}\n' * 9)
    data = ("--dataset", f"{rows}:column=question,share=3", "--dataset", f"{text}:share=1")

    answer = coldpress(
        *("compress", model, "-s", "W8A8", "-a", "gptq", "--max-seq-length", 8),
        *("--num-calibration-samples", 8, *data, "-o", tmp_path / "out"),
    )

    assert answer.code == 0, answer.err
    first = " ".join(answer.err.split())
    assert f"calibration: '{rows}' (6 samples) and '{text}' (2 samples), 8 samples" in first


def test_one_name_is_a_name_and_none_twice():
    assert dataset_of(["a"]) == "a"
    assert dataset_of(["a", "b"]) == {"a": 1.0, "b": 1.0}
    with pytest.raises(ArgumentError, match="--dataset a is there twice"):
        dataset_of(["a", "a"])
