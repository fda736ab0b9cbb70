"""Broken, lying and absurd files: whatever is changed in them, a run ends well or with one of our errors, and soon."""

import json
import logging
import os
import re
import resource
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from coldpress import QuantizationArgs, load_model, oneshot, read_recipe
from coldpress.calibration.chat import answers_marked, rendered
from coldpress.calibration.conversation import Conversation
from coldpress.errors import ColdpressError, ModelError, RecipeError, TargetError
from coldpress.models import load_tokenizer
from coldpress.modifiers import QuantizationModifier
from coldpress.registry import find
from coldpress.stage import matches_name
from coldpress.testing.models import tiny_llama, tiny_tokenizer

TOKENIZER, MODEL = tiny_tokenizer(), tiny_llama(hidden=32, layers=1)
SECONDS = 20  # a mutant takes less than one; the rest is for machines that do other work


def mutants(count):
    """So many examples, the same in every run; 2,300 in this file."""
    slow = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=slow)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, -1, 2, 7, 10**5, 10**9, 2**32]),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-3, 3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model in a folder, and beside it what tests write over."""
    folder = tmp_path_factory.mktemp("hostile") / "model"
    tiny_llama(hidden=32, layers=1).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    return folder


def ends_well(action):
    """Success, or one of our errors that says something, in time."""
    begun = time.monotonic()
    with suppress(ColdpressError):
        action()
    assert time.monotonic() - begun < SECONDS


def copied(model: Path, name: str, content: bytes) -> Path:
    """A folder like the model's, one file of which holds something else."""
    folder = model.parent / "copy"
    folder.mkdir(exist_ok=True)
    for file in model.iterdir():
        (folder / file.name).unlink(missing_ok=True)
        if file.name != name:
            (folder / file.name).symlink_to(file)
    (folder / name).write_bytes(content)
    return folder


@mutants(300)
@given(st.data())
def test_a_configuration_with_other_values(model, data):
    config = json.loads((model / "config.json").read_text())
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=2, unique=True)):
        config[key] = data.draw(VALUES)
    folder = copied(model, "config.json", json.dumps(config).encode())

    ends_well(lambda: load_model(folder, device="cpu"))


@mutants(300)
@given(st.data())
def test_weights_whose_header_lies(model, data):
    content = (model / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(name for name in header if name != "__metadata__")))
        part = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        header[name][part] = data.draw(
            st.one_of(
                VALUES, st.sampled_from(["I32", "BOOL", "F64", "X9"]), st.lists(st.integers(-9, 9**9), max_size=3)
            )
        )
        changed = json.dumps(header).encode()
        content = struct.pack("<Q", len(changed)) + changed + content[8 + size :]
    else:
        at, bits = data.draw(st.integers(0, 8 + size)), data.draw(st.binary(min_size=1, max_size=4))
        content = content[:at] + bits + content[at + len(bits) :]
    folder = copied(
        model, "model.safetensors", content[: data.draw(st.sampled_from([len(content), len(content) - 1, 9]))]
    )

    ends_well(lambda: load_model(folder, device="cpu"))


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    """The bytes of a GGUF file, its keys and its tensors, and a path for mutants."""
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("gguf") / "out"
    recipe = (
        "modifiers: [QuantizationModifier: {scheme: Q8_0, ignore: [lm_head]}]\nformat: {gguf: {pre_tokenizer: smollm}}"
    )
    oneshot(tiny_llama(hidden=32, layers=1), recipe, tokenizer=TOKENIZER, output_dir=folder)
    content = (folder / "model.gguf").read_bytes()
    tensors = sorted(set(re.findall(rb"blk\.0\.\w+\.weight|output\.weight|token_embd\.weight", content)))
    keys = sorted(set(re.findall(rb"(?:general|llama|tokenizer)\.[a-z_.]+", content)) - set(tensors))
    return content, keys, tensors, folder.parent / "mutant.gguf"


PIECES = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.integers(0, 14).map(lambda kind: struct.pack("<I", kind)),
    st.sampled_from([0, 1, 7, 31, 10**6, 2**31, 2**32, 2**62, 2**64 - 1]).map(lambda value: struct.pack("<Q", value)),
)


@mutants(300)
@given(st.data())
def test_a_gguf_file_whose_header_lies(gguf, data):
    content, keys, tensors, path = gguf
    for word in data.draw(st.lists(st.sampled_from([b"GGUF", *keys, *tensors]), min_size=1, max_size=2)):
        at = content.rindex(word) + len(word) + data.draw(st.integers(0, 28 if word in tensors else 8))
        piece = data.draw(PIECES)
        content = content[:at] + piece + content[at + len(piece) :]
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content), len(content) - 1, 30]))])

    ends_well(lambda: load_model(path, device="cpu"))
    ends_well(lambda: load_tokenizer(path))


