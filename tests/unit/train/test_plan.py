"""The plan is pure: any machine, any number of processes, on a laptop. What was asked is obeyed or
refused, never changed; the tokens of a step are the product of its parts; memory is enough."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outpace.config.load import load
from outpace.core.errors import OutOfMemory, UsageError
from outpace.core.units import GIB
from outpace.runtime.hardware import Machine
from outpace.train.plan import Capabilities, DatasetFacts, Plan, identity, run_name
from outpace.train.planner import make_plan

H100 = Machine("cuda", "NVIDIA H100 80GB HBM3", 16, 80 * GIB, 79 * GIB, True, 989.4e12, "sheet")
SMALL_GPU = Machine("cuda", "RTX 2070", 8, 8 * GIB, 7 * GIB, False)
CPU = Machine("cpu", "a CPU", 8, 24 * GIB, 20 * GIB, False)
BF16_CPU = Machine("cpu", "a CPU with AMX", 8, 24 * GIB, 20 * GIB, True)
OPENWEBTEXT = DatasetFacts("openwebtext", 50257, 9_000_000_000, 4_400_000)
TINY = DatasetFacts("tiny", 257, 50_000, 5_000)
MISSION = [
    "--model_size", "124M", "--mixed_precision", "bf16", "--use_flash_attention",
    "--gradient_accumulation_steps", "8",
]  # fmt: skip


def never(*_: object) -> str | None:
    raise AssertionError("asked though it does not matter")


def able(
    why_not: str | None = None,
    kernel: str = "FLASH_ATTENTION",
    compile_=lambda: None,
    cross_entropy: str | None = None,
    fp8: str | None = None,
):
    def attention(backend: str, *_: object) -> tuple[str | None, str]:
        return (None, "materialised") if backend == "reference" else (why_not, kernel)

    return Capabilities(
        attention=attention,
        compile_why_not=compile_,
        fastest_attention=lambda precision, shape: ("sdpa", "made up"),
        fastest_cross_entropy=lambda precision, shape, compiled, fp8: ("eager", "made up"),
        cross_entropy_why_not=lambda row, precision, compiled, fp8: cross_entropy,
        fp8_why_not=lambda precision, shape: fp8,
    )


def plan(argv, machine=H100, world=1, data=OPENWEBTEXT, can=None) -> Plan:
    config, set_by = load(list(map(str, argv)))
    return make_plan(config, set_by, machine, data, world, can or able())


def refusal(argv, **options) -> str:
    with pytest.raises(UsageError) as error:
        plan(argv, **options)
    return str(error.value)


def chosen(p: Plan) -> dict[str, str]:
    return {c.setting: c.reason for c in p.choices}


# The mission.


@pytest.mark.parametrize(("world", "micro"), [(1, 64), (2, 32), (4, 16), (8, 8)])
def test_the_mission_command_takes_the_reference_batch_on_any_number_of_h100s(world, micro):
    p = plan(MISSION, world=world)
    assert (p.micro_batch_size, p.gradient_accumulation_steps) == (micro, 8)
    assert p.tokens_per_step == 524_288
    assert p.parameters == 124_439_808
    assert (p.mixed_precision, p.attention_backend, p.compile) == ("bf16", "sdpa", True)
    assert (p.lr, p.max_steps, p.warmup_steps) == (6e-4, 10_000_000_000 // 524_288, 700)
    assert p.predicted_memory_bytes < 80 * GIB
    assert not p.warnings
    assert f"{world} process" in p.arithmetic()


@pytest.mark.parametrize("recipe", ["gpt2_124M"])
@pytest.mark.parametrize("machine", [H100, SMALL_GPU, CPU])
@pytest.mark.parametrize("world", [1, 2, 8])
def test_the_number_of_processes_and_the_machine_never_change_the_recipe(recipe, machine, world):
    p = plan(["--recipe", recipe], machine, world)
    assert (p.tokens_per_step, p.max_steps, p.lr) == (524_288, 19_073, 6e-4)
    config, _ = load(["--recipe", recipe])
    follow = {"mixed_precision": 0, "bf16_residual": 0}  # the machine's
    expected = identity(config, plan(["--recipe", recipe]), "f")
    assert identity(config, p, "f") | follow == expected | follow


# The order of the data.


def test_documents_apart_take_flex_where_it_runs_and_sdpa_where_it_does_not():
    assert plan(["--document_mask"]).attention_backend == "flex"
    assert plan(["--document_mask", "--dropout", "0.1"]).attention_backend == "sdpa"
    gone = able()

    def no_flex(backend: str, *_: object) -> tuple[str | None, str]:
        return ("no", "") if backend == "flex" else (None, "FLASH_ATTENTION")

    p = plan(["--document_mask"], CPU, can=Capabilities(**vars(gone) | {"attention": no_flex}))
    assert p.attention_backend == "sdpa" and "document mask" in chosen(p)["attention_backend"]
    kept = plan(["--document_mask", "--attention_backend", "sdpa"])
    assert kept.attention_backend == "sdpa"
    told = plan(["--document_mask", "--no_use_flash_attention"])
    assert told.attention_backend == "reference"


def test_a_backend_that_cannot_keep_documents_apart_is_refused_with_the_reason():
    cannot = Capabilities(
        **vars(able()) | {"attention": lambda b, p, shape, masked: (masked and "why", "X")}
    )
    said = refusal(["--document_mask", "--attention_backend", "flash"], can=cannot)
    assert "NO-DOCUMENT-MASK" in said and "flash cannot keep documents apart: why" in said
    flex = ["--document_mask", "--attention_backend", "flex", "--dropout", "0.1"]
    assert "no dropout" in refusal(flex)


def test_the_order_is_in_the_plan_and_makes_another_run():
    seen = []
    for flags in (
        [], ["--order_chunk", "64"], ["--no_phase"], ["--bos_aligned"], ["--document_mask"],
    ):  # fmt: skip
        config, _ = load(flags)
        p = plan(flags)
        seen.append(str(identity(config, p, "f")))
    assert len(set(seen)) == 5
    spec = plan(["--order_chunk", "64", "--no_phase"]).order
    assert (spec.context, spec.chunk, spec.phase, spec.bos_aligned) == (1024, 64, False, False)
    half = DatasetFacts("x", 50257, 530_000_000, 5_000, unread=0.47)
    made = plan(["--bos_aligned"], data=half)
    assert "leaves 47% of the text" in chosen(made)["bos_aligned"]
    assert "4 passes over 530M tokens" in chosen(made)["max_steps"] and 3.9 < made.epochs <= 4


def test_a_small_gpu_takes_a_smaller_micro_batch_and_says_why():
    p = plan(["--model_size", "124M"], SMALL_GPU)
    assert p.tokens_per_step == 524_288
    assert 1 <= p.micro_batch_size < 16
    assert "is what fits" in chosen(p)["micro_batch_size"]
    assert p.mixed_precision == "fp16"
    assert p.predicted_memory_bytes < 8 * GIB


def test_where_a_hard_accumulation_keeps_the_recipes_batch_out_of_reach_a_warning_says_so():
    p = plan([*MISSION, "--mixed_precision", "fp16"], SMALL_GPU)
    assert p.gradient_accumulation_steps == 8
    assert p.tokens_per_step < 524_288
    assert any("524,288" in w and "--gradient_accumulation_steps" in w for w in p.warnings)


def test_a_cpu_takes_no_larger_micro_batch_than_keeps_it_busy():
    p = plan([], CPU)
    assert (p.micro_batch_size, p.gradient_accumulation_steps) == (4, 128)
    assert p.tokens_per_step == 524_288
    assert p.mixed_precision == "no"
    assert plan([], BF16_CPU).mixed_precision == "bf16"


def test_a_model_that_cannot_fit_is_refused_with_what_it_needs():
    with pytest.raises(OutOfMemory) as error:
        plan(["--model_size", "1558M"], SMALL_GPU)
    assert "of 1558M needs about" in error.value.what
    assert "RTX 2070 has 8.00 GiB" in error.value.what
    with pytest.raises(OutOfMemory):
        plan(["--micro_batch_size", "4096"], H100)


def test_memory_that_is_taken_by_others_is_a_warning_and_changes_nothing():
    busy = Machine(**vars(H100) | {"available_bytes": 10 * GIB})
    p = plan(MISSION, busy)
    assert p.micro_batch_size == 64
    assert any("10.00 GiB are free" in w for w in p.warnings)


# Batch arithmetic.


@pytest.mark.parametrize(
    ("argv", "world", "expected"),
    [
        (["--micro_batch_size", 16], 1, (16, 32, 524_288)),
        (["--micro_batch_size", 16], 8, (16, 4, 524_288)),
        (["--micro_batch_size", 16, "--gradient_accumulation_steps", 2], 2, (16, 2, 65_536)),
        (["--tokens_per_step", 131_072, "--micro_batch_size", 8], 4, (8, 4, 131_072)),
        (["--tokens_per_step", 131_072, "--gradient_accumulation_steps", 4], 4, (8, 4, 131_072)),
        (["--context", 256, "--tokens_per_step", 1024], 2, (2, 1, 1024)),
        (["--micro_batch_size", 8, "--gradient_accumulation_steps", 4, "--tokens_per_step",
          131_072], 4, (8, 4, 131_072)),
    ],
)  # fmt: skip
def test_what_is_left_open_is_filled_in(argv, world, expected):
    p = plan(argv, world=world)
    assert (p.micro_batch_size, p.gradient_accumulation_steps, p.tokens_per_step) == expected


def test_what_a_plan_says_of_its_batch_is_what_a_step_has():
    """A micro-batch that does not divide what suits a small text."""
    small = DatasetFacts("small", 50257, 1_000_000, 10_000)
    p = plan(["--micro_batch_size", 3, "--context", 64], data=small)
    assert p.tokens_per_step == 3 * 64 * p.gradient_accumulation_steps != 1 << 17
    [said] = [c.value for c in p.choices if c.setting == "tokens_per_step"]
    assert said == p.tokens_per_step
    assert f"{p.tokens_per_step:,} tokens per step" in chosen(p)["gradient_accumulation_steps"]


def test_three_flags_that_disagree_are_refused_with_the_arithmetic():
    text = refusal(
        ["--recipe", "gpt2_124M", "--micro_batch_size", 8, "--gradient_accumulation_steps", 4],
        world=2,
    )
    assert "micro_batch_size 8 (flag) x context 1024 x gradient_accumulation_steps 4 (flag)" in text
    assert "x 2 processes = 65,536 tokens per step" in text
    assert "tokens_per_step is 524,288 (recipe gpt2_124M)" in text


@pytest.mark.parametrize(
    ("argv", "world", "words"),
    [
        (["--tokens_per_step", 500_000], 1, ["context 1024 = 1,024", "499712 or 500736"]),
        (["--tokens_per_step", 512], 1, ["context 1024 = 1,024", "--tokens_per_step 1024,"]),
        (["--tokens_per_step", 524_288], 3, ["3 processes", "= 3,072", "522240 or 525312"]),
        (["--tokens_per_step", 524_288, "--micro_batch_size", 12], 1,
         ["micro_batch_size 12 (flag)", "= 12,288", "516096 or 528384"]),
        (["--recipe", "gpt2_124M", "--gradient_accumulation_steps", 7], 1,
         ["524,288 (recipe gpt2_124M)", "gradient_accumulation_steps 7 (flag)", "= 7,168"]),
    ],
)  # fmt: skip
def test_tokens_that_do_not_divide_are_refused_with_the_nearest_that_do(argv, world, words):
    text = refusal(argv, world=world)
    assert text.startswith("error[BATCH]: tokens_per_step")
    assert all(w in text for w in words), text


sizes = st.one_of(st.just("auto"), st.integers(1, 96))


@settings(max_examples=300, deadline=None)
@given(
    micro=sizes,
    accumulation=sizes,
    tokens=st.one_of(
        st.just("auto"), st.integers(1, 2_000_000), st.integers(1, 2048).map(lambda n: 1024 * n)
    ),
    context=st.sampled_from([1, 7, 32, 1000, 1024, 2048]),
    world=st.sampled_from([1, 2, 3, 8, 64]),
    memory_gib=st.integers(1, 160),
    device=st.sampled_from(["cpu", "cuda"]),
    size=st.sampled_from(["124M", "355M", "1558M"]),
    max_tokens=st.one_of(st.just("auto"), st.integers(1, 10**11)),
    max_steps=st.one_of(st.just("auto"), st.integers(1, 10**6)),
)
def test_every_plan_is_refused_or_keeps_the_invariant_and_obeys(
    micro, accumulation, tokens, context, world, memory_gib, device, size, max_tokens, max_steps
):
    config, set_by = load(["--model_size", size])
    config.model.context = context
    config.batch.micro_batch_size = micro
    config.batch.gradient_accumulation_steps = accumulation
    config.batch.tokens_per_step = tokens
    config.schedule.max_tokens, config.schedule.max_steps = max_tokens, max_steps
    machine = Machine(device, "x", 8, memory_gib * GIB, memory_gib * GIB, True)
    try:
        p = make_plan(config, set_by, machine, OPENWEBTEXT, world, able())
    except (UsageError, OutOfMemory) as error:
        assert error.do
        return
    product = p.micro_batch_size * p.context * p.gradient_accumulation_steps * p.world_size
    assert product == p.tokens_per_step
    assert min(p.micro_batch_size, p.gradient_accumulation_steps, p.max_steps) >= 1
    assert micro in ("auto", p.micro_batch_size)
    assert accumulation in ("auto", p.gradient_accumulation_steps)
    assert tokens in ("auto", p.tokens_per_step)
    assert p.context == context
    assert p.world_size == world
    assert p.predicted_memory_bytes <= machine.memory_bytes
    assert max_steps == "auto" or p.max_steps <= max_steps
    assert max_tokens == "auto" or p.max_tokens <= max_tokens
    assert max_tokens != "auto" or max_steps in ("auto", p.max_steps)
    if {micro, accumulation, tokens} == {"auto"}:
        assert p.tokens_per_step <= max(524_288, context * world)


# Length and learning rate.


@pytest.mark.parametrize(
    ("argv", "steps"),
    [
        (["--max_steps", 10], 10),
        (["--max_tokens", 5_242_880], 10),
        (["--max_tokens", 5_242_879], 9),
        (["--max_tokens", 5_242_880, "--max_steps", 3], 3),
        (["--max_tokens", 524_288, "--max_steps", 30], 1),
    ],
)
def test_the_length_comes_from_steps_or_tokens_whichever_ends_first(argv, steps):
    assert plan(argv).max_steps == steps


def test_a_length_given_by_a_flag_counts_before_the_recipe_s():
    recipe = ["--recipe", "gpt2_124M"]
    assert plan(recipe).max_steps == 19_073
    assert plan([*recipe, "--max_tokens", 20 * 524_288]).max_steps == 20
    assert plan([*recipe, "--max_tokens", 30_000 * 524_288]).max_steps == 30_000
    assert plan([*recipe, "--max_steps", 30_000]).max_steps == 30_000


def test_fewer_tokens_than_one_step_has_are_refused():
    text = refusal(["--max_tokens", 1000])
    assert "1,000" in text
    assert "524,288" in text


def test_by_default_a_small_dataset_is_read_four_times_and_a_large_one_for_10_billion_tokens():
    small = plan(["--tokens_per_step", 1024], data=TINY)
    assert small.max_steps == 4 * 50_000 // 1024
    assert "4 passes" in chosen(small)["max_steps"]
    assert plan([]).max_tokens == pytest.approx(1e10, rel=1e-3)


def test_a_pass_over_a_small_text_has_four_steps_unless_the_batch_was_asked_for():
    small = plan([], data=TINY)
    assert small.tokens_per_step == 8192 and small.max_steps == 4 * 50_000 // 8192
    assert "4 steps or more" in chosen(small)["tokens_per_step"]
    given = plan(["--gradient_accumulation_steps", 8], data=TINY)
    assert (given.micro_batch_size, given.tokens_per_step) == (1, 8192) and not given.warnings
    assert plan(["--tokens_per_step", 65_536], data=TINY).tokens_per_step == 65_536


@pytest.mark.parametrize(
    ("argv", "lr"),
    [
        ([], 6e-4),
        (["--tokens_per_step", 131_072], 4.2e-4),
        (["--tokens_per_step", 32_768], 3e-4),
        (["--tokens_per_step", 1_048_576], 6e-4),
        (["--model_size", "355M"], 3e-4),
        (["--model_size", "350M"], 3e-4),
        (["--n_embd", 192], 2.4e-3),
        (["--n_embd", 1536], 3e-4),
        (["--n_embd", 192, "--tokens_per_step", 32_768], 1.2e-3),
        (["--tokens_per_step", 131_072, "--lr", 0.01], 0.01),
    ],
)
def test_the_learning_rate_follows_size_and_width_and_the_fourth_root_of_a_smaller_batch(argv, lr):
    assert plan(argv).lr == lr


@pytest.mark.parametrize(("steps", "warmup"), [(3, 0), (100, 4), (19_073, 700)])
def test_warm_up_is_four_percent_but_at_most_700_steps(steps, warmup):
    assert plan(["--max_steps", steps]).warmup_steps == warmup
    asked = plan(["--max_steps", steps, "--warmup_steps", 5])
    assert asked.warmup_steps == 5
    assert any("never reaches --lr" in w for w in asked.warnings) == (steps <= 5)


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (20, 1), (21, 2), (39, 2), (19_073, 954)])
def test_a_run_is_evaluated_twenty_times_at_most(steps, every):
    assert plan(["--max_steps", steps]).eval_every_steps == every


# Precision, attention, compiling.


@pytest.mark.parametrize(
    ("machine", "precision"), [(H100, "bf16"), (SMALL_GPU, "fp16"), (CPU, "no"), (BF16_CPU, "bf16")]
)
def test_precision_follows_the_machine_unless_it_was_asked_for(machine, precision):
    p = plan([], machine)
    assert p.mixed_precision == precision
    assert machine.device_name in chosen(p)["mixed_precision"] or precision != "bf16"
    for asked in ("no", "fp16", "bf16"):
        assert plan(["--mixed_precision", asked], machine).mixed_precision == asked


def test_a_gpu_without_bf16_compiles_none_and_has_no_tf32():
    slow = plan(["--mixed_precision", "bf16"], SMALL_GPU)
    assert not slow.compile and not slow.tf32 and "bf16" in chosen(slow)["compile"]
    fast = plan(["--mixed_precision", "fp16"], SMALL_GPU)
    assert fast.compile and not fast.tf32 and plan([], H100).tf32
    asked = ["--mixed_precision", "bf16", "--compile", "on"]
    assert "error[NO-COMPILE]" in refusal(asked, machine=SMALL_GPU)
    assert "error[NO-TF32]" in refusal(["--tf32", "on"], machine=SMALL_GPU)


def test_slow_bf16_is_obeyed_with_a_warning():
    assert any("no fast bf16" in w for w in plan(["--mixed_precision", "bf16"], CPU).warnings)


@pytest.mark.parametrize("can", [able(why_not="no kernel for fp64"), able(kernel="MATH")])
def test_flash_attention_that_cannot_be_had_is_refused_when_asked_and_else_warned_of(can):
    text = refusal(["--use_flash_attention", "--dropout", "0.1"], can=can)
    assert text.startswith("error[NO-FLASH]")
    assert any("T x T" in w for w in plan(["--dropout", "0.1"], can=can).warnings)


def test_a_backend_that_was_asked_for_and_cannot_run_is_refused():
    can = able(why_not="CUDNN_ATTENTION does not run on cpu")
    assert "error[NO-ATTENTION]" in refusal(["--attention_backend", "cudnn"], can=can)
    # PyTorch's own choice has a last resort, which stores the matrix.
    assert any("T x T" in w for w in plan(["--attention_backend", "sdpa"], can=can).warnings)


def test_without_flash_attention_the_matrix_counts_as_memory():
    flash = plan(["--micro_batch_size", 8])
    stored = plan(["--micro_batch_size", 8, "--no_use_flash_attention"])
    fallen_back = plan(["--micro_batch_size", 8, "--dropout", "0.1"], can=able(kernel="MATH"))
    assert stored.attention_backend == "reference"
    assert stored.predicted_memory_bytes > flash.predicted_memory_bytes + 12 * 8 * 12 * 1024**2 * 4
    assert fallen_back.predicted_memory_bytes > stored.predicted_memory_bytes  # by what it drops


def test_compiling_is_taken_where_a_probe_works():
    assert plan([]).compile
    broken = plan([], can=able(compile_=lambda: "no compiler"))
    assert not broken.compile
    assert any("no compiler" in w for w in broken.warnings)


def test_a_short_run_on_a_cpu_is_not_compiled_and_the_compiler_not_even_asked():
    p = plan(["--n_layer", 1, "--n_embd", 24, "--max_steps", 3], CPU, can=able(compile_=never))
    assert not p.compile
    assert plan(["--max_steps", 1000], CPU).compile
    assert not plan(["--compile", "off"], can=able(compile_=never)).compile
    assert plan(["--n_layer", 1, "--max_steps", 3, "--compile", "on"], CPU).compile


def test_compiling_that_was_asked_for_and_cannot_be_had_is_refused():
    text = refusal(["--compile", "on"], can=able(compile_=lambda: "no C++ compiler"))
    assert "no C++ compiler" in text


# What is said.


def test_a_plan_is_pure():
    assert plan(MISSION, world=8) == plan(MISSION, world=8)


def test_every_choice_has_a_reason_and_flags_are_no_choices():
    p = plan(MISSION)
    assert all(c.reason for c in p.choices)
    assert not {"mixed_precision", "gradient_accumulation_steps"} & chosen(p).keys()
    record = p.record()
    assert record["plan"]["tokens_per_step"] == 524_288
    assert "choices" not in record["plan"]
    assert len(record["choices"]) == len(p.choices)


def test_the_same_settings_find_the_same_run_folder_and_others_another():
    config, _ = load(MISSION)
    p = plan(MISSION)
    name = run_name(p, "openwebtext", identity(config, p, "f"))
    assert name.startswith("124M-openwebtext-")
    eight = plan(MISSION, world=8)
    assert run_name(eight, "openwebtext", identity(config, eight, "f")) == name
    other = plan([*MISSION, "--seed", 1])
    assert run_name(other, "openwebtext", identity(config, other, "f")) != name


def test_validation_tokens_are_bounded_by_the_dataset_and_the_machine():
    assert plan([]).val_tokens == 4_399_999
    assert plan([], data=TINY).val_tokens == 4_999
    assert plan(["--val_tokens", 100]).val_tokens == 100
    on_cpu = plan([], CPU).val_tokens
    assert 4096 <= on_cpu < 50_000
    assert on_cpu % 1024 == 0
    assert math.isfinite(plan([], data=DatasetFacts("x", 257, 50_000, 0)).val_tokens)


# How the arithmetic is done.


@pytest.mark.parametrize(
    ("machine", "argv", "expected"),
    [
        (H100, [], True),
        (H100, ["--mixed_precision", "fp16"], False),
        (H100, ["--bf16_residual", "off"], False),
        (BF16_CPU, [], True),
        (CPU, [], False),
        (CPU, ["--mixed_precision", "bf16"], True),
    ],
)
def test_the_residual_stream_follows_bf16_unless_asked_otherwise(machine, argv, expected):
    assert plan(argv, machine).bf16_residual is expected


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], True),
        (["--mixed_precision", "no"], False),
        (["--tf32", "off"], False),
        (["--mixed_precision", "no", "--tf32", "on"], True),
    ],
)
def test_tf32_comes_with_mixed_precision_unless_asked_otherwise(argv, expected):
    assert plan(argv).tf32 is expected


@pytest.mark.parametrize(
    ("argv", "can", "words"),
    [
        (["--mixed_precision", "fp16", "--bf16_residual", "on"], able(), "BF16-RESIDUAL"),
        (["--cross_entropy", "triton"], able(cross_entropy="no GPU"), "no GPU"),
        (["--fp8_head"], able(fp8="needs compute capability 8.9"), "capability 8.9"),
    ],
)
def test_a_kernel_that_cannot_serve_is_refused_with_its_reason(argv, can, words):
    assert words in refusal(argv, can=can)


def test_what_changes_the_numbers_changes_the_run_and_the_defaults_are_those_of_older_runs():
    def same(*argv: str, machine=BF16_CPU):
        config, set_by = load(list(argv))
        p = make_plan(config, set_by, machine, OPENWEBTEXT, 1, able())
        return identity(config, p, "fingerprint")

    usual = same()
    assert not {"vocab_multiple", "bf16_residual", "fp8_head"} & same(machine=CPU).keys()
    for argv in (["--vocab_multiple", "1"], ["--bf16_residual", "off"], ["--fp8_head"]):
        assert same(*argv) != usual
    assert same("--activation_checkpointing", "block", "--compile_mode", "tuned") == usual


def test_the_vocabulary_is_padded_to_the_multiple_asked_for():
    assert plan([]).padded_vocab_size == 50304
    p = plan(["--vocab_multiple", 1])
    assert p.padded_vocab_size == p.shape.padded_vocab_size == 50257


def test_deterministic_attention_on_a_gpu_is_that_of_flash():
    """Or the memory-efficient one in fp32; that of cuDNN is not known to be."""
    can = replace(able(), fastest_attention=lambda *_: ("cudnn", "made up"))
    assert plan([], can=can).attention_backend == "cudnn"
    assert plan(["--deterministic", "on"], can=can).attention_backend == "flash"

    def no_flash(backend: str, *_: object) -> tuple[str | None, str]:
        return ("no" if backend == "flash" else None), "EFFICIENT_ATTENTION"

    fp32 = replace(can, attention=no_flash)
    assert plan(["--deterministic", "on"], can=fp32).attention_backend == "efficient"
    for backend in ("cudnn", "flash_attn"):
        argv = ["--deterministic", "on", "--attention_backend", backend]
        assert "may differ from run to run" in refusal(argv, can=can)
        assert plan(argv, machine=BF16_CPU).attention_backend == backend


@pytest.mark.parametrize(("steps", "warned"), [(8, False), (12, False), (13, True), (500, True)])
def test_text_that_is_read_too_often_is_warned_of(steps, warned):
    p = plan(["--max_steps", steps, "--tokens_per_step", 65536], data=TINY)
    assert p.epochs == steps * 65536 / 50_000
    times = f"read {p.epochs:,.0f} times"
    assert any(times in w and "--max_steps" in w for w in p.warnings) == warned


def test_tf32_is_refused_on_a_cpu_and_taken_on_a_gpu():
    assert "no TF32 units" in refusal(["--tf32", "on"], machine=CPU)
    assert plan(["--tf32", "on", "--mixed_precision", "no"]).tf32
    assert not plan(["--tf32", "off"], machine=CPU).tf32
