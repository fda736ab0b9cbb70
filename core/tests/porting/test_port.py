"""Scripts for llm-compressor become scripts for coldpress; what is not an import of theirs stays as it was."""

import ast
from textwrap import dedent

import pytest
import torch
from attrs import fields

from coldpress.errors import ArgumentError
from coldpress.porting import port
from coldpress.porting.equivalents import Equivalent, find_equivalent
from coldpress.porting.names import SCHEME_FIELDS
from coldpress.schemes import QuantizationArgs, Scheme, presets
from coldpress.testing.models import tiny_llama


def ported(script: str) -> str:
    return port(dedent(script).lstrip("\n")).text


def remarks(script: str) -> list[tuple[int, str, str]]:
    return [(remark.line, remark.name, remark.kind) for remark in port(dedent(script).lstrip("\n")).remarks]


@pytest.fixture
def installed(monkeypatch):
    """Every modifier is installed."""

    def find(module, name):
        found = find_equivalent(module, name)
        return Equivalent("moved", found.module, found.name) if found.module == "coldpress.modifiers" else found

    monkeypatch.setattr("coldpress.porting.names.find_equivalent", find)


@pytest.mark.parametrize(
    ("name", "word"),
    [("apply", "train"), ("DataTrainingArguments", "arguments of oneshot"), ("AWQ_MAPPING_REGISTRY", "mappings=")],
)
def test_names_of_earlier_releases_come_with_what_to_write_instead(name, word):
    found = find_equivalent("llmcompressor.transformers", name)

    assert (found.kind, word in found.why) == ("missing", True)


def test_a_class_that_was_wrapped_is_the_class():
    script = """
        from llmcompressor.transformers import oneshot, wrap_hf_model_class
        from transformers import AutoModelForCausalLM
        model = wrap_hf_model_class(AutoModelForCausalLM).from_pretrained("x")
    """

    assert "model = AutoModelForCausalLM.from_pretrained" in ported(script).replace("(", "").replace(")", "")


def test_imports_move_and_comments_and_layout_stay():
    script = """
        # Copyright
        from transformers import AutoModelForCausalLM

        from llmcompressor import oneshot  # the door
        from llmcompressor.modifiers.quantization import (
            GPTQModifier,  # first
            # and then
            QuantizationModifier as Rounding,
        )

        recipe = [GPTQModifier( scheme = "W4A16" )]   # llmcompressor's own
    """

    assert ported(script) == dedent(
        """\
        # Copyright
        from transformers import AutoModelForCausalLM

        from coldpress import oneshot  # the door
        from coldpress.modifiers import (
            GPTQModifier,  # first
            # and then
            QuantizationModifier as Rounding,
        )

        recipe = [GPTQModifier( scheme = "W4A16" )]   # llmcompressor's own
        """
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from llmcompressor.transformers import oneshot", "from coldpress import oneshot"),
        ("from llmcompressor.entrypoints import oneshot as run", "from coldpress import oneshot as run"),
        ("from llmcompressor.core import reset_session", "from coldpress import reset_session"),
        ("from llmcompressor.modifiers.awq import AWQModifier", "from coldpress.modifiers import AWQModifier"),
        (
            "from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier as S",
            "from coldpress.modifiers import SmoothQuantModifier as S",
        ),
        ("from compressed_tensors.quantization import QuantizationArgs", "from coldpress import QuantizationArgs"),
        (
            "from compressed_tensors.quantization.quant_scheme import QuantizationScheme",
            "from coldpress import Scheme as QuantizationScheme",
        ),
        (
            "from compressed_tensors.quantization.quant_scheme import FP8_BLOCK, NVFP4",
            "from coldpress.schemes.presets import FP8_BLOCK, NVFP4",
        ),
        (
            "from compressed_tensors.offload import init_dist",
            "from torch.distributed import init_process_group as init_dist",
        ),
        (
            "from llmcompressor.transformers import SparseAutoModelForCausalLM",
            "from transformers import AutoModelForCausalLM as SparseAutoModelForCausalLM",
        ),
        (
            "from llmcompressor.transformers.tracing import TraceableLlavaForConditionalGeneration",
            "from transformers import LlavaForConditionalGeneration as TraceableLlavaForConditionalGeneration",
        ),
        ("from llmcompressor . modifiers import GPTQModifier", "from coldpress.modifiers import GPTQModifier"),
        ("from llmcompressor import \\\n    oneshot", "from coldpress import \\\n    oneshot"),
        ("import llmcompressor", "import coldpress"),
        ("import llmcompressor as lc\nlc.oneshot()", "import coldpress as lc\nlc.oneshot()"),
        (
            "import llmcompressor.modifiers.gptq\nllmcompressor.modifiers.gptq.GPTQModifier()\nllmcompressor.oneshot()",
            "import coldpress.modifiers\ncoldpress.modifiers.GPTQModifier()\ncoldpress.oneshot()",
        ),
        (
            "import llmcompressor.modifiers.gptq as gptq, sys\ngptq.GPTQModifier()",
            "import coldpress.modifiers as gptq\nimport sys\ngptq.GPTQModifier()",
        ),
        (
            "from llmcompressor.modifiers import gptq\ngptq.GPTQModifier()",
            "from coldpress import modifiers as gptq\ngptq.GPTQModifier()",
        ),
        ("import os; import llmcompressor; x = 1", "import os; import coldpress; x = 1"),
        (
            "import llmcompressor as lc\nlc.utils.dispatch_model(model)\nlc.oneshot(model)",
            "import coldpress as lc\nlc.oneshot(model)",
        ),
    ],
)
def test_every_form_of_an_import_moves(installed, before, after):
    assert port(before + "\n").text == after + "\n"


