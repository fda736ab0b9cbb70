"""Rows with images or sound: what a processor makes of them reaches the model, or the row is refused."""

import pytest
import torch
import transformers

from coldpress import oneshot
from coldpress.arguments import DatasetArguments
from coldpress.calibration.dataset import load_batches, load_calibration
from coldpress.calibration.model_inputs import ModelInputs
from coldpress.calibration.multimodal import process
from coldpress.errors import CalibrationError
from coldpress.modifiers import GPTQModifier
from coldpress.testing.models import filled, tiny_tokenizer

IMAGE = 258  # the token that stands for a patch


class VisionProcessor:
    """Makes four tokens and 3 x 28 x 28 numbers of an image, which is a seed."""

    image_token_id = IMAGE

    def __init__(self):
        self.tokenizer = tiny_tokenizer()

    def __call__(self, text, images, return_tensors):
        ids = [[IMAGE] * 4 + self.tokenizer(one)["input_ids"] for one in text]
        pixels = [torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(seed)) for seed in images]
        return {"input_ids": torch.tensor(ids), "pixel_values": torch.stack(pixels), "names": images}

    def save_pretrained(self, folder):
        self.tokenizer.save_pretrained(folder)


@pytest.fixture
def llava():
    vision = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=14
    )
    text = transformers.LlamaConfig(
        vocab_size=259,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1, image_seq_length=4
    )
    return filled(transformers.LlavaForConditionalGeneration(config), torch.float32, 0)


@pytest.fixture
def whisper():
    config = transformers.WhisperConfig(
        vocab_size=259,
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=8,
        max_target_positions=64,
        num_mel_bins=4,
        decoder_start_token_id=1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return filled(transformers.WhisperForConditionalGeneration(config), torch.float32, 0)


def recipe(*ignore):
    return GPTQModifier(scheme="W4A16", group_size=32, ignore=["re:.*(lm_head|proj_out)", *ignore])


def test_images_reach_the_model(llava):
    seen = []
    llava.model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("pixel_values", *args[:1])), with_kwargs=True
    )
    rows = [{"text": "a cat", "images": [seed]} for seed in range(3)]

    oneshot(
        llava,
        recipe("re:.*vision_tower.*", "re:.*multi_modal_projector.*"),
        dataset=rows,
        processor=VisionProcessor(),
        shuffle_calibration_samples=False,
    )

    assert [pixels.shape for pixels in seen] == [(1, 3, 28, 28)] * 3
    assert len({float(pixels.sum()) for pixels in seen}) == 3


def test_sound_reaches_the_encoder_and_the_transcript_the_decoder(whisper):
    class Processor(VisionProcessor):
        def __call__(self, text, audio, sampling_rate, return_tensors):
            ids = torch.tensor([self.tokenizer(one)["input_ids"] for one in text])
            return {"input_features": torch.from_numpy(audio).repeat(1, 4, 16), "labels": ids}

    heard, read = [], []
    whisper.model.encoder.register_forward_pre_hook(lambda _, args, kw: heard.append(args or kw), with_kwargs=True)
    whisper.model.decoder.register_forward_pre_hook(lambda _, args, kw: read.append(kw["input_ids"]), with_kwargs=True)
    rows = [{"text": "hello", "audio": [0.25], "sampling_rate": 16000}] * 2

    oneshot(whisper, recipe(), dataset=rows, processor=Processor())

    assert len(heard) == 2
    assert [tiny_tokenizer().decode(ids[0]) for ids in read] == ["hello"] * 2


def test_tokens_of_an_image_are_never_cut_off(caplog):
    rows = [{"text": "a cat", "images": [0]}]

    (batch,) = load_batches(DatasetArguments(dataset=rows, max_seq_length=3), VisionProcessor())

    assert batch["input_ids"].shape == (1, 9)
    assert "row 0 and maybe others are longer: not cut" in caplog.text


def test_a_model_that_takes_no_images_is_told():
    row = {"text": "a cat", "images": [0]}

    with pytest.raises(CalibrationError, match="row 3 holds images, and X takes no names, pixel_values"):
        process(row, VisionProcessor(), ModelInputs(frozenset({"input_ids"}), model="X"), "row 3")


def test_a_processor_that_refuses_a_row_is_named():
    with pytest.raises(CalibrationError, match="VisionProcessor refuses a row with videos: TypeError"):
        process({"text": "a cat", "videos": [0]}, VisionProcessor(), ModelInputs(), "x")


def test_the_processor_beside_the_model_is_loaded_once_where_rows_need_it():
    loaded = []

    def load():
        loaded.append(VisionProcessor())
        return loaded[-1]

    rows = [{"text": "a cat", "images": [0]}, {"text": "two cats", "images": [1]}]

    data = load_calibration(DatasetArguments(dataset=rows), tiny_tokenizer(), processor=load)
    load_calibration(DatasetArguments(dataset=["text"]), tiny_tokenizer(), processor=load)

    assert len(loaded) == 1
    assert all("pixel_values" in batch for batch in data.batches)


def test_images_that_nothing_reads_leave_the_text():
    arguments = DatasetArguments(dataset=[{"text": "a cat", "images": [0]}])

    (batch,) = load_calibration(arguments, tiny_tokenizer(), processor=lambda: None).batches

    assert set(batch) == {"input_ids", "attention_mask"}


def test_a_collator_that_is_a_function_is_handed_one_sample_without_a_batch_dimension():
    seen = []

    def collator(rows):
        seen.extend(rows)
        return transformers.default_data_collator(rows)

    class Patches(VisionProcessor):
        def __call__(self, text, images, return_tensors):
            found = super().__call__(text, images, return_tensors)
            return {**found, "patches": torch.zeros(5, 2)}  # as Qwen2-VL has them: of all images, one after another

    (batch,) = load_batches(
        DatasetArguments(dataset=[{"text": "a cat", "images": [0]}], data_collator=collator), Patches()
    )

    assert seen[0]["pixel_values"].shape == (3, 28, 28)
    assert seen[0]["patches"].shape == (5, 2)
    assert batch["pixel_values"].shape == (1, 3, 28, 28)
