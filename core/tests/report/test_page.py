"""The page of a report: parsed as XML, its marks counted, its texts escaped, its size bounded."""

import copy
import json
import shutil
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from coldpress import oneshot
from coldpress.report.page import page_of
from coldpress.report.page.folder import keep_evaluation, write_page
from coldpress.report.page.place import place_of
from coldpress.report.page.svg import Axis
from coldpress.testing.models import tiny_llama, tiny_tokenizer

SVG = "{http://www.w3.org/2000/svg}"
LAYERS, KINDS = 3, 7
RECIPE = "QuantizationModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The output of a run."""
    root = tmp_path_factory.mktemp("page")
    tiny_llama(hidden=64, layers=LAYERS).save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    oneshot(str(root / "model"), RECIPE, output_dir=str(root / "out"), quiet=True)
    return root / "out"


@pytest.fixture
def report(folder):
    return json.loads((folder / "report.json").read_text())


def drawn(page):
    """Title of each plot to its SVG, and the whole page."""
    root = ElementTree.fromstring(page)
    headings = [node for node in root.iter() if node.tag.endswith(("}h2", "}svg"))]
    pairs = pairwise(headings)
    return {head.text: node for head, node in pairs if node.tag.endswith("svg") and head.tag.endswith("h2")}, root


def marks(svg, *classes):
    return [node for node in svg.iter() if set(classes) <= set(node.get("class", "").split())]


def rendered(report, **more):
    return drawn(page_of(report, recipe=RECIPE, manifest={"source": "a model"}, **more))


def test_a_run_writes_a_page_with_a_mark_for_each_layer(folder, report):
    plots, root = drawn((folder / "report.html").read_text(encoding="utf-8"))

    errors = plots["Weight error by block and kind"]
    assert len(marks(errors, "mark")) == LAYERS * KINDS
    assert len(marks(errors, "line")) == KINDS
    assert len(marks(plots["Weight error, block by kind"], "cell")) == LAYERS * KINDS
    assert len(marks(plots["Time by stage"], "bar")) == len(report["stages"]) == LAYERS + 2
    assert len(marks(plots["Time by stage"], "plan")) == LAYERS + 2
    assert len(marks(plots["Memory by stage"], "bar")) == LAYERS + 2
    words = "".join(root.itertext())
    assert f"{LAYERS * KINDS} quantized, 2 not compressed" in words
    assert "ignored by QuantizationModifier" in words
    assert "scheme: W4A16" in words


def test_the_worst_layers_have_histograms_with_a_bar_for_each_bin(report):
    plots, _ = rendered(report)

    worst = sorted((line for line in report["layers"] if line["weight_error"]), key=lambda x: -x["weight_error"])[:5]
    assert [line["name"] for line in report["layers"] if "histograms" in line] == [
        line["name"] for line in report["layers"] if line in worst
    ]
    drawing = plots["Weights and inputs of the worst layers"]
    parts = [line["histograms"]["weights"] for line in worst]
    low = min(max(2 ** part["lowest"], 1e-3 * part["rms"]) for part in parts) / 1.1
    bars = [
        count
        for part in parts
        for step, count in enumerate(part["counts"])
        if count and 2 ** (part["lowest"] + (step + 1) / 4) > low
    ]
    assert len(marks(drawing, "bar")) == len(bars) > 5 * 20
    assert len(marks(drawing, "reference")) == 5
    assert "inputs:" not in "".join(drawing.itertext())


def test_notes_have_a_meaning_on_the_page(report):
    report = copy.deepcopy(report)
    report["notes"] = [{"key": "codes_moved", "unit": "of the codes", "meaning": "share that is <not> the nearest"}]

    _, root = rendered(report)

    assert "codes movedof the codesshare that is <not> the nearest" in "".join(root.itertext())


