"""Defaults, recipe, flags: who wins, who is named, and what a recipe may hold."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outpace.config.check import RANGES, check
from outpace.config.load import load, shipped_recipes, to_toml
from outpace.config.presets import ALIASES, SIZES, GPT2Shape, size
from outpace.config.ranges import Range
from outpace.config.schema import RunConfig, flat
from outpace.core.errors import UsageError


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe and return its path."""

    def write(text: str) -> str:
        path = tmp_path / "a recipe.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_without_flags_everything_is_the_default():
    config, set_by = load([])
    assert config == RunConfig()
    assert set(set_by.values()) == {"default"}
    assert set_by.keys() == flat(config).keys()


def test_a_flag_wins_over_the_recipe_and_the_recipe_over_the_default(recipe):
    path = recipe("[schedule]\nlr = 1e-3\nmax_steps = 7\n")
    config, set_by = load(["--recipe", path, "--max_steps", "9"])
    assert (config.schedule.lr, config.schedule.max_steps) == (1e-3, 9)
    assert set_by["lr"] == f"recipe {path}"
    assert set_by["max_steps"] == "flag"
    assert set_by["warmup_steps"] == "default"
    assert config.run == RunConfig().run


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--max_steps", "9"], "max_steps", 9),
        (["--max_steps=9"], "max_steps", 9),
        (["--max-steps", "9"], "max_steps", 9),
        (["--max-steps=9"], "max_steps", 9),
        (["--max_tokens", "10B"], "max_tokens", 10_000_000_000),
        (["--max_tokens", "1.5M"], "max_tokens", 1_500_000),
        (["--max_tokens", "1e6"], "max_tokens", 1_000_000),
        (["--max_tokens", "auto"], "max_tokens", "auto"),
        (["--use_flash_attention"], "use_flash_attention", True),
        (["--no_use_flash_attention"], "use_flash_attention", False),
        (["--no-use-flash-attention"], "use_flash_attention", False),
        (["--sample_prompt", ""], "sample_prompt", ""),
        (["--sample_prompt=--lr 3"], "sample_prompt", "--lr 3"),
        (["--recipe=quickstart", "--n_layer", "auto"], "n_layer", "auto"),
    ],
)
def test_every_way_to_write_a_flag_sets_it_and_is_seen(argv, name, value):
    config, set_by = load(argv)
    assert flat(config)[name] == value
    assert set_by[name] == "flag"
    assert "lr" not in [n for n, who in set_by.items() if who == "flag"]


def test_the_last_of_two_recipes_counts_for_values_and_for_names():
    config, set_by = load(["--recipe", "quickstart", "--recipe", "gpt2_124M"])
    assert config.recipe == "gpt2_124M"
    assert config.batch.tokens_per_step == 524_288
    assert set_by["tokens_per_step"] == "recipe gpt2_124M"
    assert config.model.n_layer == "auto"


