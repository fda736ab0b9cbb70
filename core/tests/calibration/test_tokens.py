"""Texts to tokens: no more of a text than is used, and running text in samples of one length."""

import pytest
from tokenizers.processors import TemplateProcessing

from coldpress.arguments import DatasetArguments
from coldpress.calibration.dataset import load_calibration
from coldpress.calibration.tokens import packed, tokenized
from coldpress.errors import CalibrationError
from coldpress.testing.models import tiny_tokenizer

WORDS = " ".join(f"word{i}" for i in range(4000))


@pytest.fixture
def framed():
    """A tokenizer that begins every text with one token and ends it with another."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


class Counting:
    """A tokenizer that knows how long its longest text was."""

    truncation_side = "right"

    def __init__(self, tokenizer):
        self.tokenizer, self.longest = tokenizer, 0

    def __call__(self, text, **settings):
        self.longest = max(self.longest, len(text))
        return self.tokenizer(text, **settings)


@pytest.mark.parametrize("limit", [3, 5, 100, None])
@pytest.mark.parametrize("special", [True, False])
def test_the_first_tokens_are_those_of_the_whole_text(framed, limit, special):
    whole = framed(WORDS, add_special_tokens=special, truncation=limit is not None, max_length=limit)["input_ids"]

    assert tokenized(framed, WORDS, limit=limit, special=special) == whole


def test_there_are_never_more_tokens_than_asked_for(framed):
    assert len(tokenized(framed, WORDS, limit=1, special=True)) == 1


def test_a_tokenizer_that_keeps_the_end_keeps_it(framed):
    framed.truncation_side = "left"

    assert framed.decode(tokenized(framed, WORDS, limit=8, special=False)) == WORDS[-8:]


def test_no_more_of_a_long_text_is_tokenized_than_is_used():
    counting = Counting(tiny_tokenizer())

    assert len(tokenized(counting, "x" * 10_000_000, limit=100, special=True)) == 100
    assert counting.longest < 10_000


def test_packed_samples_are_the_text_and_begin_and_end_as_texts_do(framed):
    samples = list(packed(framed, [WORDS[:1000], WORDS[1000:2000]], 50))

    assert {len(ids) for ids in samples} == {50}
    assert all((ids[0], ids[-1]) == (1, 2) for ids in samples)
    assert "".join(framed.decode(ids[1:-1]) for ids in samples) == WORDS[: 2000 // 48 * 48]


def test_a_text_that_is_shorter_than_a_sample_is_one(framed):
    assert [framed.decode(ids[1:-1]) for ids in packed(framed, ["short"], 50)] == ["short"]


def test_a_sample_without_room_beside_special_tokens_is_refused(framed):
    with pytest.raises(CalibrationError, match="max_seq_length=2 leaves no room"):
        list(packed(framed, ["text"], 2))


@pytest.mark.parametrize("separator", [" ", "\n", "\n\n"])
def test_a_text_file_gives_the_tokens_that_were_asked_for_however_its_lines_are_broken(tmp_path, separator, caplog):
    path = tmp_path / "my.txt"
    path.write_text(separator.join(f"word{i}" for i in range(600)))
    arguments = DatasetArguments(dataset=str(path), num_calibration_samples=16, max_seq_length=200)

    data = load_calibration(arguments, tiny_tokenizer())

    assert (data.summary.samples, data.summary.tokens, data.summary.padding) == (16, 3200, 0)
    assert data.summary.line() == f"calibration: '{path}', 16 samples, 3200 tokens, no padding, packed"
    assert not caplog.records


def test_lines_are_samples_where_packing_is_turned_off(tmp_path):
    path = tmp_path / "my.txt"
    path.write_text("one\ntwo\n\nthree\n")
    arguments = DatasetArguments(dataset=str(path), concatenate_data=False, shuffle_calibration_samples=False)

    data = load_calibration(arguments, tiny_tokenizer())

    assert (data.summary.samples, data.summary.tokens, data.summary.empty) == (3, 11, 1)


def test_of_a_long_text_pieces_are_drawn_at_random_and_of_a_short_one_all_is_in_order(tmp_path):
    tokenizer, path = tiny_tokenizer(), tmp_path / "my.txt"
    path.write_text("\n".join(f"line {i} of many" for i in range(5000)))

    def words(samples, seed):
        arguments = DatasetArguments(dataset=str(path), num_calibration_samples=samples, max_seq_length=100)
        data = load_calibration(arguments, tokenizer, seed)
        return "".join(tokenizer.decode(ids) for batch in data.batches for ids in batch["input_ids"])

    few = words(8, 1)
    assert few == words(8, 1) != words(8, 2)
    assert few not in path.read_text()
    assert words(800, 1) == path.read_text()[:80_000]


def test_running_text_without_a_length_is_packed_to_2048_tokens_at_most(tmp_path):
    tokenizer, path = tiny_tokenizer(), tmp_path / "my.txt"
    path.write_text(WORDS)
    tokenizer.model_max_length = 10**30

    data = load_calibration(DatasetArguments(dataset=str(path), num_calibration_samples=3), tokenizer)

    assert (data.summary.longest, data.summary.tokens) == (2048, 3 * 2048)
