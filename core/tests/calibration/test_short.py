"""The text inside the package."""

import pytest

from coldpress.calibration import short
from coldpress.errors import CalibrationError


def test_the_text_is_as_large_as_promised():
    sizes = {split: sum(len(row["text"].encode()) for row in short.load(split)) for split in short.SPLITS}

    assert 280_000 < sizes["calibration"] < 340_000
    assert 95_000 < sizes["held_out"] < 120_000


def test_the_splits_share_no_source_and_no_passage():
    calibration, held_out = short.load(), short.load("held_out")

    for column in ("source", "text"):
        assert not {row[column] for row in calibration} & {row[column] for row in held_out}


@pytest.mark.parametrize("split", short.SPLITS)
def test_every_passage_is_long_and_its_white_space_plain(split):
    for row in short.load(split):
        assert len(row["text"]) >= 2950
        assert all(" ".join(paragraph.split()) == paragraph for paragraph in row["text"].split("\n\n"))
        assert row["source"]


def test_passages_differ():
    texts = [row["text"] for split in short.SPLITS for row in short.load(split)]

    assert len(set(texts)) == len(texts)


def test_an_unknown_split_is_told():
    with pytest.raises(CalibrationError, match="did you mean 'held_out'"):
        short.load("heldout")


@pytest.mark.slow
@pytest.mark.demo
def test_every_passage_fills_512_tokens_of_the_demo_model():
    from coldpress.models import load_tokenizer

    tokenizer = load_tokenizer("smollm2")

    assert min(len(tokenizer(row["text"]).input_ids) for split in short.SPLITS for row in short.load(split)) >= 512
