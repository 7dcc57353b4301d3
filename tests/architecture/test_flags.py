"""The command line as a contract: the flags of `outpace train`, the help pages, the recipes."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from outpace.cli.bench import BENCHES
from outpace.cli.data import ACTIONS
from outpace.cli.main import COMMANDS, main
from outpace.config.check import RANGES, check
from outpace.config.load import load, shipped_recipes
from outpace.config.schema import RunConfig, flat

SNAPSHOT = Path(__file__).with_name("train_flags.txt")
UPDATE = "if the change is meant: UPDATE_SNAPSHOT=1 python -m pytest tests/architecture"


def sections():
    """(section, its dataclass) for each of RunConfig."""
    config = RunConfig()
    yield "", RunConfig
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield field.name, type(value)


def train_flags() -> list[str]:
    """Name, type and default of each flag, a line each."""
    lines = []
    for section, kind in sections():
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(hints[field.name]):
                continue
            kind_of_value = in_words(hints[field.name])
            lines.append(
                f"{section or '-':10} --{field.name:28} {kind_of_value:24} {field.default!r}"
            )
    return lines


def in_words(hint: object) -> str:
    """A type, written the same by every version of Python."""
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    return "|".join(map(in_words, get_args(hint))) or getattr(hint, "__name__", "")


def test_the_flags_of_train_are_the_committed_ones():
    now = "\n".join(train_flags()) + "\n"
    if os.environ.get("UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(now, encoding="utf-8")
    assert now == SNAPSHOT.read_text(encoding="utf-8"), UPDATE


def test_flag_names_are_unique_over_all_sections():
    names = [line.split()[1] for line in train_flags()]
    assert len(set(names)) == len(names) == len(flat(RunConfig()))


def test_every_numeric_flag_has_a_range():
    numeric = set()
    for _, kind in sections():
        for name, hint in get_type_hints(kind).items():
            if {int, float} & {hint, *get_args(hint)}:
                numeric.add(name)
    assert numeric == RANGES.keys()


def test_the_defaults_are_in_their_ranges():
    check(RunConfig())


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_every_shipped_recipe_parses_and_passes_the_check(recipe):
    config, set_by = load(["--recipe", recipe])
    assert config.recipe == recipe
    assert f"recipe {recipe}" in set_by.values()
    assert main(["train", "--recipe", recipe, "--help"]) == 0


@pytest.mark.parametrize("command", COMMANDS.names())
def test_every_command_has_a_help_page_that_explains_each_flag(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    groups = {"bench": BENCHES, "data": ACTIONS}
    pages = [[command, n] for n in groups[command].names()] if command in groups else [[command]]
    for page in pages:
        assert main([*page, "--help"]) == 0
        out = capsys.readouterr().out
        assert f"usage: outpace {' '.join(page)}" in out
        plain = re.sub(r"[│╭╮╰╯─]", " ", out)
        flags = re.findall(r"^ +(?:-h, )?(--\w+)(.*?)(?=^ +(?:-h, )?--\w|\Z)", plain, re.M | re.S)
        assert len(flags) >= 2
        for flag, rest in flags:
            text = re.sub(
                r"\(default:.*?\)|[A-Z]+\|\{\w+\}|--\w+|\b[A-Z|]+\b", "", rest, flags=re.S
            )
            assert len(re.findall(r"[a-z]{2,}", text)) >= 2, f"{flag} is not explained: {rest}"


def test_train_and_plan_take_the_same_flags(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    main(["train", "--help"])
    train = set(re.findall(r"--\w+", capsys.readouterr().out))
    main(["plan", "--help"])
    own = {"--json", "--no_json", "--machine", "--price_per_hour"}
    assert set(re.findall(r"--\w+", capsys.readouterr().out)) - own == train


def test_every_flag_of_train_is_on_its_help_page(capsys):
    main(["train", "--help"])
    out = capsys.readouterr().out
    assert not [name for name in flat(RunConfig()) if f"--{name}" not in out]


def test_outpace_help_lists_exactly_the_commands(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    listed = re.findall(r"^  ([\w-]+) +(\S.*)$", out, re.M)
    assert [name for name, _ in listed] == COMMANDS.names()
    assert all(len(text.split()) >= 3 for _, text in listed)
    assert main([]) == 0
    assert capsys.readouterr().out == out
