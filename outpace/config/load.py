"""Defaults, then the recipe, then the flags; and who set each value."""

import dataclasses
import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import tyro

from outpace.config.check import check
from outpace.config.schema import RunConfig, flat
from outpace.core.errors import UsageError
from outpace.core.registry import nearest

SetBy = dict[str, str]
"""Field name -> `default`, `recipe NAME` or `flag`."""


def load(argv: list[str], prog: str = "outpace train") -> tuple[RunConfig, SetBy]:
    """Parse `argv`. Exits with 2 on a malformed flag; UsageError on a value that cannot be."""
    recipe = _recipe_named(argv)
    settings = _read_recipe(recipe) if recipe else {}
    from_recipe = _parse_recipe(recipe, settings) if recipe else RunConfig()
    config = parse_flags(RunConfig, argv, prog=prog, default=from_recipe)
    flags = {a.split("=")[0].lstrip("-").replace("-", "_") for a in argv if a.startswith("--")}
    set_by = {}
    for name in flat(config):
        if flags & {name, f"no_{name}"}:
            set_by[name] = "flag"
        elif name in settings:
            set_by[name] = f"recipe {recipe}"
        else:
            set_by[name] = "default"
    check(config)
    return config, set_by


def parse_flags(schema: Any, argv: list[str], *, prog: str, default: Any = None) -> Any:
    """tyro with the house's settings: flat snake_case flags, kebab-case accepted."""
    extra = {} if default is None else {"default": default}
    return tyro.cli(
        schema,
        args=argv,
        prog=prog,
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        **extra,
    )


def shipped_recipes() -> dict[str, str]:
    """Name -> TOML text of the recipes inside the package."""
    folder = resources.files("outpace") / "recipes"
    files = sorted(f for f in folder.iterdir() if f.name.endswith(".toml"))
    return {f.name.removesuffix(".toml"): f.read_text() for f in files}


def to_toml(config: RunConfig, set_by: SetBy) -> str:
    """The config as TOML by section, each value with who set it. `--recipe` reads it back."""
    lines = [f"recipe = {json.dumps(config.recipe)}"]
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        if not dataclasses.is_dataclass(values):
            continue
        lines.append(f"\n[{section.name}]")
        for field in dataclasses.fields(values):
            value = json.dumps(getattr(values, field.name), ensure_ascii=False)
            lines.append(f"{field.name} = {value}  # {set_by.get(field.name, 'default')}")
    return "\n".join(lines) + "\n"


def _recipe_named(argv: list[str]) -> str:
    for i, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name == "--recipe":
            return value if equals else (argv[i + 1] if i + 1 < len(argv) else "")
    return ""


def _read_recipe(recipe: str) -> dict[str, Any]:
    shipped = shipped_recipes()
    try:
        text = shipped[recipe] if recipe in shipped else Path(recipe).read_text()
        table = tomllib.loads(text)
    except OSError as error:
        raise UsageError(
            "RECIPE",
            f"no recipe {recipe!r}{nearest(recipe, shipped)}",
            do=f"choose one of {', '.join(shipped)}, or name a TOML file",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError("RECIPE", f"{recipe} is not TOML: {error}", do="mend the file") from error
    settings: dict[str, Any] = {}
    for key, value in table.items():
        settings |= value if isinstance(value, dict) else {key: value}
    settings.pop("recipe", None)
    known = flat(RunConfig())
    for key in settings:
        if key not in known:
            raise UsageError(
                "RECIPE", f"{recipe}: no setting {key!r}{nearest(key, known)}", do="mend the file"
            )
    return settings


def _parse_recipe(recipe: str, settings: dict[str, Any]) -> RunConfig:
    argv = []
    for key, value in settings.items():
        if isinstance(value, bool):
            argv.append(f"--{key}" if value else f"--no_{key}")
        else:
            argv += [f"--{key}", str(value)]
    try:
        config: RunConfig = tyro.cli(
            RunConfig,
            args=argv,
            use_underscores=True,
            console_outputs=False,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except SystemExit as error:
        raise UsageError(
            "RECIPE",
            f"{recipe}: a value has the wrong type",
            do="compare it with `outpace train --help`",
        ) from error
    return config
