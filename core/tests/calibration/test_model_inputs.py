"""What a forward takes, and batches completed to that."""

import inspect

import pytest
import torch
import transformers
from torch import nn

from coldpress.calibration.batch import count_tokens
from coldpress.calibration.model_inputs import ModelInputs
from coldpress.errors import CalibrationError
from coldpress.testing.models import tiny_llama


class Reads(nn.Module):
    """A module whose forward has arguments of these names, and hands `**kwargs` to another."""

    def __init__(self, *names, inner=None):
        super().__init__()
        kinds = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
        rest = [inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)] if inner is not None else []
        self.forward = lambda **found: found
        self.forward.__signature__ = inspect.Signature([*kinds, *rest])
        if inner is not None:
            self.model = inner


@pytest.fixture
def t5():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 16}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))


def ids(*shape):
    return torch.arange(3, 3 + torch.Size(shape).numel()).view(shape) % 13


def test_a_column_that_the_forward_does_not_take_is_left_out_with_one_warning(caplog):
    inputs = ModelInputs.of(Reads("input_ids", "attention_mask"))

    for _ in range(3):
        batch = inputs.batch({"input_ids": ids(1, 4), "url": ["x"]})

    assert set(batch) == {"input_ids", "attention_mask"}
    assert caplog.text.count("url: left out of the calibration data, Reads.forward has no such argument") == 1