def test_what_is_written_to_a_run_folder_reads_back_as_a_recipe(recipe):
    config, set_by = load(
        ["--recipe", "quickstart", "--no_use_flash_attention", "--lr", "3e-05", "--max_hours", "2"]
    )
    config.evaluation.sample_prompt = 'say "é\\\n\t\x07\x7f 😀" # not a comment'
    text = to_toml(config, set_by | {"lr": "flag\nlr = 1"})
    again, who = load(["--recipe", path := recipe(text)])
    assert dataclasses.replace(again, recipe=config.recipe) == config
    assert set(who.values()) - {"flag"} == {f"recipe {path}"}
    assert f"max_steps = {config.schedule.max_steps}  # recipe quickstart" in text
    assert "lr = 3e-05  # flag" in text
    assert "beta1 = 0.9  # default" in text


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(blacklist_categories=("Cs",))))
def test_any_text_survives_the_config_file(text):
    import tomllib

    config = RunConfig()
    config.evaluation.sample_prompt = config.recipe = text
    read = tomllib.loads(to_toml(config, {"seed": f"recipe {text}"}))
    assert read["evaluation"]["sample_prompt"] == read["recipe"] == text
    assert read["run"]["seed"] == 1337


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[schedule]\nmax_stps = 3", "no setting 'max_stps' in [schedule] (did you mean max_st"),
        ("[model]\nmax_steps = 3", "no setting 'max_steps' in [model]; it belongs in [schedule]"),
        ("[shedule]\nmax_steps = 3", "no section [shedule] (did you mean schedule?)"),
        ("max_steps = 3", "'max_steps' is in no section; it belongs in [schedule]"),
        ("model = 3", "'model' is in no section"),
        ("[schedule]\nmax_steps = 3.5", "max_steps = 3.5 must be a whole number or 'auto'"),
        ('[schedule]\nmax_steps = "3"', "max_steps = '3' must be a whole number or 'auto'"),
        ("[schedule]\nmax_steps = true", "max_steps = True must be a whole number or 'auto'"),
        ("[schedule]\nlr = [1e-3]", "lr = [0.001] must be a number or 'auto'"),
        ('[schedule]\nschedule = "cos"', "schedule = 'cos' must be 'cosine' or 'wsd' or"),
        ("[compute]\nuse_flash_attention = 1", "use_flash_attention = 1 must be true or false"),
        ("[data]\ndataset = 3", "dataset = 3 must be text"),
        ("[schedule\n", "it is not TOML"),
        ("[schedule]\nmax_steps = 3\nmax_steps = 4", "it is not TOML"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_refused_with_the_place(recipe, text, complaint):
    with pytest.raises(UsageError) as error:
        load(["--recipe", recipe(text)])
    assert error.value.name == "RECIPE"
    assert complaint in error.value.what
    assert "a recipe.toml" in error.value.what


def test_a_recipe_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not TOML"):
        load(["--recipe", str(tmp_path / "x.toml")])


def test_an_unknown_recipe_names_the_nearest_and_all():
    with pytest.raises(UsageError) as error:
        load(["--recipe", "quikstart"])
    assert "did you mean quickstart?" in error.value.what
    assert all(name in error.value.do for name in shipped_recipes())


def test_a_value_of_a_recipe_out_of_its_range_is_refused(recipe):
    with pytest.raises(UsageError, match="--max_steps 0 is not from 1 to 1,000,000,000"):
        load(["--recipe", recipe("[schedule]\nmax_steps = 0")])


def test_all_faults_are_named_at_once():
    with pytest.raises(UsageError) as error:
        load(["--lr", "nan", "--beta1", "1", "--max_steps", "0", "--run_dir", ""])
    assert all(f"--{name} " in error.value.what for name in ("lr", "beta1", "max_steps", "run_dir"))


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(UsageError, match="--n_head 5 does not divide --n_embd 768"):
        load(["--n_head", "5"])


def test_text_that_is_not_utf8_is_refused():
    with pytest.raises(UsageError, match="--sample_prompt is not UTF-8"):
        load(["--sample_prompt", b"\xff".decode("utf-8", "surrogateescape")])


@pytest.mark.parametrize("name", RANGES)
def test_both_ends_of_every_range_are_allowed_and_nothing_beyond(name):
    allowed = RANGES[name]
    assert allowed.holds(allowed.most)
    assert not allowed.holds(allowed.most * 1.001 + 1)
    assert allowed.holds(allowed.least) is not allowed.above
    assert not allowed.holds(allowed.least - 1)
    assert not any(allowed.holds(float(x)) for x in ("nan", "inf", "-inf"))


def test_a_range_reads_as_a_sentence():
    assert str(Range(1, 1_000_000)) == "from 1 to 1,000,000"
    assert str(Range(0, 100, above=True)) == "above 0 to 100"
    assert str(Range(0, 2**63 - 1)) == "from 0 to 9,223,372,036,854,775,807"


def test_check_names_no_fault_in_a_good_config():
    check(load(["--model_size", "355M", "--n_head", "8"])[0])


@pytest.mark.parametrize(("wrong", "nearest"), [("125M", "124M"), ("1.5B", None), ("774", "774M")])
def test_an_unknown_model_size_names_the_nearest_and_all(wrong, nearest):
    with pytest.raises(UsageError) as error:
        load(["--model_size", wrong])
    assert nearest is None or f"did you mean {nearest}?" in error.value.what
    assert all(name in error.value.do for name in SIZES)


def test_350m_is_another_name_of_355m():
    assert ALIASES == {"350M": "355M"}
    assert size("350M") is size("355M")


def test_the_vocabulary_is_padded_to_a_multiple_of_128():
    padded = [GPT2Shape(1, 1, 1, 1, v).padded_vocab_size for v in (1, 128, 129, 257, 50257)]
    assert padded == [128, 128, 256, 384, 50304]


def test_a_help_page_is_laid_out_in_the_narrowest_terminal(monkeypatch, capsys):
    """tyro takes for ever in five columns."""
    monkeypatch.setenv("COLUMNS", "5")
    with pytest.raises(SystemExit):
        load(["--help"])
    assert "--max_steps" in capsys.readouterr().out
