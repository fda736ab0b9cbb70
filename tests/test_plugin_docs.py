"""docs/hooks.md is what the docstrings say, and the blocks of docs/plugins.md run and keep their promises."""

import functools
import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from coldpress import SchemeError, load_model, oneshot
from coldpress.cli.app import app
from coldpress.cli.plugins import look
from coldpress.plugin import CheckpointReader
from coldpress.schemes import NumberFormat
from coldpress.testing.interrupt import interrupted
from coldpress.testing.kit import Verdicts, checks_for
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer
from coldpress.testing.subject import subject_of

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

DOCS = Path(__file__).parents[1] / "docs"


def test_hooks_md_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_hooks", DOCS / "make_hooks.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    assert (DOCS / "hooks.md").read_text(encoding="utf-8") == script.page(), "run: python docs/make_hooks.py"


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    """The module that the Python blocks of plugins.md are, one after the other."""
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "plugins.md").read_text(encoding="utf-8"), re.M | re.S)
    path = tmp_path_factory.mktemp("docs") / "plugins_md.py"
    tests = [block for block in blocks if re.search(r"\bconformance\(", block)]  # in a package, a file of their own
    path.write_text("\n".join(block for block in blocks if block not in tests), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    exec("\n".join(tests), vars(module))
    yield module
    del sys.modules[path.stem]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ColumnPruner", {}),
        ("PeakPruner", {}),
        ("OutputCorrection", {}),
        ("FisherPruner", {}),
        ("GlobalMagnitude", {}),
        ("MyRounding", {"scheme": "W4A16", "ignore": ["lm_head"]}),
        ("BoundedWeights", {}),
        ("Largest", {"count": 3}),
        ("FullRange", {}),
        ("WholeForward", {}),
        ("PlainCodes", {}),
        ("StageFiles", {}),
        ("OnlineRotation", {"block_size": 16}),
    ],
)
def test_the_plugins_that_are_shown_keep_every_promise(plugins, name, settings):
    subject = subject_of(getattr(plugins, name), kind=None, settings=settings)
    checks = checks_for(subject)
    verdicts = Verdicts(subject, checks)

    assert [check.name for check in checks if not verdicts.holds(check.name)] == []


def test_the_source_that_is_shown_keeps_every_promise(plugins):
    subject = subject_of(plugins.RowCodes, kind=None, settings={"example": plugins.write_rows})
    checks = checks_for(subject)
    verdicts = Verdicts(subject, checks)

    assert "streams_the_same_model" in {check.name for check in checks}
    assert [check.name for check in checks if not verdicts.holds(check.name)] == []


def test_the_number_format_that_is_shown_is_one(plugins):
    assert isinstance(plugins.FLOAT5, NumberFormat)
    assert plugins.FLOAT5.name == "float5"


def test_the_data_set_that_is_shown_has_rows(plugins):
    assert all(row["text"] for row in plugins.texts())


def test_the_tests_that_are_shown_are_tests(plugins):
    assert isinstance(plugins.test_conformance, types.FunctionType)
    assert isinstance(plugins.test_known, types.FunctionType)
    assert isinstance(plugins.test_source, types.FunctionType)
    assert isinstance(plugins.test_attachment, types.FunctionType)


def test_the_format_that_is_shown_says_what_it_holds(plugins):
    with pytest.raises(SchemeError, match="plain-codes holds"):
        plugins.PlainCodes().check(_scheme("W4A16"), "layer", (8, 128))