@mutants(600)
@given(st.data())
def test_a_recipe_with_other_words(data):
    settings = "scheme: W4A16\n      targets: [Linear]\n      ignore: ['re:.*head']\n"
    text = f"modifiers:\n  - QuantizationModifier:\n      {settings}"
    at = data.draw(st.integers(0, len(text)))
    word = data.draw(
        st.one_of(st.text(max_size=6), st.sampled_from(["!!python/object:os.system", "&a [*a]", "{", "\t", "- "]))
    )
    text = text[:at] + word + text[at + data.draw(st.integers(0, 6)) :]

    ends_well(lambda: read_recipe(text))


@mutants(400)
@given(
    st.lists(st.one_of(VALUES, st.fixed_dictionaries({"text": VALUES})), max_size=3),
    st.sampled_from(["jsonl", "json", "txt"]),
)
def test_data_of_any_kind(model, rows, kind):
    path = model.parent / f"data.{kind}"
    try:
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8", errors="surrogateescape")
    except UnicodeEncodeError:
        return

    ends_well(lambda: _calibrate(model, path))


def _calibrate(model: Path, path: Path) -> None:
    from coldpress.arguments import DatasetArguments
    from coldpress.calibration.dataset import load_calibration

    arguments = DatasetArguments(dataset=str(path), num_calibration_samples=2, max_seq_length=8)
    load_calibration(arguments, TOKENIZER, 0, model=MODEL, apart=True)


@mutants(400)
@given(st.data())
def test_a_journal_that_another_run_left(model, data):
    output = model.parent / "output"
    (output.parent / "output.partial").mkdir(exist_ok=True)
    lines = [{"coldpress_journal": 1, "binding": {}}, {"stage": "prologue", "files": [], "report": []}]
    line = data.draw(st.sampled_from(lines))
    line[data.draw(st.sampled_from(sorted(line)))] = data.draw(VALUES)
    text = "\n".join(json.dumps(one) for one in lines) + data.draw(st.sampled_from(["\n", "", "\n{"]))
    (output.parent / "output.partial" / "journal.jsonl").write_text(text)

    ends_well(lambda: _opened(output))


def _opened(output: Path) -> None:
    from coldpress.checkpoint import CheckpointWriter

    with CheckpointWriter(output) as writer:
        writer.begin({})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_attention_heads", 0, "ZeroDivisionError|modulo by zero"),
        ("num_attention_heads", 7, "not a multiple of the number of attention heads"),
        ("num_hidden_layers", "two", "'num_hidden_layers' expected int, got str"),
        (
            "num_hidden_layers",
            10**9,
            "promises num_hidden_layers = 1000000000, and the tensors that are there count to 1",
        ),
        ("rope_parameters", 5, "'rope_parameters' with value 5"),
        ("quantization_config", "int4", "quantization_config must be a JSON object"),
        ("quantization_config", [1], "quantization_config must be a JSON object"),
        ("initializer_range", float("nan"), "NaN is not a number in JSON"),
        ("pad_token_id", 10**6, "Padding_idx"),
    ],
)
def test_an_absurd_configuration_is_told_with_the_key_and_the_value(model, key, value, message):
    config = {**json.loads((model / "config.json").read_text()), key: value}
    folder = copied(model, "config.json", json.dumps(config).encode())

    with pytest.raises(ColdpressError, match=message):
        oneshot(folder, QuantizationModifier(scheme="FP8_DYNAMIC", ignore=["lm_head"]), output_dir=folder.parent / "o")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("stream", [True, False])
def test_weights_that_are_no_weights_are_refused_by_name(model, dtype, stream):
    weights = {name: tensor.clone() for name, tensor in tiny_llama(hidden=32, layers=1).state_dict().items()}
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].to(dtype)
    folder = model.parent / "integers"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ColdpressError, match=r"up_proj\.weight.* has the dtype \w+"):
        oneshot(
            folder,
            QuantizationModifier(scheme="FP8_DYNAMIC", ignore=["lm_head"]),
            output_dir=model.parent / "of-integers",
            stream_weights=stream,
        )


@pytest.mark.parametrize("pattern", ["re:(", "re:[", "re:(?P<x", "re:*"])
def test_a_pattern_that_does_not_compile_is_told(pattern):
    with pytest.raises(TargetError, match="is not a regular expression"):
        matches_name(pattern, "model.layers.0")


@pytest.mark.parametrize("pattern", ["re:a{99999999}", "re:((a{2,999}){999}){,999}", "re:a{999999,}"])
def test_a_pattern_that_takes_memory_is_refused_before_it_is_compiled(pattern):
    with pytest.raises(TargetError, match="more than 100000 times"):
        matches_name(pattern, "model.layers.0")


@pytest.mark.parametrize("pattern", ["re:(?R)", "re:(a|(?1))", r"re:\\(?0)", "re:(?P<x>a(?&x))", "re:(?P<x>a(?P>x))"])
def test_a_pattern_that_recurses_is_refused_before_it_is_tried(pattern):
    with pytest.raises(TargetError, match="without recursion"):
        matches_name(pattern, "model.layers.0")


def test_a_pattern_that_takes_all_memory_is_told(monkeypatch):
    class Greedy:
        def match(self, *_, **__):
            raise MemoryError

    monkeypatch.setattr("coldpress.stage._compiled", lambda pattern: Greedy())
    with pytest.raises(TargetError, match="takes all memory on 'model.layers.0'"):
        matches_name("re:.*", "model.layers.0")