def test_a_mask_is_added_only_where_the_model_takes_one_and_padding_is_known_all_the_same():
    found = {"input_ids": ids(2, 3), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    with_mask, without = ModelInputs.of(Reads("input_ids", "attention_mask")), ModelInputs.of(Reads("input_ids"))

    assert with_mask.batch({"input_ids": ids(2, 3)})["attention_mask"].all()
    assert set(without.batch(found)) == {"input_ids"}
    assert count_tokens(without.batch(found)) == count_tokens(with_mask.batch(found)) == 5


def test_what_a_wrapper_hands_on_is_taken_too():
    inner = Reads("input_ids", "pixel_values")

    assert ModelInputs.of(Reads("labels", inner=inner)).names == {"labels", "input_ids", "pixel_values"}
    assert ModelInputs.of(Reads(inner=Reads(inner=nn.Identity()))).names == {"input"}
    assert ModelInputs().takes("anything")


def test_a_batch_of_nothing_that_the_forward_takes_is_refused():
    with pytest.raises(CalibrationError, match="a batch holds x, y, and Reads.forward needs one of input_ids"):
        ModelInputs.of(Reads("input_ids")).batch({"x": ids(1, 3), "y": 1})


def test_numbers_come_in_the_dtype_of_the_model_and_tensors_of_inference_mode_as_normal_ones():
    inputs = ModelInputs.of(tiny_llama(dtype=torch.bfloat16))
    with torch.inference_mode():
        found = {"inputs_embeds": torch.zeros(1, 3, 128), "input_ids": ids(1, 3)}

    batch = inputs.batch(found)

    assert (batch["inputs_embeds"].dtype, batch["input_ids"].dtype) == (torch.bfloat16, torch.int64)
    assert not any(value.is_inference() for value in batch.values())


def test_a_decoder_without_inputs_of_its_own_reads_the_encoders_and_that_is_told(t5, caplog):
    inputs = ModelInputs.of(t5)
    padded = {"input_ids": ids(2, 3), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}

    batch = inputs.batch(padded)

    assert batch["labels"].tolist() == ids(2, 3).masked_fill(padded["attention_mask"] == 0, -100).tolist()
    assert "the decoder reads the same tokens as the encoder" in caplog.text


def test_a_decoder_beside_something_else_than_tokens_reads_its_first_token(caplog):
    inputs = ModelInputs(frozenset({"input_features", "decoder_input_ids"}), is_encoder_decoder=True, start_token=7)

    batch = inputs.batch({"input_features": torch.zeros(2, 4, 6)})

    assert batch["decoder_input_ids"].tolist() == [[7], [7]]
    assert count_tokens(batch) == 2
    assert "the decoder reads nothing but its first token" in caplog.text


def test_both_sequences_count_without_their_padding_and_are_told_apart_by_length(t5):
    inputs = ModelInputs.of(t5)
    found = {
        "input_ids": ids(1, 4),
        "attention_mask": torch.tensor([[1, 1, 1, 0]]),
        "labels": torch.tensor([[5, 6, -100, -100]]),
    }

    batch = inputs.batch(found)

    first, second = batch.token_masks
    assert (int(first.sum()), int(second.sum())) == (3, 2)
    assert first.shape != second.shape
    assert batch["labels"].tolist() == [[5, 6, -100, -100, -100]]
    t5(**batch)


PADDED = torch.tensor([[3, 4, 5, 0, 0], [6, 7, 3, 4, 0]])
KEPT = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()
CAUSAL = torch.ones(5, 5).tril().bool()


@pytest.mark.parametrize(
    "mask",
    [
        KEPT,
        KEPT.float(),
        torch.zeros(2, 5).masked_fill(~KEPT, -torch.inf),
        torch.zeros(2, 5).masked_fill(~KEPT, -10000),
        KEPT[:, None] & CAUSAL,
        KEPT[:, None, None] & CAUSAL,
        torch.zeros(2, 1, 5, 5).masked_fill(~(KEPT[:, None, None] & CAUSAL), torch.finfo(torch.float32).min),
    ],
    ids=["bool", "float", "added", "added, small", "queries", "heads", "heads, added"],
)
def test_a_mask_of_any_form_leaves_the_same_tokens(mask):
    batch = ModelInputs.of(Reads("input_ids", "attention_mask")).batch({"input_ids": PADDED, "attention_mask": mask})

    assert [found.tolist() for found in batch.token_masks] == [KEPT.tolist()]
    assert batch["attention_mask"].shape == mask.shape


@pytest.mark.parametrize("mask", [KEPT, ~KEPT, (~KEPT).long(), KEPT[:, None] & CAUSAL])
def test_a_mask_by_another_name_is_read_by_the_ids_that_it_leaves_out(mask):
    batch = ModelInputs.of(Reads("input_ids", "padding_mask")).batch({"input_ids": PADDED, "padding_mask": mask})

    assert [found.tolist() for found in batch.token_masks] == [KEPT.tolist()]


def test_a_mask_by_another_name_that_is_not_of_padding_is_told(caplog):
    found = {"input_ids": ids(2, 5), "prefix_mask": KEPT}

    assert count_tokens(ModelInputs.of(Reads("input_ids", "prefix_mask")).batch(found)) == 10
    assert "prefix_mask: not known what it masks" in caplog.text


def test_padding_of_sound_is_left_out_of_the_frames_that_a_model_makes_of_it():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    convolutions = {"conv_dim": (8, 8), "conv_kernel": (4, 2), "conv_stride": (4, 2), "num_conv_pos_embeddings": 4}
    config = transformers.Wav2Vec2Config(
        **sizes, **convolutions, num_conv_pos_embedding_groups=2, num_feat_extract_layers=2
    )
    mask = torch.ones(2, 64, dtype=torch.int64)
    mask[1, 32:] = 0

    inputs = ModelInputs.of(transformers.Wav2Vec2ForCTC(config))
    batch = inputs.batch({"input_values": torch.randn(2, 64), "attention_mask": mask})

    assert [found.sum(1).tolist() for found in batch.token_masks] == [[8, 4]]


def test_a_mask_that_is_not_over_the_tokens_is_refused_and_a_longer_one_is_of_a_prefix():
    inputs = ModelInputs.of(Reads("input_ids", "attention_mask"))

    for shape in ((1, 3), (2, 4)):
        with pytest.raises(CalibrationError, match=r"attention_mask of a batch, .* is not over its input_ids"):
            inputs.batch({"input_ids": ids(1, 4), "attention_mask": torch.ones(shape)})
    assert inputs.batch({"input_ids": ids(1, 4), "attention_mask": torch.ones(1, 6)}) is not None


def test_tensors_without_data_are_refused_by_name():
    with pytest.raises(CalibrationError, match="input_ids of a batch has no data: it is on the meta device"):
        ModelInputs.of(Reads("input_ids")).batch({"input_ids": torch.empty(1, 4, dtype=torch.long, device="meta")})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_token_ids_in_any_whole_number_are_read_and_pixels_stay_what_they_are(dtype):
    batch = ModelInputs.of(Reads("input_ids", "pixels")).batch(
        {"input_ids": ids(1, 4).to(dtype), "pixels": ids(1, 4).byte()}
    )

    assert batch["input_ids"].dtype in (torch.int32, torch.int64)
    assert torch.equal(batch["input_ids"].long(), ids(1, 4))
    assert batch["pixels"].dtype == torch.uint8
