"""Values that a numeric flag must refuse, made from the parsers of all commands."""

import dataclasses
from collections.abc import Iterator
from typing import get_args, get_type_hints

from outpace.cli import (
    bench_compare,
    bench_evaluate,
    bench_generate,
    bench_kernels,
    bench_ladder,
    bench_loader,
    bench_memory,
    bench_optimizers,
    bench_prepare,
    bench_profile,
    contamination,
    data_info,
    evaluate,
    prepare,
    prove_resume,
    replay,
    sample,
    verdict,
)
from outpace.config.ranges import Range, ranges_of
from outpace.config.schema import RunConfig

COMMANDS = [
    (["train"], RunConfig),
    (["prepare", "files"], prepare.Options),
    (["evaluate", "x"], evaluate.Options),
    (["sample", "x"], sample.Options),
    (["prove-resume", "x"], prove_resume.Options),
    (["replay", "x"], replay.Options),
    (["bench", "memory"], bench_memory.Options),
    (["bench", "compare"], bench_compare.Options),
    (["bench", "evaluate"], bench_evaluate.Options),
    (["bench", "kernels"], bench_kernels.Options),
    (["bench", "profile"], bench_profile.Options),
    (["bench", "optimizers"], bench_optimizers.Options),
    (["bench", "ladder"], bench_ladder.Options),
    (["bench", "loader"], bench_loader.Options),
    (["bench", "prepare"], bench_prepare.Options),
    (["bench", "generate"], bench_generate.Options),
    (["data", "info", "x"], data_info.Options),
    (["verdict", "x"], verdict.Options),
    (["contamination", "x"], contamination.Options),
]
HARMLESS = {"train": ["--dataset=none"]}
"""Should a value be accepted, nothing is trained."""
NEVER_NUMBERS = [
    "nan", "inf", "-inf", "1e999", "-1e999", "", " ", "0x10", "1,5", "1 2", "two", "--", "True",
    "１２", "٣", "²", "1" * 5000, str(10**30), "-1", "-0x1", "1e",
]  # fmt: skip


def numeric_flags(schema: type) -> dict[str, bool]:
    """Name -> whether it takes whole numbers only, of every numeric flag of a dataclass; train's
    own are tried with train."""
    found = {}
    hints = get_type_hints(schema)
    if issubclass(schema, RunConfig) and schema is not RunConfig:
        hints = {name: hints[name] for name in hints.keys() - get_type_hints(RunConfig).keys()}
    for name, hint in hints.items():
        kinds = {hint, *get_args(hint)}
        if dataclasses.is_dataclass(hint):
            found |= numeric_flags(hint)
        elif {int, float} & kinds:
            found[name] = float not in kinds
    return found


def bad_values(whole: bool, allowed: Range | None) -> Iterator[str]:
    """What a numeric flag with this range must refuse."""
    yield from NEVER_NUMBERS
    if whole:
        yield from ("1.5", "1e", "M", "1.0005k", "1e40")
    if allowed is not None:
        edge = 10**18
        yield from (str(v) for v in (0, edge) if not allowed.holds(v))


def bad_flags() -> Iterator[tuple[str, list[str]]]:
    """(flag, argv) of every command line with one numeric flag that cannot be."""
    for command, schema in COMMANDS:
        ranges = ranges_of(schema)
        for name, whole in numeric_flags(schema).items():
            for value in bad_values(whole, ranges.get(name)):
                yield name, [*command, *HARMLESS.get(command[0], []), f"--{name}={value}"]