def test_a_bracket_that_may_be_missing_is_no_recursion():
    assert matches_name(r"re:a(\(?1)", "a(1")


def test_counts_of_layers_are_patterns():
    assert matches_name(r"re:a\.\d{1,3}\.b{1}\.[0-9]{0,2}\.x{,5}$", "a.12.b.3.xx")


def test_a_name_that_no_file_system_takes_is_no_model():
    with pytest.raises(ModelError, match=r"no model is called 'aaa.*so long a name"):
        load_model("a" * 300)


def test_a_name_that_is_no_text_is_told_before_a_library_calls_the_file_corrupt():
    with pytest.raises(ModelError, match=r"b'/models/\\xff' is no name in UTF-8"):
        load_model("/models/\udcff")


def test_a_tokenizer_that_promises_billions_of_tokens_is_refused(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    MODEL.config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"] = {token: number + 2**31 for token, number in content["model"]["vocab"].items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))

    with pytest.raises(ModelError, match=r"the id 21474\d+; the most is 10000000"):
        load_tokenizer(str(tmp_path))


def test_a_pattern_that_takes_for_ever_is_told():
    with pytest.raises(TargetError, match="for more than 1 s"):
        matches_name(r"re:^(([a-z])+.)+[A-Z]([a-z])+$", "a" * 3000)


def test_a_promise_of_many_layers_costs_no_time(model):
    config = {**json.loads((model / "config.json").read_text()), "num_hidden_layers": 10**9}
    folder = copied(model, "config.json", json.dumps(config).encode())
    begun = time.monotonic()

    with pytest.raises(ModelError):
        load_model(folder, device="cpu")

    assert time.monotonic() - begun < SECONDS


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "model.safetensors", "config.json"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(model, name):
    folder = copied(model, "nothing", b"")
    (folder / name).unlink()
    os.mkfifo(folder / name)

    with pytest.raises(ModelError, match=f"{name} is no regular file"):
        load_model(folder, device="cpu")
    (folder / name).unlink()


def test_a_pipe_in_place_of_a_recipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "recipe.yaml")

    with pytest.raises(RecipeError, match="is no regular file"):
        read_recipe(tmp_path / "recipe.yaml")


def test_a_pipe_in_place_of_a_journal_is_not_waited_for(tmp_path):
    (tmp_path / "output.partial").mkdir()
    os.mkfifo(tmp_path / "output.partial" / "journal.jsonl")

    ends_well(lambda: _opened(tmp_path / "output"))


_LOOPS = "{% for b in range(99999) %}" * 3 + "{% endfor %}" * 3
_DOUBLED = "{% set a = namespace(b='x') %}{% for _ in range(40) %}{% set a.b = a.b + a.b %}{% endfor %}"
TEMPLATES = [
    (_LOOPS, r"row 7: the chat template runs for more than 0\.5 s"),
    ("{{ 'x' * 10000000000 }}", r"row 7: the chat template runs in more than 512 MB of memory"),
    ("{{ 'x'.rjust(10000000000) }}", r"row 7: the chat template runs in more than 512 MB of memory"),
    ("{{ '%10000000000d' % 1 }}", r"row 7: the chat template runs in more than 512 MB of memory"),
    (_DOUBLED, r"row 7: the chat template runs (in more than 512 MB of memory|for more than)"),
    ("{{ 'x' * 20000000 }}", r"row 7: the chat template makes 200000\d\d characters"),
    ("{{ 10 ** 10 ** 10 }}", r"row 7: the chat template has a power"),
]


@pytest.mark.parametrize(("template", "message"), TEMPLATES, ids=range(len(TEMPLATES)))
@pytest.mark.parametrize("reads", [rendered, answers_marked])
def test_a_chat_template_is_bounded_in_time_and_memory(monkeypatch, template, message, reads):
    monkeypatch.setattr("coldpress.calibration.chat._SECONDS", 0.5)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template + "{{ messages[0]['content'] }}{# generation #}"
    turns = [{"role": "user", "content": "Hello"}]
    limits = resource.getrlimit(resource.RLIMIT_AS)

    with pytest.raises(ColdpressError, match=message):
        reads(Conversation(turns, "messages", turns), tokenizer, "row 7")
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


def test_a_chat_template_may_unpack_arguments():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% set a = {'b': 1} %}{{ dict(c=2, **a) }}{{ dict(**a) }}{{ messages[0]['content'] }}"
    turns = [{"role": "user", "content": "Hello"}]

    assert rendered(Conversation(turns, "messages", turns), tokenizer, "row 0").endswith("Hello")


@pytest.mark.parametrize(
    "name", ["mse", "memoryless_mse", "imatrix_mse", "nvfp4_expanded_mse", "nvfp4_expanded_imatrix"]
)
def test_a_search_of_a_billion_steps_is_refused(name):
    with pytest.raises((ColdpressError, ValueError), match=r"10_?000"):
        find("observers", name)(args=QuantizationArgs(num_bits=4), grid=10.0**9)