def test_sizes_by_kind_are_those_of_the_plan(folder, report):
    plots, _ = drawn((folder / "report.html").read_text(encoding="utf-8"))
    kinds = report["predicted"]["layers"]

    size = plots["Size by kind of layer"]
    assert len(marks(size, "bar", "before")) == len(marks(size, "bar", "after")) == len(kinds) == KINDS + 2
    down = next(kind for kind in kinds if "down_proj" in kind["name"])
    assert down["before"] == LAYERS * 64 * 128 * 4
    bars = {bar.find(f"{SVG}title").text: float(bar.get("width")) for bar in marks(size, "bar")}
    before, after = (next(bars[t] for t in bars if "down_proj" in t and when in t) for when in ("before", "after"))
    assert before / after == pytest.approx(down["before"] / down["after"], rel=0.05)


def test_a_point_is_where_its_number_is(report):
    plots, _ = rendered(report)
    lines = {line["name"]: line["weight_error"] for line in report["layers"]}
    points = marks(plots["Weight error by block and kind"], "mark", "c0")  # circles: the first kind, q_proj

    heights = [float(point.get("cy")) for point in points]
    errors = [lines[point.find(f"{SVG}title").text.partition(":")[0]] for point in points]
    assert sorted(range(LAYERS), key=lambda i: heights[i]) == sorted(range(LAYERS), key=lambda i: -errors[i])


def test_an_outlier_is_named_and_listed_first(report):
    report = copy.deepcopy(report)
    line = next(line for line in report["layers"] if line["name"] == "model.layers.1.mlp.up_proj")
    line["weight_error"] *= 9

    plots, root = rendered(report)

    texts = [node.text for node in plots["Weight error by block and kind"].iter(f"{SVG}text")]
    assert "1 mlp.up_proj" in texts
    words = "".join(root.itertext())
    assert words.index("The worst layers") < words.index("model.layers.1.mlp.up_proj", words.index("The worst layers"))


def test_names_of_outliers_do_not_cover_each_other(report):
    report = copy.deepcopy(report)
    for line in report["layers"]:
        if line["name"].startswith("model.layers.1.") and "_proj" in line["name"]:
            line["weight_error"] *= 9

    plots, _ = rendered(report)

    texts = plots["Weight error by block and kind"].iter(f"{SVG}text")
    heights = sorted(float(node.get("y")) for node in texts if node.text.startswith("1 "))
    assert len(heights) == 5
    assert all(second - first >= 12 for first, second in pairwise(heights))


def test_rounding_is_a_line_at_one(report):
    report = copy.deepcopy(report)
    for line in report["layers"]:
        line["notes"]["rounding_ratio"] = 0.5

    plots, _ = rendered(report)

    (reference,) = marks(plots["Output error beside rounding"], "reference")
    points = marks(plots["Output error beside rounding"], "mark", "c0")
    assert all(float(reference.get("y1")) < float(point.get("cy")) for point in points)  # y grows downwards


def test_experts_are_one_mark_each_and_starved_ones_have_a_border():
    notes = [{"tokens": 40 * (index != 2), "few_tokens": index == 2} for index in range(4)]
    lines = [
        {"name": f"model.layers.{block}.mlp.experts.{index}.up_proj", "status": "quantized", "shape": [4, 4],
         "scheme": "int4", "weight_error": 0.1 + index, "reason": None, "notes": notes[index]}
        for block in range(2) for index in range(4)
    ]  # fmt: skip

    plots, _ = rendered({"layers": lines})

    assert len(marks(plots["Tokens of each expert"], "cell")) == 8
    assert len(marks(plots["Tokens of each expert"], "few")) == 2
    assert len(marks(plots["Weight error, block by kind"], "cell")) == 2  # the worst of its block


def test_mixtures_have_a_row_and_saliencies_a_mark_each_with_a_border_where_they_went():
    notes = {"tokens_of_experts": [30, 0, 10, 20], "saliency": [0.5, 0.0, 0.1, 0.25], "kept": [0, 3]}
    lines = [
        {"name": f"model.layers.{block}.mlp.experts", "kind": "Mixture", "status": "changed", "shape": [4, 2],
         "scheme": None, "weight_error": None, "reason": None, "notes": notes}
        for block in range(3)
    ]  # fmt: skip

    plots, root = rendered({"layers": lines})

    assert len(marks(plots["Tokens of each expert"], "few")) == 3
    assert len(marks(plots["Saliency of each expert"], "cell")) == 12
    assert len(marks(plots["Saliency of each expert"], "few")) == 6
    words = " ".join(" ".join(root.itertext()).split())
    assert "model.layers.1.mlp.experts 4 0, 15, 30 2.00 1 0, 0.175, 0.5 2" in words


