"""`coldpress port`: results on standard output, remarks on standard error, and no file written unasked."""

import os
import runpy

import pytest

SCRIPT = "from llmcompressor import oneshot\nfrom compressed_tensors.offload import dispatch_model\n"
PORTED = "from coldpress import oneshot\n"


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "quantize.py"
    path.write_text(SCRIPT)
    return path


def test_the_result_goes_to_standard_output_and_remarks_to_standard_error(coldpress, script):
    answer = coldpress("port", script)

    assert (answer.code, answer.out) == (0, PORTED)
    assert f"dropped: {script}:2: dispatch_model: " in answer.err
    assert script.read_text() == SCRIPT
    assert [path.name for path in script.parent.iterdir()] == ["quantize.py"]


def test_an_output_file_is_written_and_replaced_only_when_asked(coldpress, script):
    output = script.with_name("ported.py")

    assert coldpress("port", script, "-o", output).code == 0
    assert output.read_text() == PORTED

    output.write_text("mine")
    refused = coldpress("port", script, "-o", output)

    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert output.read_text() == "mine"
    assert coldpress("port", script, "-o", output, "--overwrite").code == 0
    assert output.read_text() == PORTED


def test_in_place_keeps_mode_encoding_and_links(coldpress, tmp_path):
    script, link = tmp_path / "a.py", tmp_path / "link.py"
    script.write_bytes("# coding: latin-1\r\nfrom llmcompressor import oneshot  # é\r\n".encode("latin-1"))
    script.chmod(0o751)
    link.symlink_to(script)

    assert coldpress("port", link, "--in-place").code == 0
    assert script.read_bytes() == "# coding: latin-1\r\nfrom coldpress import oneshot  # é\r\n".encode("latin-1")
    assert script.stat().st_mode & 0o777 == 0o751
    assert link.is_symlink()
    assert coldpress("port", link, "--in-place").code == 2  # nothing is left to port


def test_a_script_that_changes_meanwhile_is_left_alone(coldpress, script, monkeypatch):
    def interfering(text, name):
        script.write_text("edited\n")
        return found(text, name)

    from coldpress import porting

    found = porting.port
    monkeypatch.setattr(porting, "port", interfering)
    answer = coldpress("port", script, "--in-place")

    assert answer.code == 2
    assert "was changed while" in answer.err
    assert script.read_text() == "edited\n"
    assert [path.name for path in script.parent.iterdir()] == ["quantize.py"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quantize.py", "-o", "quantize.py"], "--in-place"),
        (["quantize.py", "-o", "link.py", "--overwrite"], "--in-place"),
        (["quantize.py", "-o", "x.py", "--in-place"], "not both"),
        (["quantize.py", "--overwrite"], "goes with --output"),
        (["quantize.py", "-o", "."], "is no file"),
        (["quantize.py", "-o", "none/x.py"], "there is no folder"),
        (["nothing.py"], "cannot be read: No such file"),
        (["quantize.py/x.py"], "cannot be read"),
        (["n" * 300], "cannot be read"),
        (["."], "is a folder"),
        (["pipe"], "is no file"),
        (["binary.py"], "no Python"),
        (["coded.py"], "no Python"),
        (["plain.py"], "nothing to port"),
    ],
)
def test_misuse_is_refused_in_one_line(coldpress, script, monkeypatch, words, message):
    monkeypatch.chdir(script.parent)
    os.mkfifo("pipe")
    os.symlink("quantize.py", "link.py")
    (script.parent / "binary.py").write_bytes(b"\xff\xfe\x00")
    (script.parent / "coded.py").write_bytes(b"# coding: klingon\n")
    (script.parent / "plain.py").write_text("import os\n")

    answer = coldpress("port", *words)

    assert answer.code == 2
    assert answer.err.startswith("error: ")
    assert message in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert script.read_text() == SCRIPT


def test_a_ported_script_runs(coldpress, script, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script.write_text(
        "from llmcompressor import oneshot\n"
        "from llmcompressor.modifiers.quantization import QuantizationModifier\n"
        "from compressed_tensors.offload import dispatch_model\n"
        "recipe = QuantizationModifier(scheme='FP8_DYNAMIC', ignore=['lm_head'])\n"
        f"model = oneshot({str(model)!r}, recipe=recipe, output_dir='compressed')\n"
        "dispatch_model(model)\n"
    )
    assert coldpress("port", script, "--in-place").code == 0

    runpy.run_path(str(script))

    assert (tmp_path / "compressed/config.json").is_file()
