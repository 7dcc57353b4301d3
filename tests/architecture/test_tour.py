"""docs/tour.md: its code runs as it stands, and the tables that it names are on the help pages."""

import re
from pathlib import Path

import pytest
import torch

import outpace.train
from outpace.cli import prepare_source
from outpace.cli.main import main
from outpace.config.load import shipped_recipes
from outpace.data.exports import EXPORTS
from outpace.data.sources import SOURCES
from outpace.evals.tasks import TASKS
from outpace.ops.attention import BACKENDS
from outpace.ops.cross_entropy import LOSSES, choose
from outpace.optim import OPTIMIZERS
from outpace.tokenizer import TOKENIZERS

ROOT = Path(__file__).resolve().parents[2]


def test_the_code_of_the_library_runs(tmp_path, capsys):
    text = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    code, training, loop = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    run = tmp_path / "run"
    flags = "--n_layer 1 --n_head 2 --n_embd 16 --context 32 --micro_batch_size 2 --max_steps 1"
    flags += " --tokens_per_step 64 --compile off --eval_every_steps 0 --hellaswag_limit 0"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        (tmp_path / "x.txt").write_text("The sea, the sea, and no end of it. " * 200)
        prepare = ["prepare", "files", "--input", "x.txt", "--output", "d"]
        assert main([*prepare, "--val_fraction", "0"]) == 0
        assert main(["train", *flags.split(), "--dataset", "d", "--run_dir", str(run)]) == 0
    capsys.readouterr()
    names: dict[str, object] = {}
    exec(code.replace("runs/NAME", str(run)), names)
    assert names["logits"].shape[1] == len(names["prompt"])  # type: ignore[attr-defined, arg-type]
    assert capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        exec(training.replace('"novels"', '"d", "--max_hours", "1e-9"'), names)
        exec(training.replace('"novels"', '"none"'), names)
        exec(loop.replace("data/novels", "d"), names)
    assert names["code"] == 75
    assert names["step"] == 2 and 0 < names["loss"].item() < 10.5  # type: ignore[attr-defined]
    assert "NO-DATASET" in capsys.readouterr().out


def test_what_decides_a_behaviour_stands_where_the_table_says():
    text = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    table = text.partition("| what | file | name |")[2].partition("\n\n")[0]
    rows = [line.split("|")[2:4] for line in table.splitlines()[2:]]
    assert len(rows) >= 20
    for files, names in rows:
        for file, of_file in zip(files.split(";"), names.split(";"), strict=True):
            code = (ROOT / "outpace" / file.strip(" `")).read_text(encoding="utf-8")
            for name in re.findall(r"`(\w+)`", of_file):
                assert re.search(rf"^ *(?:def|class) {name}\b|^{name}\b", code, re.M), name


def test_the_map_of_the_package_train_names_every_file_of_it():
    files = {path.stem for path in (ROOT / "outpace" / "train").glob("[a-z]*.py")}
    assert not files - set(re.findall(r"\w+", outpace.train.__doc__ or ""))


@pytest.mark.parametrize(
    ("command", "flag", "names"),
    [
        ("train", "--optimizer", OPTIMIZERS.names()),
        ("train", "--attention_backend", BACKENDS.names()),
        ("train", "--cross_entropy", LOSSES.names()),
        ("train", "--recipe", shipped_recipes()),
        ("evaluate", "--tasks", TASKS.names()),
        ("data export", "--to", EXPORTS.names()),
        ("prepare", r"\[SOURCE\]", [*SOURCES.names(), "hellaswag"]),
        ("prepare", "--tokenizer", TOKENIZERS.names()),
    ],
)
def test_the_help_of_a_flag_names_every_row_of_its_table(command, flag, names, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*command.split(), "--help"]) == 0
    page = re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out)
    found = re.search(rf"^ +(?:-h, )?{flag}(?!\w)(.*?)(?=^ +--\w|\Z)", page, re.M | re.S)
    assert found, page
    words = re.findall(r"[\w-]+", found[1])
    assert not [name for name in names if name not in words]


def test_the_help_of_cross_entropy_names_what_auto_takes_without_a_measurement(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    row, _ = choose(torch.device("cpu"), torch.float32, 64, 128, compiled=False)
    assert main(["train", "--help"]) == 0
    page = re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out)
    assert f"measured once; else {row}." in " ".join(page.split())


def test_every_source_says_which_flags_it_understands():
    assert set(prepare_source.FLAGS) == {*SOURCES.names(), "hellaswag"}
