"""Defaults, then the recipe, then the flags; and who set each value."""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import sys
import tomllib
from decimal import Decimal
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from outpace.config.check import check
from outpace.config.flag_errors import one_line
from outpace.config.ranges import check_ranges
from outpace.config.schema import RunConfig, flat
from outpace.core.errors import UsageError
from outpace.core.registry import nearest

HELP_COLUMNS = 40
UNITS = {"k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
MOST_DIGITS = 30
SetBy = dict[str, str]
"""Field name -> `default`, `recipe NAME` or `flag`."""


def load(
    argv: list[str], prog: str = "outpace train", schema: type[RunConfig] = RunConfig
) -> tuple[RunConfig, SetBy]:
    """Parse `argv`. Exits with 2 on a malformed flag; UsageError on a value that cannot be."""
    recipe = _recipe_named(argv)
    default, from_recipe = _with_recipe(schema, recipe) if recipe else (schema(), set())
    config: RunConfig = _parse(schema, argv, prog=prog, default=default)
    flags = set(_named(argv))
    set_by = {}
    for name in flat(config):
        if flags & {name, f"no_{name}"}:
            set_by[name] = "flag"
        elif name in from_recipe:
            set_by[name] = f"recipe {recipe}"
        else:
            set_by[name] = "default"
    check(config)
    return config, set_by


def parse_flags(schema: Any, argv: list[str], *, prog: str) -> Any:
    """tyro with the house's settings: flat snake_case flags, kebab-case accepted. UsageError for
    what cannot be, for numbers outside their range, and for a list in two parts."""
    options = _parse(schema, argv, prog=prog)
    for name, kind in get_type_hints(schema).items():
        if get_origin(kind) is tuple and _named(argv).count(name) > 1:  # the last alone would count
            raise UsageError("FLAGS", f"--{name} is there twice", do=f"--{name} ONE ANOTHER")
    check_ranges(options, prog)
    return options


def _named(argv: list[str]) -> list[str]:
    """The flags in `argv` by name, in snake case."""
    return [a.split("=")[0].lstrip("-").replace("-", "_") for a in argv if a.startswith("--")]


def _parse(schema: Any, argv: list[str], *, prog: str, default: Any = None) -> Any:
    extra = {} if default is None else {"default": default}
    asks = bool({"-h", "--help"} & set(argv))
    if asks and shutil.get_terminal_size().columns < HELP_COLUMNS:
        os.environ["COLUMNS"] = str(HELP_COLUMNS)  # tyro takes for ever in a few columns
    said = io.StringIO()
    # tyro colours whatever it says, and wherever, if standard output is a terminal.
    coloured = asks and not os.environ.get("NO_COLOR")
    out = sys.stdout if coloured else io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            return tyro.cli(
                schema,
                args=argv,
                prog=prog,
                use_underscores=True,
                registry=_plain_numbers(),
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
                **extra,
            )
    except SystemExit as end:
        if not end.code:  # a help page
            if isinstance(out, io.StringIO):
                sys.stdout.write(out.getvalue())
            raise
        raise one_line(said.getvalue(), prog, _flag_names(schema)) from None


def _flag_names(schema: Any) -> set[str]:
    names = set()
    for name, kind in get_type_hints(schema).items():
        names |= _flag_names(kind) if dataclasses.is_dataclass(kind) else {name}
    return names


def _plain_numbers() -> ConstructorRegistry:
    """Numbers in ASCII digits only: Python would take those of every script, the full-width １２
    too, which in most fonts is hard to tell from 12."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def rule(asked: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        kind = asked.type
        if kind is not int and kind is not float:
            return None

        def parse(words: list[str]) -> int | float:
            if not words[0].isascii():
                raise ValueError(f"{words[0]!r} is not written in ASCII digits")
            return _whole(words[0]) if kind is int else float(words[0])

        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=kind.__name__.upper(),
            instance_from_str=parse,
            is_instance=lambda x: type(x) in (int, kind),
            str_from_instance=lambda x: [str(x)],
        )

    return registry


def _whole(text: str) -> int:
    """`10B`, `1.5M`, `1e6` or plain digits as a whole number."""
    unit = UNITS.get(text[-1:])
    if unit is None and not set(text) & set("eE."):
        return int(text)
    try:
        number = Decimal(text[:-1] if unit else text) * Decimal(unit or 1)
    except ArithmeticError as error:
        raise ValueError(f"{text!r} is not a number") from error
    if not number.is_finite() or number.adjusted() > MOST_DIGITS or number != int(number):
        raise ValueError(f"{text!r} is not a whole number")
    return int(number)


def shipped_recipes() -> dict[str, str]:
    """Name -> TOML text of the recipes inside the package."""
    folder = resources.files("outpace") / "recipes"
    files = {f.name: f for f in folder.iterdir() if f.name.endswith(".toml")}
    return {
        name.removesuffix(".toml"): files[name].read_text(encoding="utf-8")
        for name in sorted(files)
    }


def to_toml(config: RunConfig, set_by: SetBy) -> str:
    """The config as TOML by section, each value with who set it. `--recipe` reads it back."""
    lines = [f"recipe = {_toml(config.recipe)}"]
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        if not dataclasses.is_dataclass(values):
            continue
        lines.append(f"\n[{section.name}]")
        for field in dataclasses.fields(values):
            value, who = getattr(values, field.name), set_by.get(field.name, "default")
            lines.append(f"{field.name} = {_toml(value)}  # {_toml(who)[1:-1]}")
    return "\n".join(lines) + "\n"


def _toml(value: str | float) -> str:
    """A value as TOML: as JSON, but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _recipe_named(argv: list[str]) -> str:
    """The value of the last `--recipe`, as the flags' parser sees it too."""
    recipe = ""
    for i, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name == "--recipe":
            recipe = value if equals else next(iter(argv[i + 1 : i + 2]), "")
    return recipe


def _with_recipe(schema: type[RunConfig], recipe: str) -> tuple[RunConfig, set[str]]:
    """The defaults with the recipe's values in their place, and the names of those values."""
    config = schema()
    sections = {f.name: getattr(config, f.name) for f in dataclasses.fields(RunConfig)}
    del sections["recipe"]
    names: set[str] = set()
    for section, settings in _read_toml(recipe).items():
        if section == "recipe":
            continue
        if not isinstance(settings, dict):
            raise _fault(recipe, f"{section!r} is in no section{_hint(section, sections)}")
        if section not in sections:
            raise _fault(recipe, f"no section [{section}]{nearest(section, sections)}")
        kinds = get_type_hints(type(sections[section]))
        for name, value in settings.items():
            if name not in kinds:
                raise _fault(recipe, f"no setting {name!r} in [{section}]{_hint(name, sections)}")
            if not _is_a(value, kinds[name]):
                raise _fault(recipe, f"{name} = {value!r} must be {_in_words(kinds[name])}")
            setattr(sections[section], name, value)
            names.add(name)
    return config, names


def _read_toml(recipe: str) -> dict[str, Any]:
    shipped = shipped_recipes()
    try:
        text = shipped.get(recipe) or Path(recipe).read_text(encoding="utf-8")
        return tomllib.loads(text)
    except OSError as error:
        raise UsageError(
            "RECIPE",
            f"no recipe {recipe!r}{nearest(recipe, shipped)}",
            do=f"choose one of {', '.join(shipped)}, or name a TOML file",
        ) from error
    except ValueError as error:  # of the decoder or of the TOML parser
        raise _fault(recipe, f"it is not TOML: {error}") from error


def _hint(name: str, sections: dict[str, Any]) -> str:
    """Where a misplaced or misspelt setting belongs."""
    home = {f.name: key for key, s in sections.items() for f in dataclasses.fields(s)}
    return f"; it belongs in [{home[name]}]" if name in home else nearest(name, home)


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value of TOML has the type of a setting. A whole number will do for a float."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is UnionType or get_origin(kind) is Union:
        return any(_is_a(value, k) for k in get_args(kind))
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if args := get_args(kind):
        return " or ".join(map(_in_words, args))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


def _fault(recipe: str, what: str) -> UsageError:
    return UsageError("RECIPE", f"{recipe}: {what}", do="fix the file")