def test_names_of_one_statement_go_where_each_of_them_is():
    script = """
        if cuda:
            from compressed_tensors.quantization import (
                QuantizationArgs,  # how
                QuantizationStrategy,
                QuantizationScheme,
            )
    """

    assert ported(script) == dedent(
        """\
        if cuda:
            from coldpress import (
                QuantizationArgs,  # how
                Scheme as QuantizationScheme,
            )
            from compressed_tensors.quantization import QuantizationStrategy
        """
    )
    assert remarks(script) == [(2, "QuantizationStrategy", "kept")]


def test_a_call_without_use_gives_way_to_its_argument():
    script = """
        from compressed_tensors.offload import dispatch_model

        from llmcompressor import oneshot
        print("generation")
        dispatch_model(model)
        model = dispatch_model(model)
        other = dispatch_model(model=load(dispatch_model(path)), device_memory={0: 1})
        third = dispatch_model(a if b else c) + 1
        if ready: dispatch_model(model); go()
        def place():
            dispatch_model(model)  # now
    """

    assert ported(script) == dedent(
        """\
        from coldpress import oneshot
        print("generation")
        other = load(path)
        third = (a if b else c) + 1
        if ready: go()
        def place():
            pass  # now
        """
    )
    assert remarks(script) == [(1, "dispatch_model", "dropped")]


def test_both_arms_of_a_conditional_import_move():
    script = """
        try:
            from llmcompressor.modifiers.gptq import GPTQModifier
            from llmcompressor.utils import dispatch_for_generation
        except ImportError:
            from llmcompressor.modifiers.quantization import GPTQModifier
        try:
            from compressed_tensors.offload import dispatch_model
        except ImportError:
            from llmcompressor.utils.dev import dispatch_for_generation as dispatch_model
        dispatch_model(model)
    """

    assert ported(script) == dedent(
        """\
        try:
            from coldpress.modifiers import GPTQModifier
        except ImportError:
            from coldpress.modifiers import GPTQModifier
        try:
            pass
        except ImportError:
            pass
        """
    )


def test_a_part_of_a_split_is_written_as_an_expression():
    script = """
        from llmcompressor.datasets.utils import get_rank_partition
        split = get_rank_partition("train", 512)
    """

    text = ported(script)

    assert eval(text.partition("=")[2]) == "train[:512]"
    assert "import" not in text


def test_a_device_map_and_the_ranks_of_one_process_are_expressions():
    text = ported("""
        from compressed_tensors.offload import get_device_map
        from llmcompressor.modifiers.autoround.utils import get_local_gpu_group_size, init_gpu_group_dist
        devices = {to for _, to in get_device_map(model).values()}
        rank, world_size, gpu = init_gpu_group_dist(get_local_gpu_group_size())
    """)
    names = {"model": tiny_llama(hidden=32, layers=1)}
    exec(text, names)

    assert names["devices"] == {torch.device("cpu")}
    assert (names["rank"], names["world_size"], names["gpu"]) == (0, 1, 0)


def test_what_reads_a_checkpoint_is_no_argument():
    script = """
        from compressed_tensors.entrypoints.convert import FP8BlockDequantizer, convert_checkpoint
        from llmcompressor import model_free_ptq
        convert_checkpoint(model_stub="a", save_directory="b", converter=FP8BlockDequantizer(["x"]), max_workers=4)
        model_free_ptq(
            model_stub="b",
            scheme="FP8_BLOCK",
            converter=FP8BlockDequantizer(
                targets=["x"],
            ),
        )
    """

    assert ported(script) == dedent("""
        from coldpress import convert as convert_checkpoint
        from coldpress import model_free_ptq
        convert_checkpoint(model_stub="a", save_directory="b", to="dense", max_workers=4)
        model_free_ptq(
            model_stub="b",
            scheme="FP8_BLOCK",
        )
    """).lstrip("\n")


def test_a_patch_for_tracing_goes():
    script = """
        from llmcompressor.modeling.patch.qwen3_omni_patch import fast_pos_embed_interpolate
        model.visual.fast_pos_embed_interpolate = fast_pos_embed_interpolate.__get__(model.visual)
        print(model)
    """

    assert ported(script) == "print(model)\n"


def test_a_class_that_transformers_has_too_is_its_own():
    script = "from llmcompressor.modeling.deepseekv32.model import DeepseekV32ForCausalLM\n"

    assert ported(script) == "from transformers import DeepseekV32ForCausalLM\n"


