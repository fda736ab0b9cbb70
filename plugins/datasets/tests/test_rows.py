"""Each data set's rows, as its page on the hub shows them, become what llm-compressor's users expect under its name."""

import datasets
import pytest

from coldpress import registry
from coldpress.arguments import DatasetArguments
from coldpress.calibration.dataset import load_batches
from coldpress.testing.models import tiny_tokenizer

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n"
    "### Response:\n"
)
EVOL = (
    "Below is an instruction that describes a programming task. Write a program that appropriately completes the "
    "request.\n\n### Instruction:\nAdd.\n\n### Response:\n"
)
USER_AND_ASSISTANT = "user:hi\nassistant:ho\n"

# name -> file as on the hub, columns of a row, the text that they become
TEXTS = {
    "c4": ("en/c4-train.00000-of-01024.json", {"text": "A page.", "timestamp": "2019", "url": "u"}, "A page."),
    "cnn_dailymail": (
        "3.0.0/train-00000-of-00003.parquet",
        {"article": "Long.", "highlights": "Short.", "id": "1"},
        "Article:\nLong.\n\n### Summarization:\nShort.\n",
    ),
    "evolcodealpaca": ("train.jsonl", {"output": "1 + 2", "instruction": "Add."}, EVOL + "1 + 2"),
    "gsm8k": (
        "main/train-00000-of-00001.parquet",
        {"question": "1 + 2 {x}?", "answer": "#### 3"},
        "Question: 1 + 2 {x}?\nAnswer: #### 3",
    ),
    "open_platypus": (
        "data/train-00000-of-00001.parquet",
        {"input": "", "output": "3", "instruction": "Add.", "data_source": "x"},
        ALPACA + "3",
    ),
    "Open-Platypus": (
        "data/train-00000-of-00001.parquet",
        {"input": "1 2", "output": "3", "instruction": "Add.", "data_source": "x"},
        ALPACA_WITH_INPUT + "3",
    ),
    "perfectblend": (
        "data/train-00000-of-00006.parquet",
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}], "source": "x"},
        USER_AND_ASSISTANT,
    ),
    "ultrachat_200k": (
        "data/train_sft-00000-of-00003.parquet",
        {
            "prompt": "hi",
            "prompt_id": "1",
            "messages": [{"content": "hi", "role": "user"}, {"content": "ho", "role": "assistant"}],
        },
        USER_AND_ASSISTANT,
    ),
    "wikitext": ("wikitext-2-raw-v1/train-00000-of-00001.parquet", {"text": " = Title = \n"}, " = Title = \n"),
}


def batch_of(name, path, tokenizer, **arguments):
    """The only batch, in the order of the file: a stream that is shuffled takes seconds to end."""
    arguments = DatasetArguments(dataset=name, dataset_path=path, shuffle_calibration_samples=False, **arguments)
    (batch,) = load_batches(arguments, tokenizer)
    return batch


