"""Flags that cannot be: one line or the parser's box, exit code 2, nothing changed on disk."""

import dataclasses
from typing import get_args, get_type_hints

import pytest

from outpace.cli import bench, evaluate, prepare, sample
from outpace.cli.main import COMMANDS
from outpace.config.check import RANGES, Range
from outpace.config.schema import RunConfig


def numeric_flags(schema: type) -> dict[str, bool]:
    """Name -> whether it takes whole numbers only, of every numeric flag of a dataclass."""
    found = {}
    for name, hint in get_type_hints(schema).items():
        kinds = {hint, *get_args(hint)}
        if dataclasses.is_dataclass(hint):
            found |= numeric_flags(hint)
        elif {int, float} & kinds:
            found[name] = float not in kinds
    return found


def bad_values(name: str, whole: bool, ranges: dict[str, Range]) -> list[str]:
    """What the numeric flag `name` must refuse."""
    values = ["nan", "inf", "-inf", "1e999", "", "0x10", str(10**30), "-1", "two", "--"]
    values += ["1.5", "1e3"] if whole else []
    values += ["0"] if name in ranges and not ranges[name].holds(0) else []
    return values


SCHEMAS = [
    (["train"], RunConfig, RANGES),
    (["prepare", "files"], prepare.Options, prepare.RANGES),
    (["evaluate", "x"], evaluate.Options, evaluate.RANGES),
    (["sample", "x"], sample.Options, sample.RANGES),
    (["bench", "memory"], bench.MemoryOptions, bench.MEMORY_RANGES),
    (["bench", "compare"], bench.CompareOptions, bench.COMPARE_RANGES),
]
NUMBERS = [
    pytest.param(command, name, bad_values(name, whole, ranges), id=f"{command[0]}-{name}")
    for command, schema, ranges in SCHEMAS
    for name, whole in numeric_flags(schema).items()
]


@pytest.mark.parametrize(("command", "name", "values"), NUMBERS)
def test_a_number_that_cannot_be_is_refused_and_named(command, name, values, run, folder):
    for value in values:
        result = run(*command, f"--{name}={value}")
        assert result.code == 2, (value, result.err)
        assert f"--{name}" in result.err
        assert "error[BAD-VALUE]: " in result.err or "For full helptext" in result.err
    assert not list(folder.iterdir())


def test_the_table_of_bad_numbers_covers_every_command_that_takes_a_number():
    assert len(NUMBERS) > 45
    assert all(len(p.values[2]) >= 10 for p in NUMBERS)


POSITIONAL = {"prepare": ["files"], "evaluate": ["x"], "sample": ["x"], "convert": ["x", "y"],
              "status": ["x"], "verify": ["x"], "report": ["x"], "bench": ["memory"]}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS.names())
def test_an_unknown_flag_is_refused(command, refused):
    argv = [command, *POSITIONAL.get(command, [])]
    assert "--frobnicate" in refused(2, "", *argv, "--frobnicate", "3").err


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["train", "--max_stps", "3"], "--max_steps"),
        (["train", "--modelsize", "124M"], "--model_size"),
        (["train", "--grad_accumulation_steps", "8"], "--gradient_accumulation_steps"),
        (["train", "--no_flash_attention"], "--no_use_flash_attention"),
        (["sample", "x", "--max_tokens", "3"], "--max_new_tokens"),
        (["evaluate", "x", "--task", "loss"], "--tasks"),
    ],
)
def test_a_mistyped_flag_names_the_one_that_was_meant(argv, meant, refused):
    assert meant in refused(2, "", *argv).err


@pytest.mark.parametrize(
    ("argv", "name", "meant"),
    [
        (["trian"], "UNKNOWN-COMMAND", "train"),
        (["eval"], "UNKNOWN-COMMAND", "evaluate"),
        (["bench", "memry"], "UNKNOWN-BENCHMARK", "memory"),
        (["prepare", "file"], "UNKNOWN-SOURCE", "files"),
        (["prepare", "pydoc"], "UNKNOWN-SOURCE", "pydocs"),
        (["evaluate", "x", "--tasks", "loss,helaswag"], "UNKNOWN-TASK", "hellaswag"),
        (["train", "--model_size", "125M"], "MODEL-SIZE", "124M"),
        (["train", "--recipe", "quickstat"], "RECIPE", "quickstart"),
    ],
)
def test_an_unknown_name_names_the_nearest_and_what_there_is(argv, name, meant, refused):
    error = refused(2, name, *argv).error
    assert f"(did you mean {meant}?)" in error
    assert "do: " in error


@pytest.mark.parametrize("command", ["evaluate", "sample", "convert", "status", "verify"])
def test_a_missing_positional_argument_is_refused(command, refused):
    refused(2, "", command)


@pytest.mark.parametrize(
    "argv",
    [
        ["--use_flash_attention", "--attention_backend", "reference"],
        ["--attention_backend", "reference"],
    ],
)
def test_flash_attention_and_the_reference_exclude_each_other(argv, refused):
    error = refused(2, "BAD-VALUE", "train", *argv).error
    assert "T x T" in error
    assert "--no_use_flash_attention" in error


@pytest.mark.parametrize("name", ["run_dir", "dataset", "resume", "hellaswag_path"])
def test_an_empty_path_is_not_taken_for_the_current_folder(name, refused):
    assert f"--{name} is empty" in refused(2, "BAD-VALUE", "train", f"--{name}=").error


def test_a_flag_without_its_value_and_a_stray_word_are_refused(refused):
    refused(2, "", "train", "--max_steps")
    refused(2, "", "train", "tiny")
    refused(2, "", "train", "--recipe")
    refused(2, "", "train", "--use_flash_attention=False")


def test_an_invalid_choice_names_the_choices(refused):
    assert "bf16" in refused(2, "", "train", "--mixed_precision", "bfloat16").err


def test_an_evaluation_or_measurement_of_nothing_is_refused(refused):
    refused(2, "UNKNOWN-TASK", "evaluate", "x", "--tasks", "")
    refused(2, "BAD-VALUE", "bench", "memory", "--lengths")


def test_prepare_files_needs_an_input_and_pydocs_takes_none(refused):
    assert "--input" in refused(2, "NO-INPUT", "prepare", "files").error
    refused(2, "BAD-VALUE", "prepare", "pydocs", "--input", "x")


def test_reports_and_comparisons_say_what_they_miss(refused):
    refused(2, "NO-RUN", "report")
    refused(2, "NO-PEER", "bench", "compare")
