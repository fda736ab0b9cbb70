"""Tasks of lm-eval: refused where it is not installed; run on data of one's own, offline, where it is."""

import json
from importlib.util import find_spec
from math import sqrt

import pytest
import torch

from coldpress import ArgumentError
from coldpress.evaluation.tasks import check_tasks, run_tasks
from coldpress.testing.models import tiny_llama, tiny_tokenizer

DOCUMENTS = [{"q": f"the fox {number} is", "c": [" red", " a blue one"], "a": number % 2} for number in range(7)]
needs_lm_eval = pytest.mark.skipif(find_spec("lm_eval") is None, reason="the extra lm-eval is not installed")


@pytest.fixture
def task(tmp_path):
    (tmp_path / "fox.jsonl").write_text("\n".join(map(json.dumps, DOCUMENTS)))
    path = tmp_path / "fox.yaml"
    path.write_text(
        "task: fox\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path / 'fox.jsonl'}\n"
        'test_split: test\noutput_type: multiple_choice\ntarget_delimiter: ""\n'
        'doc_to_text: "{{q}}"\ndoc_to_choice: "{{c}}"\ndoc_to_target: a\n'
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    return path


def test_without_lm_eval_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr("coldpress.evaluation.tasks.find_spec", lambda name: None)

    with pytest.raises(ArgumentError, match=r"pip install 'coldpress\[lm-eval\]'"):
        check_tasks(["hellaswag"])


@pytest.mark.parametrize(("content", "words"), [(None, "cannot read"), ("output_type: x", "no line `task: NAME`")])
def test_a_file_that_is_no_task_is_refused(monkeypatch, tmp_path, content, words):
    monkeypatch.setattr("coldpress.evaluation.tasks.find_spec", lambda name: object())
    if content is not None:
        (tmp_path / "task.yaml").write_text(content)

    with pytest.raises(ArgumentError, match=words):
        check_tasks([str(tmp_path / "task.yaml")])


@needs_lm_eval
def test_accuracy_is_that_of_the_likelier_choice(task):
    model, tokenizer = tiny_llama(hidden=64), tiny_tokenizer()

    found = run_tasks(model, tokenizer, [str(task)])

    right = [_choice(model, tokenizer, document) == document["a"] for document in DOCUMENTS]
    share = sum(right) / len(right)
    score = found.results["fox"].metrics["acc"]
    assert score.value == pytest.approx(share)
    assert score.standard_error == pytest.approx(sqrt(share * (1 - share) / (len(right) - 1)), rel=1e-3)
    assert found.results["fox"].samples == len(DOCUMENTS)


@needs_lm_eval
def test_a_limit_bounds_the_documents_and_an_unknown_task_is_refused(task):
    model, tokenizer = tiny_llama(hidden=64), tiny_tokenizer()

    assert run_tasks(model, tokenizer, [str(task)], limit=3).results["fox"].samples == 3
    task.write_text(task.read_text().replace("fox.jsonl", "missing.jsonl"))
    with pytest.raises(ArgumentError, match="lm-eval cannot"):
        run_tasks(model, tokenizer, [str(task)])


def _choice(model, tokenizer, document):
    """The choice whose tokens are likeliest after the question."""
    start = len(tokenizer(document["q"])["input_ids"])
    sums = []
    for choice in document["c"]:
        ids = torch.tensor(tokenizer(document["q"] + choice)["input_ids"])
        with torch.no_grad():
            said = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        sums.append(float(said.gather(1, ids[1:, None])[start - 1 :].sum()))
    return max(range(len(sums)), key=lambda index: sums[index])