def copy_of(folder, name, row):
    """A folder with one file, as the hub has it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = datasets.Dataset.from_list([row])
    if path.suffix == ".parquet":
        rows.to_parquet(str(path))
    else:
        rows.to_json(str(path))
    return folder


@pytest.mark.parametrize("name", TEXTS)
def test_a_row_becomes_its_text(tmp_path, name):
    file, row, text = TEXTS[name]
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"

    for path in (copy_of(tmp_path, file, row), tmp_path / file):
        batch = batch_of(name, path, tokenizer)

        assert tokenizer.decode(batch["input_ids"][0]) == text


def test_every_name_that_llmcompressor_registers_is_offered():
    names = {plugin.name for plugin in registry.available("datasets") if plugin.distribution == "coldpress-datasets"}
    theirs = {"c4", "cnn_dailymail", "evolcodealpaca", "flickr", "flickr30k", "gsm8k", "open_platypus"}
    theirs |= {"peoples_speech", "perfectblend", "ultrachat", "ultrachat_200k", "wikitext"}

    assert names == theirs
    assert registry.find("datasets", "ultrachat") is registry.find("datasets", "ultrachat_200k")
    assert registry.find("datasets", "flickr") is registry.find("datasets", "flickr30k")


def test_splits_of_ultrachat_have_their_short_names(tmp_path):
    _, row, _ = TEXTS["ultrachat_200k"]
    copy_of(tmp_path, "data/train_sft-00000-of-00003.parquet", row)
    test = {**row, "messages": [{"content": "test", "role": "user"}]}
    copy_of(tmp_path, "data/test_sft-00000-of-00001.parquet", test)
    tokenizer = tiny_tokenizer()

    for split in ("test", "test_sft", "test[:1]"):
        batch = batch_of("ultrachat", tmp_path, tokenizer, splits=split)

        assert tokenizer.decode(batch["input_ids"][0]) == "<|user|>\ntest</s>\n".replace("</s>", tokenizer.eos_token)


IMAGE = [[0, 128], [255, 64]]  # what a decoder would make of a file


class VisionProcessor:
    """Counts an image as four tokens."""

    chat_template = "there is one"
    image_token_id = 7

    def __init__(self):
        self.tokenizer = tiny_tokenizer()

    def apply_chat_template(self, messages, tokenize):
        parts = [part for turn in messages for part in turn["content"]]
        return "".join("<image>" if part["type"] == "image" else part["text"] for part in parts)

    def __call__(self, text, images, return_tensors):
        import torch

        (text,) = text
        assert text.count("<image>") == len(images) == 1
        ids = [7] * 4 + self.tokenizer(text.replace("<image>", ""))["input_ids"]
        return {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
            "pixel_values": torch.tensor([images], dtype=torch.float32),
        }


def test_an_image_goes_through_the_processor_with_its_captions(tmp_path):
    row = {"image": IMAGE, "caption": ["A cat.", "Two cats."], "img_id": "1", "filename": "1.jpg"}
    path = copy_of(tmp_path, "data/test-00000-of-00009.parquet", row)
    processor = VisionProcessor()

    batch = batch_of("flickr30k", path, processor)

    assert batch["input_ids"][0, :4].tolist() == [7] * 4
    assert processor.tokenizer.decode(batch["input_ids"][0, 4:]) == "What does this image show?A cat. Two cats."
    assert batch["pixel_values"][0, 0].tolist() == IMAGE


class SpeechProcessor:
    """As Whisper's: features of the sound, and the transcript as labels."""

    def __init__(self):
        self.tokenizer = tiny_tokenizer()

    def __call__(self, text, audio, sampling_rate, return_tensors):
        import torch

        assert sampling_rate == 16000
        ids = [self.tokenizer(one)["input_ids"] for one in text]
        return {"input_features": torch.from_numpy(audio)[None, None], "labels": torch.tensor(ids)}


@pytest.fixture
def speech(tmp_path):
    row = {"id": "1", "audio": {"array": [0.0, 0.5], "sampling_rate": 16000}, "duration_ms": 1, "text": "he said so"}
    return copy_of(tmp_path, "test/test-00000-of-00001.parquet", row)


def test_speech_is_heard_and_its_transcript_read(speech):
    processor = SpeechProcessor()

    batch = batch_of("peoples_speech", speech, processor)

    assert batch["input_features"].tolist() == [[[0.0, 0.5]]]
    assert processor.tokenizer.decode(batch["decoder_input_ids"][0]) == " He said so"
    assert "labels" not in batch


def test_a_model_that_converses_is_asked_what_was_said(speech):
    class Conversing(SpeechProcessor):
        chat_template = "there is one"

        def apply_chat_template(self, messages, tokenize):
            return "".join(part.get("text", "<audio>") for turn in messages for part in turn["content"])

        def __call__(self, **columns):
            import torch

            found = super().__call__(**columns)
            ids = found.pop("labels")
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **found}

    processor = Conversing()

    batch = batch_of("peoples_speech", speech, processor)

    assert processor.tokenizer.decode(batch["input_ids"][0]) == "<audio>What did the person say?"
    assert batch["input_features"].shape == (1, 1, 2)
