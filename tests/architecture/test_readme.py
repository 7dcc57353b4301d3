"""Every command that README.md shows is one that exists, with flags that parse."""

import re
import shlex
from pathlib import Path

import pytest

from outpace.cli.main import COMMANDS, main
from outpace.config.load import load

ROOT = Path(__file__).resolve().parents[2]
LINES = [
    re.split(r"   |  +#", line.strip())[0]
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"    (make|python|outpace|torchrun) ", line)
]


def test_the_command_of_the_mission_stands_there_word_for_word():
    assert (
        "python train.py --model_size 124M --mixed_precision bf16 --use_flash_attention "
        "--gradient_accumulation_steps 8" in LINES
    )


@pytest.mark.parametrize("line", LINES)
def test_the_command_exists_and_its_flags_parse(line, capsys):
    words = shlex.split(line)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if "train.py" in words:
        flags = words[words.index("train.py") + 1 :]
        config, _ = load(flags)
        assert config is not None
        return
    assert words[0] == "outpace" and words[1] in COMMANDS.names()
    command = words[1:3] if words[1] in ("bench", "data") else words[1:2]
    assert main([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    for flag in (w for w in words if w.startswith("--")):
        assert re.search(rf"{flag}\b", shown), f"{flag} is not in `{command} --help`"


def test_every_file_that_the_documents_name_is_there():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
        for path in re.findall(r"`((?:tests|outpace|docs|benchmarks)/[\w/.-]+)`", text):
            assert (ROOT / path).exists(), f"{document.name}: {path}"