def test_names_are_escaped_and_control_characters_replaced(report):
    report = copy.deepcopy(report)
    evil = 'model.layers.0.<script>alert("x")</script>&\x00\ud800'
    report["layers"][2]["name"] = report["layers"][1]["reason"] = evil

    page = page_of(report, recipe="<b>", manifest={"source": "</title><script>"})

    root = ElementTree.fromstring(page)
    assert not [node for node in root.iter() if node.tag.endswith("script")]
    assert "<script>" not in page


@pytest.mark.parametrize("content", [{}, {"layers": [], "predicted": None, "seconds": 0}, {"training": {"loss": 1.5}}])
def test_a_report_that_knows_little_is_a_page(content):
    plots, root = rendered(content)

    assert plots == {}
    assert "Recipe" in "".join(root.itertext())


def test_a_large_mixture_is_below_a_megabyte(report):
    line = report["layers"][3]
    lines = [
        {**line, "name": f"model.layers.{block}.mlp.experts.{index}.{kind}", "notes": {"tokens": 9, "few_tokens": True}}
        for block in range(61) for index in range(64) for kind in ("gate_proj", "up_proj", "down_proj")
    ]  # fmt: skip

    page = page_of({**report, "layers": lines}, recipe="", manifest={})

    assert len(page.encode()) < 1_000_000
    ElementTree.fromstring(page)


def test_no_script_and_nothing_from_elsewhere(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")

    assert "<script" not in page
    assert not {"src=", "url(", "@import", "<link"} & set(page.replace(" ", "\n").split())
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_an_evaluation_is_kept_beside_others_and_shown(folder, tmp_path):
    keep_evaluation(folder, {"perplexity": {"value": 40.0, "standard_error": 2.0, "tokens": 99}})
    keep_evaluation(folder, {"reference_perplexity": {"value": 32.0, "standard_error": None, "tokens": 99}})

    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Perplexity 32 became 40 (+25.0 %)" in page
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert {"report.html", "evaluation.json"} <= files.keys()  # a later run may replace them
    assert write_page(folder, tmp_path / "page.html").read_text(encoding="utf-8") == page


def test_a_perplexity_that_is_not_finite_is_shown_as_that(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    infinite, before = {"value": None, "standard_error": None, "tokens": 99}, {"value": 32.0, "standard_error": 1.0}

    keep_evaluation(copy, {"perplexity": infinite, "reference_perplexity": before})

    page = write_page(copy).read_text(encoding="utf-8")
    assert "Perplexity 32 became not finite." in page


@pytest.mark.parametrize(("name", "place"), [
    ("model.layers.3.self_attn.q_proj", ("model.layers", 3, "self_attn.q_proj")),
    ("model.layers.3.mlp.experts.17.up_proj", ("model.layers", 3, "mlp.experts.*.up_proj")),
    ("lm_head", ("", None, "lm_head")),
    ("visual.merger.mlp.0", ("", None, "visual.merger.mlp.0")),
])  # fmt: skip
def test_the_first_number_in_a_name_is_the_block(name, place):
    found = place_of(name)

    assert (found.stack, found.block, found.kind) == place


def test_ticks_are_round_and_inside():
    assert Axis(0.03, 4, 0, 1, log=True).ticks() == pytest.approx([0.05, 0.1, 0.2, 0.5, 1, 2])
    assert Axis(0.09, 0.16, 0, 1, log=True).ticks() == pytest.approx([0.1, 0.12, 0.15])
    assert Axis(0, 31, 0, 1).ticks() == pytest.approx([0, 10, 20, 30])
    assert len(Axis(1e-9, 1e5, 0, 1, log=True).ticks()) == 15