@pytest.fixture
def installed(plugins, tmp_path, monkeypatch):
    """The package that plugins.md describes, as pip leaves it: a module and its metadata."""
    (toml,) = re.findall(r"^```toml\n(.*?)^```", (DOCS / "plugins.md").read_text(encoding="utf-8"), re.M | re.S)
    groups = tomllib.loads(toml)["project"]["entry-points"]
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in points.items()) for group, points in groups.items()]
    (tmp_path / "my_package.py").write_text(Path(plugins.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    metadata = tmp_path / "my_package-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text("\n\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    yield groups
    sys.modules.pop("my_package", None)


def test_everything_that_is_shown_is_in_the_metadata_and_can_be_used(installed):
    found = {(one.kind, one.name): one for one in look() if one.distribution == "my-package"}

    assert {(f"coldpress.{kind}", name) for kind, name in found} == {
        (g, name) for g in installed for name in installed[g]
    }
    assert [one.problem for one in found.values() if not one.ok] == []


def test_the_recipe_that_is_shown_runs_with_all_of_them(installed, tmp_path):
    tiny_llama(dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```", (DOCS / "plugins.md").read_text(encoding="utf-8"), re.M | re.S)
    command = re.search(r"^coldpress (compress .*)$", (DOCS / "plugins.md").read_text(encoding="utf-8"), re.M)[1]
    (tmp_path / "recipe.yaml").write_text(recipe)
    places = {"path/to/": f"{tmp_path}/", "recipe.yaml": f"{tmp_path}/recipe.yaml"}

    words = [functools.reduce(lambda word, place: word.replace(*place), places.items(), one) for one in command.split()]
    answer = CliRunner().invoke(app, words)

    assert answer.exit_code == 0, answer.stderr
    assert (
        json.loads((tmp_path / "output/config.json").read_text())["quantization_config"]["quant_method"]
        == "plain-codes"
    )
    weight = load_model(tmp_path / "output", device="cpu").model.layers[0].self_attn.q_proj.weight
    assert (weight == 0).all(dim=0).sum() == int(0.1 * weight.shape[1])


def test_the_number_format_that_is_shown_is_one_of_schemes(installed):
    weights = {"num_bits": 5, "type": "float", "strategy": "channel"}
    recipe = {"QuantizationModifier": {"config_groups": {"all": {"targets": ["Linear"], "weights": weights}}}}

    model = oneshot(tiny_llama(), json.dumps({"modifiers": [recipe], "format": "dense"}), quiet=True)

    row = model.model.layers[0].mlp.up_proj.weight[0]
    assert 4 < len(row.unique()) <= 31


@pytest.mark.parametrize("pipeline", ["sequential", "data_free"])
def test_the_attachment_that_is_shown_goes_through_interruption_and_disk(installed, tmp_path, pipeline):
    recipe = "modifiers: [RotateInputs: {ignore: [lm_head]}, MyRounding: {scheme: W8A16, group_size: -1}]"

    def run(folder):
        settings = {"pipeline": pipeline, "format": "plain-codes", "quiet": True}
        return oneshot(tiny_llama(), recipe, output_dir=tmp_path / folder, **settings)

    whole = run("whole")
    with interrupted():
        run("out")
    resumed, loaded = run("out"), load_model(tmp_path / "out", device="cpu")

    said = logits(whole, batches(rows=2))
    assert torch.equal(logits(resumed, batches(rows=2)), said)
    assert torch.equal(logits(loaded, batches(rows=2)), said)
    torch.testing.assert_close(said, logits(tiny_llama(), batches(rows=2)), rtol=0.1, atol=0.1)
    one, other = (CheckpointReader(tmp_path / name) for name in ("whole", "out"))
    assert all(torch.equal(one.get(name), other.get(name)) for name in one.names())


def test_the_modifier_that_attaches_keeps_every_promise(installed):
    subject = subject_of("RotateInputs", kind="modifiers", settings={"block_size": 16, "ignore": ["lm_head"]})
    checks = checks_for(subject)
    verdicts = Verdicts(subject, checks)

    assert [check.name for check in checks if not verdicts.holds(check.name)] == []


def test_the_attachment_that_is_shown_keeps_the_function_and_spreads_outliers(plugins):
    x = torch.zeros(1, 64)
    x[0, 3] = 8.0

    y = plugins.OnlineRotation(block_size=64).inputs(torch.nn.Identity(), x)

    torch.testing.assert_close(y.abs(), torch.ones(1, 64))
    torch.testing.assert_close(plugins.rotated(y, 64), x)


def test_no_scale_is_moved_through_the_rotation_that_is_shown(installed):
    steps = "AWQModifier: {ignore: [lm_head]}, QuantizationModifier: {scheme: W8A16, group_size: 32, ignore: [lm_head]}"
    rotated = "RotateInputs: {targets: ['re:.*(o|down)_proj']}"
    data = batches(rows=4)

    models = [
        oneshot(tiny_llama(), f"modifiers: [{before}{steps}]", dataset=data, quiet=True)
        for before in ("", f"{rotated}, ")
    ]

    expected = logits(tiny_llama(), data)
    for model in models:
        assert (logits(model, data) - expected).norm() < 0.03 * expected.norm()


def test_the_attachment_that_is_shown_is_refused_by_a_format_that_cannot_tell_it(installed, tmp_path):
    recipe = "modifiers: [RotateInputs: {ignore: [lm_head]}]"

    with pytest.raises(SchemeError, match=r"RotateInputs: model\.layers\.0\..*'online_rotation' in this format, Dense"):
        oneshot(tiny_llama(), recipe, output_dir=tmp_path / "out", format="dense", quiet=True)


def test_every_kind_is_in_the_table():
    from coldpress.registry import KINDS

    text = (DOCS / "plugins.md").read_text(encoding="utf-8")

    assert [kind for kind in KINDS if f"`coldpress.{kind}`" not in text] == []


def _scheme(name):
    from coldpress import preset

    return preset(name)


ROOT = DOCS.parent
CARDS = sorted(ROOT.glob("plugins/*/README.md"))


def test_the_guide_to_pruning_shows_recipes_that_are_read_and_a_pruner_that_keeps_every_promise(tmp_path):
    from coldpress import read_recipe

    text = (DOCS / "pruning.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S):
        assert read_recipe(block).modifiers
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    path = tmp_path / "pruning_md.py"
    path.write_text(block, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    for settings in ({"mask_structure": "2:4"}, {"sparsity": 0.5}):
        subject = subject_of(module.LargestInput, kind=None, settings=settings)
        checks = checks_for(subject)
        verdicts = Verdicts(subject, checks)
        assert [check.name for check in checks if not verdicts.holds(check.name)] == []


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.parent.name)
def test_a_method_card_says_what_the_method_cannot_do(card):
    assert re.search(r"^## What .*cannot", card.read_text(encoding="utf-8"), re.M)


def test_every_setting_is_on_its_card():
    import attrs

    from coldpress_distillation import OutputDistillationModifier
    from coldpress_magnitude import ConstantPruningModifier, MagnitudePruningModifier
    from coldpress_pipelines import Independent
    from coldpress_quantization import QATModifier, QuantizationModifier
    from coldpress_sparsegpt import SparseGPTModifier
    from coldpress_wanda import WandaModifier

    classes = (
        (QuantizationModifier, "quantization"),
        (Independent, "pipelines"),
        (SparseGPTModifier, "sparsegpt"),
        (WandaModifier, "wanda"),
        (MagnitudePruningModifier, "magnitude"),
        (ConstantPruningModifier, "magnitude"),
        (OutputDistillationModifier, "distillation"),
        (QATModifier, "quantization"),
    )
    for cls, name in classes:
        card = (ROOT / f"plugins/{name}/README.md").read_text(encoding="utf-8")
        assert [field.name for field in attrs.fields(cls) if f"`{field.name}`" not in card] == []


def test_the_targets_that_contributors_are_told_of_exist():
    told = re.findall(r"make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    assert [target for target in told if f"\n{target}:" not in makefile] == []


def test_decisions_are_numbered_and_have_their_four_parts():
    pages = sorted((DOCS / "decisions").glob("0*.md"))

    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {int(page.name[:4])}. ")
        assert all(f"**{part}.**" in text for part in ("Context", "Options", "Decision", "Consequences")), page.name


def test_every_decision_is_listed_under_its_title():
    listed = (DOCS / "decisions/README.md").read_text(encoding="utf-8")
    lines = []
    for page in sorted((DOCS / "decisions").glob("0*.md")):
        number, _, title = page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").partition(". ")
        lines.append(f"{number}. [{title}]({page.name})")

    assert [line for line in lines if line not in listed.splitlines()] == []
