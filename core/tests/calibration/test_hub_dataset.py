"""Data sets that a plugin knows: of the hub row by row, or of a copy on disk in any of the forms that copies have."""

import gzip
import itertools
import json
import logging

import datasets
import pytest

from coldpress import registry
from coldpress.arguments import DatasetArguments
from coldpress.calibration.dataset import load_batches
from coldpress.errors import CalibrationError, ModelError
from coldpress.plugin import HubDataset
from coldpress.testing.models import tiny_tokenizer

TEXTS = [f"question {i}" for i in range(40)]
ROWS = [{"question": text, "other": 1} for text in TEXTS]
KNOWN = HubDataset(
    repo_id="somebody/questions",
    to_sample=lambda row: {"text": row["question"]},
    config_name="main",
    split="train_long",
    split_names={"train": "train_long"},
)


@pytest.fixture
def known(monkeypatch):
    """A function that installs a data set under the name my_questions."""

    def install(dataset=KNOWN):
        plugin = registry.Plugin("datasets", "my_questions", "somebody", "0", None)
        monkeypatch.setattr(registry, "available", lambda kind: [plugin] if kind == "datasets" else [])
        monkeypatch.setattr(registry, "find", lambda kind, name: dataset)

    install()
    return install


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch):
    """The library `datasets` sleeps for five seconds whenever a shuffled stream of parquet files ends."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.fixture
def hub(monkeypatch):
    """A hub that serves an endless stream; what was asked of it, and how many rows were read."""
    asked = []

    def load_dataset(path, name=None, *, split=None, streaming=False, **more):
        asked.append({"path": path, "name": name, "split": split, "streaming": streaming, "rows": 0, **more})

        def rows():
            for i in itertools.count():
                asked[-1]["rows"] += 1
                yield {"question": f"question {i}"}

        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("coldpress.calibration.loading.hub_is_reachable", lambda: True)
    return asked


def words(tokenizer=None, *, shuffle=False, dataset="my_questions", **arguments):
    tokenizer = tokenizer or tiny_tokenizer()
    arguments = DatasetArguments(
        dataset=dataset, shuffle_calibration_samples=shuffle, **{"num_calibration_samples": 40} | arguments
    )
    return [tokenizer.decode(ids) for batch in load_batches(arguments, tokenizer) for ids in batch["input_ids"]]


def test_of_the_hub_only_the_rows_that_are_used_are_read(known, hub):
    found = words(num_calibration_samples=5)

    assert found == TEXTS[:5]
    assert [{**asked, "rows": asked["rows"] <= 6} for asked in hub] == [
        {"path": "somebody/questions", "name": "main", "split": "train_long", "streaming": True, "rows": True}
    ]


def test_a_stream_is_shuffled_within_a_window(known, hub):
    first, again = (words(shuffle=True, num_calibration_samples=5) for _ in range(2))

    assert first == again != TEXTS[:5]
    assert hub[0]["rows"] < 1100


def test_a_part_of_a_split_is_read_alone(known, hub):
    found = words(splits="train[3:9]", shuffle=True)

    assert sorted(found) == sorted(TEXTS[3:9])
    assert hub[0]["split"] == "train_long"
    assert hub[0]["rows"] <= 10


def test_a_share_of_a_split_needs_its_length_and_so_the_whole(known, hub):
    words(splits="train[:1%]", num_calibration_samples=3)

    assert (hub[0]["split"], hub[0]["streaming"]) == ("train_long[:1%]", False)


def test_the_users_configuration_and_arguments_win(known, hub):
    words(
        dataset_config_name="small",
        splits={"calibration": "test"},
        raw_kwargs={"revision": "x"},
        dataset="My-Questions",
    )

    assert {name: hub[0][name] for name in ("name", "split", "revision")} == {
        "name": "small",
        "split": "test",
        "revision": "x",
    }


def test_without_network_the_cache_is_read_and_named_in_the_error(known, monkeypatch):
    monkeypatch.setattr("coldpress.calibration.loading.hub_is_reachable", lambda: False)

    with pytest.raises(CalibrationError, match=r"is somebody/questions on the hub.*cache was looked at.*dataset_path="):
        words()


def as_file(folder):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def as_saved(folder):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def as_saved_splits(folder):
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train_long": rows, "test": rows.select([0])}).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def as_configurations(folder):
    """As on the hub, with a card that names configurations and their files."""
    (folder / "main").mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(str(folder / "main/train_long-00000-of-00001.parquet"))
    datasets.Dataset.from_list(ROWS[:1]).to_parquet(str(folder / "main/test-00000-of-00001.parquet"))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train_long\n    path: main/train_long-*\n"
        "  - split: test\n    path: main/test-*\n- config_name: small\n  data_files: main/test-*\n---\n"
    )
    return folder


def as_subfolder(folder):
    """As on the hub, without its card."""
    (folder / "main").mkdir()
    with gzip.open(folder / "main/train.json.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)
    return folder


def as_data_folder(folder):
    (folder / "data").mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(str(folder / "data/train_long-00000-of-00001.parquet"))
    datasets.Dataset.from_list(ROWS[:1]).to_parquet(str(folder / "data/test-00000-of-00001.parquet"))
    return folder


FORMS = [as_file, as_saved, as_saved_splits, as_configurations, as_subfolder, as_data_folder]


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_on_disk_is_read_in_any_form(known, tmp_path, form):
    path = form(tmp_path)

    assert words(dataset_path=path) == TEXTS
    assert words(dataset_path=path, splits="train[2:5]") == TEXTS[2:5]
    assert sorted(words(dataset_path=path, shuffle=True)) == sorted(TEXTS)


@pytest.mark.parametrize("form", [as_saved_splits, as_configurations, as_data_folder])
def test_another_split_of_a_copy_is_named(known, tmp_path, form):
    path = form(tmp_path)

    assert words(dataset_path=path, splits="test") == TEXTS[:1]
    with pytest.raises(CalibrationError, match=r"no split 'tset'; did you mean 'test'"):
        words(dataset_path=path, splits="tset")


def test_another_configuration_of_a_copy_is_named(known, tmp_path):
    path = as_configurations(tmp_path)

    assert words(dataset_path=path, dataset_config_name="small") == TEXTS[:1]
    with pytest.raises(CalibrationError, match="no configuration 'large'"):
        words(dataset_path=path, dataset_config_name="large")


def test_a_path_without_anything_or_beside_an_unknown_name_is_refused(known, tmp_path):
    with pytest.raises(CalibrationError, match="no such file or folder"):
        words(dataset_path=tmp_path / "none")
    with pytest.raises(CalibrationError, match="cannot be read"):
        words(dataset_path=tmp_path)
    with pytest.raises(CalibrationError, match="name two data sets"):
        words(dataset="unknown", dataset_path=as_file(tmp_path))


def test_rows_of_another_form_are_named_with_their_columns(known, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n')

    with pytest.raises(CalibrationError, match=r"not of the form of somebody/questions: KeyError: 'question'.*prompt"):
        words(dataset_path=path)


def test_a_line_that_breaks_off_in_the_middle_of_a_stream_is_told(known, tmp_path):
    (tmp_path / "main").mkdir()
    (tmp_path / "main/train.jsonl").write_text('{"question": "a"}\n' * 3 + '{"question": "b\n')

    with pytest.raises(CalibrationError, match="cannot be read"):
        words(dataset_path=tmp_path)


def test_a_function_of_the_user_sees_the_rows_as_they_are(known, tmp_path):
    found = words(dataset_path=as_file(tmp_path), preprocessing_func=lambda row: {"text": row["question"].upper()})

    assert found == [text.upper() for text in TEXTS]


def test_a_folder_of_the_same_name_is_warned_of(known, hub, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_questions").mkdir()

    with caplog.at_level(logging.WARNING, logger="coldpress.calibration"):
        words(num_calibration_samples=1)

    assert "'./my_questions'" in caplog.text


def test_a_chat_template_stands_in_where_the_tokenizer_has_none(known, tmp_path, caplog):
    template = "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    known(HubDataset(repo_id="a/b", to_sample=lambda row: {"messages": turns}, chat_template=template))
    own, bare = tiny_tokenizer(), tiny_tokenizer()
    own.chat_template = template.replace("}[", "}<")

    found = [words(one, dataset_path=as_file(tmp_path), num_calibration_samples=1) for one in (own, bare)]

    assert found == [["<user]hi<assistant]ho"], ["[user]hi[assistant]ho"]]
    assert bare.chat_template is None
    assert caplog.text.count("no chat template") == 1


def test_images_need_a_processor(known, tmp_path):
    known(HubDataset(repo_id="a/b", to_sample=lambda row: {"text": "x", "images": [0]}))

    with pytest.raises(ModelError, match="holds images, which a tokenizer cannot read, .* pass processor="):
        words(dataset_path=as_file(tmp_path))