@pytest.mark.parametrize(
    "script",
    [
        "from compressed_tensors.entrypoints.convert import FP8BlockDequantizer as F\nf = F()\n",
        "from llmcompressor.modeling.kimi_k3 import KimiK3ForConditionalGeneration\n",
        "from llmcompressor.modifiers import *\n",
        "from llmcompressor.observers import Observer\n",
        "from llmcompressor.modifiers import Modifier\n",
        "import llmcompressor\nllmcompressor.observers.Observer\n",
        "from compressed_tensors.offload import dispatch_model\nlist(map(dispatch_model, models))\n",
        "from compressed_tensors.offload import dispatch_model\ndef dispatch_model(model): pass\n",
        "try:\n    import llmcompressor\nexcept ImportError:\n    llmcompressor = None\n",
        "import importlib, compressed_tensors\nimportlib.import_module('llmcompressor.utils')\n",
    ],
)
def test_what_has_no_equivalent_stays_and_is_listed(script):
    found = port(script)

    assert found.text == script
    assert found.remarks


def test_a_modifier_that_nobody_offers_is_listed():
    script = "from llmcompressor.modifiers.new import UnheardOfModifier\n"

    assert ported(script) == "from coldpress.modifiers import UnheardOfModifier\n"
    assert remarks(script) == [(1, "UnheardOfModifier", "missing")]


def test_schemes_whose_fields_a_script_changes_stay_those_of_compressed_tensors():
    script = """
        from compressed_tensors.quantization import QuantizationScheme
        scheme = QuantizationScheme(targets=["Linear"])
        scheme.weights.observer = "mse"
    """

    assert ported(script) == dedent(script).lstrip("\n")
    assert remarks(script) == [(1, "QuantizationScheme", "kept")]
    assert set(SCHEME_FIELDS) == {attribute.name for cls in (Scheme, QuantizationArgs) for attribute in fields(cls)}


def test_presets_are_what_a_scheme_takes():
    scheme = Scheme(targets=["Linear"], **presets.NVFP4)

    assert scheme == presets.preset("NVFP4")
    with pytest.raises(AttributeError, match="did you mean 'NVFP4'"):
        _ = presets.NVFP5


def test_arguments_of_oneshot_that_are_unknown_or_idle_are_listed():
    script = """
        from llmcompressor import oneshot as run
        run(model=model, datasett="c4", sequential_targets=["LlamaDecoderLayer"],
            min_tokens_per_module=3)
    """

    assert remarks(script) == [(2, "datasett", "missing"), (3, "min_tokens_per_module", "note")]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_ends_of_lines_and_wide_characters_do_not_move_anything(newline):
    lines = [
        "é = 'ü'; from llmcompressor import oneshot; ö = 1 # \x0c \u2028 ß",
        "from compressed_tensors.offload import dispatch_model, init_dist",
        "x = '''",
        "from llmcompressor import nothing",
        "'''",
    ]
    wanted = [
        lines[0].replace("llmcompressor", "coldpress"),
        "from torch.distributed import init_process_group as init_dist",
        *lines[2:],
    ]

    assert port(newline.join(lines)).text == newline.join(wanted)


def test_what_was_ported_has_nothing_left_to_port():
    text = ported("from llmcompressor import oneshot\n")

    with pytest.raises(ArgumentError, match="nothing to port"):
        port(text)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os\n", "imports nothing of llmcompressor"),
        ("from llmcompressor import\n", "my.py:1: this is no Python"),
        ('{"cells": []', "nbconvert"),
        ('{"cells": []}', "nbconvert"),
        ("x = '\0'\n", "no Python"),
        ("(" * 5000 + ")" * 5000, "no Python"),
    ],
)
def test_a_script_that_cannot_be_ported_is_refused(script, message):
    with pytest.raises(ArgumentError, match=message):
        port(script, "my.py")


def test_the_result_is_always_a_program():
    pieces = ["import llmcompressor", "from llmcompressor import oneshot", "from compressed_tensors.offload import *"]
    heads = ["if x: ", "if x:\n  ", "def f():\n\t", "class A: ", "try:\n  1\nfinally:\n  ", "while 0: pass\nelse: "]
    dropped = ["from llmcompressor.utils import dispatch_model as d", "d(m)", "m = d(m)"]
    for head in heads:
        for first in pieces + dropped:
            for second in pieces + dropped[:1]:
                script = f"{head}{first}; {second}  # end"
                ast.parse(port(script).text)


def test_names_inside_of_f_strings_are_changed_where_they_are_or_left():
    script = (
        "import llmcompressor\n"
        "from compressed_tensors.offload import dispatch_model\n"
        "x = f'''é\n  {dispatch_model(model)!r:>{width}} é {llmcompressor.__version__}'''\n"
    )

    text = port(script).text

    changed = "x = f'''é\n  {model!r:>{width}} é {coldpress.__version__}'''\n"
    assert text in (script, "import coldpress\n" + changed)
