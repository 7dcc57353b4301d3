"""Data, models and run folders that cannot be used: one line, the exit code, nothing changed."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from outpace.cli import evaluate, sample
from outpace.config.flag_errors import ELSEWHERE
from outpace.config.load import _flag_names
from outpace.config.schema import RunConfig

from .helpers import PLAN, TRAIN, flip_bit, tree

# Batch arithmetic, refused by the plan.


@pytest.mark.parametrize("command", [TRAIN, PLAN])
def test_a_batch_that_does_not_divide_shows_the_arithmetic_and_the_nearest_values(
    command, refused, tiny
):
    argv = ["--gradient_accumulation_steps", "auto", "--tokens_per_step", "100"]
    error = refused(2, "BATCH", *command, *argv).error
    assert "tokens_per_step 100 (flag) is not a multiple of" in error
    assert "context 32" in error
    assert "micro_batch_size 2" in error
    assert "= 64" in error
    assert "64 or 128" in error


def test_batch_flags_that_disagree_show_the_arithmetic_and_who_set_them(refused, tiny, folder):
    (folder / "r.toml").write_text("[batch]\ntokens_per_step = 128\n")
    error = refused(2, "BATCH", *TRAIN, "--recipe", "r.toml").error
    assert "micro_batch_size 2 (flag) x context 32 x gradient_accumulation_steps 1 (flag)" in error
    assert "= 64 tokens per step, but tokens_per_step is 128 (recipe r.toml)" in error


# Kernels.


@pytest.mark.parametrize("backend", ["flash_attn", "cudnn", "efficient"])
@pytest.mark.parametrize("command", [TRAIN, PLAN])
def test_attention_that_a_cpu_has_not_is_refused(command, backend, refused, tiny):
    assert backend in refused(2, "NO-ATTENTION", *command, "--attention_backend", backend).error


# Datasets.


def test_a_mistyped_dataset_names_the_nearest(refused, tiny):
    assert "did you mean tiny?" in refused(3, "NO-DATASET", *TRAIN, "--dataset", "tinny").error


@pytest.mark.parametrize("named", ["tiny,tiny", "tiny:0.7,data/tiny:0.3"])
@pytest.mark.parametrize("command", [TRAIN, PLAN])
def test_a_dataset_that_is_named_twice_is_refused(command, named, refused, tiny):
    assert "tiny is named twice" in refused(2, "DATASETS", *command, "--dataset", named).error


def test_a_dataset_is_no_place_for_a_run(refused, tiny):
    assert "holds a dataset" in refused(2, "RUN-DIR-USED", *TRAIN, "--run_dir", tiny).error


@pytest.mark.parametrize("name", ["openwebtext", "fineweb-edu", "pydocs"])
def test_a_well_known_dataset_that_is_not_prepared_names_its_own_command(name, refused, tiny):
    error = refused(3, "NO-DATASET", *TRAIN, "--dataset", name).error
    assert error.endswith(f"do: outpace prepare {name}")


@pytest.mark.parametrize("command", [TRAIN, PLAN])
def test_a_dataset_smaller_than_a_batch_is_refused(command, refused, tiny):
    argv = ["--micro_batch_size", "512", "--gradient_accumulation_steps", "8"]
    error = refused(3, "TOO-LITTLE-DATA", *command, *argv).error
    assert "4096 sequences of 32 tokens" in error


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def _bad_magic(path: Path) -> None:
    path.write_bytes(b"\0" * 4 + path.read_bytes()[4:])


@pytest.mark.parametrize("damage", [_cut, _bad_magic, Path.unlink])
@pytest.mark.parametrize("command", [TRAIN, PLAN])
def test_a_damaged_shard_is_refused(damage, command, refused, tiny):
    damage(next(tiny.glob("train_*.bin")))
    assert "train_000000.bin" in refused(3, "DATA-DAMAGED", *command).error


@pytest.mark.parametrize("damage", [_cut, Path.unlink])
def test_damaged_document_lengths_are_refused(damage, refused, tiny):
    damage(next(tiny.glob("train_*.len")))
    assert "train_000000.len" in refused(3, "DATA-DAMAGED", "data", "info", "data/tiny").error


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}', '{"shards": 3}'])
def test_a_damaged_manifest_is_refused(text, refused, tiny):
    (tiny / "manifest.json").write_text(text)
    refused(3, "DATA-DAMAGED", *PLAN)


def test_a_manifest_that_is_not_text_is_refused(refused, tiny):
    (tiny / "manifest.json").write_bytes(b"\xff\xfe\x00")
    refused(3, "DATA-DAMAGED", *PLAN)


# Preparing.


@pytest.mark.parametrize(
    ("name", "content", "argv", "error", "words"),
    [
        ("a.txt", b"good\xff\n", [], "BAD-INPUT", "byte 4 is not UTF-8"),
        ("a.jsonl", b'{"body": "x"}\n', [], "BAD-INPUT", "'text'"),
        ("a.jsonl", b'{"text": 3}\n', [], "BAD-INPUT", "line 1"),
        ("a.jsonl", b'{"text": "x"}\n{"te', [], "BAD-INPUT", "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n', ["--text_field", "txt"], "BAD-INPUT", "mean text?"),
        ("a.txt.gz", b"not gzip", [], "BAD-INPUT", "a.txt.gz"),
        ("a.txt.zst", b"not zstd", [], "BAD-INPUT", "a.txt.zst"),
        ("a.parquet", b"PAR1", [], "BAD-INPUT", "not a whole parquet file"),
        ("a.txt", b" \n", [], "EMPTY", "none with text"),
        ("a.docx", b"x", [], "FILE-TYPE", "a.docx is not one of"),
    ],
)
def test_a_bad_input_file_is_refused(name, content, argv, error, words, refused, folder):
    (folder / name).write_bytes(content)
    line = refused(
        3, error, "prepare", "files", "--input", name, "--tokenizer", "bytes", *argv
    ).error
    assert words in line


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("q.txt", b"caf\xe9\n", "is not UTF-8 text"), ("q.jsonl", b'{"x": 1}\n', "line 1")],
)
def test_questions_that_cannot_be_read_are_refused(name, content, words, refused, folder):
    (folder / "a.txt").write_text("some text")
    (folder / name).write_bytes(content)
    argv = ["--input", "a.txt", "--tokenizer", "bytes", "--decontaminate", f"mine={name}"]
    assert words in refused(3, "BAD-INPUT", "prepare", "files", *argv).error


def test_an_input_that_matches_nothing_is_refused(refused, folder):
    (folder / "empty").mkdir()
    for pattern in ("*.txt", "no/such.txt", "empty"):
        refused(3, "NO-INPUT", "prepare", "files", "--input", pattern)


def test_an_unknown_tokenizer_names_the_nearest(refused, folder):
    (folder / "a.txt").write_text("x")
    argv = ["prepare", "files", "--input", "a.txt", "--tokenizer", "byte"]
    assert "did you mean bytes?" in refused(2, "UNKNOWN-TOKENIZER", *argv).error


def test_a_condition_that_cannot_be_met_names_the_flag_and_what_it_left_out(refused, folder):
    (folder / "a.txt").write_text("x" * 1000)
    argv = ["prepare", "files", "--input", "a.txt", "--tokenizer", "bytes", "--filter"]
    assert "is not a condition" in refused(2, "BAD-VALUE", *argv, "words>=").error
    assert "do: name another column in --filter" in refused(3, "BAD-INPUT", *argv, "stars>3").error
    assert "none is left: 1 filtered" in refused(3, "EMPTY", *argv, "words>=99").error


def test_a_folder_with_another_dataset_is_not_overwritten(refused, tiny, folder):
    (folder / "a.txt").write_text("x" * 1000)
    (tiny / ".lock").touch()
    argv = ["--input", "a.txt", "--output", tiny, "--tokenizer", "bytes"]
    refused(3, "OTHER-DATASET", "prepare", "files", *argv)


def test_an_output_below_a_file_is_a_storage_error(refused, folder):
    (folder / "a.txt").write_text("x" * 1000)
    argv = ["--input", "a.txt", "--output", "a.txt/data", "--tokenizer", "bytes"]
    refused(5, "OUTPUT", "prepare", "files", *argv)


# Choices that only the machine or the tables can judge.


@pytest.mark.parametrize(
    ("argv", "name", "words"),
    [
        (["--optimizer", "adanw"], "UNKNOWN-OPTIMIZER", "did you mean adamw?"),
        (["--attention_backend", "sdpaa"], "UNKNOWN-ATTENTION-BACKEND", "did you mean sdpa?"),
        (["--use_flash_attention", "--dropout", "0.1"], "NO-FLASH", "dropout 0.1"),
        (["--init_from", "no/model"], "NO-MODEL", "no/model"),
    ],
)  # fmt: skip
def test_what_training_cannot_do_is_refused_before_anything_is_written(
    argv, name, words, refused, tiny
):
    assert words in refused(2, name, *TRAIN, *argv).error


def test_by_default_dropout_only_warns_that_flash_attention_is_not_to_be_had(run, tiny):
    result = run(*PLAN, "--dropout", "0.1")
    assert result.code == 0
    assert "warning: attention will store the T x T matrix" in result.err


def test_a_gpu_that_is_not_there_is_refused(refused, tiny):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    refused(2, "NO-GPU", *TRAIN, "--device", "cuda")
    refused(2, "NO-GPU", "sample", "tiny", "--device", "cuda")


def test_a_model_beyond_this_machines_memory_is_refused(refused, tiny):
    error = refused(7, "MEMORY", *TRAIN, "--n_embd", "100000", "--n_layer", "1000").error
    assert "needs about" in error
    assert "do: " in error


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A Hugging Face folder of a tiny GPT-2 with 64 positions and the vocabulary of bytes."""
    import torch

    from outpace.config.presets import GPT2Shape
    from outpace.interop.huggingface import transformers_model
    from outpace.model.gpt2 import GPT2

    shape = GPT2Shape(1, 2, 32, 64, 257)
    model = GPT2(shape)
    model.init_weights(torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("pretrained")
    weights = {k: v.detach() for k, v in model.state_dict().items()}
    transformers_model(weights, shape).save_pretrained(folder)
    return folder


def test_a_context_beyond_a_pretrained_models_positions_is_refused(refused, tiny, pretrained):
    error = refused(2, "CONTEXT", *TRAIN, "--init_from", pretrained, "--context", "65").error
    assert "--context 65 is beyond the 64 positions" in error
    assert "--context 64 or less" in error


def test_a_plan_gives_its_choices_as_the_flags_take_them(run, tiny):
    planned = run(*PLAN).out
    assert "  deterministic = on: " in planned
    flags = re.findall(r"^  (\w+) = (\S+?)(?: \(\w+\))?: ", planned, re.MULTILINE)
    again = run(*PLAN, *(word for setting, value in flags for word in (f"--{setting}", value)))
    assert again.code == 0, again.err


def test_a_pretrained_model_of_another_shape_is_refused(refused, tiny, pretrained):
    refused(2, "INIT-FROM", *TRAIN, "--init_from", pretrained, "--n_embd", "64")
    error = refused(2, "INIT-FROM", *TRAIN, "--init_from", pretrained, "--n_head", "4").error
    assert "2 heads" in error, "whose weights have the same shapes"


def test_a_pretrained_model_gives_the_shape_and_a_smaller_rate(run, tiny, pretrained, folder):
    """And its loss before the first step is measured."""
    shape = {"--n_layer", "--n_head", "--n_embd", "--context"}
    pairs = zip(TRAIN[1::2], TRAIN[2::2], strict=True)
    flags = [word for pair in pairs if pair[0] not in shape for word in pair]
    planned = run("plan", *flags, "--init_from", pretrained)
    assert planned.code == 0 and "1 layers, 2 heads, 32 channels, context 64" in planned.out
    assert f"weights from {pretrained}" in planned.out
    assert "x 0.1, for weights that are trained already" in planned.out
    assert run("train", *flags, "--init_from", pretrained, "--run_dir", "tuned").code == 0
    evals = [json.loads(line) for line in (folder / "tuned" / "evals.jsonl").open()]
    assert next(e["step"] for e in evals if e["task"] == "validation") == 0
    assert run("train", *flags, "--init_from", pretrained, "--run_dir", "tuned").code == 0
    assert run("plan", *flags, "--init_from", "no/model").error.startswith("error[NO-MODEL]")


def test_training_goes_on_from_a_pretrained_model_with_a_shorter_context(run, tiny, pretrained):
    assert run(*TRAIN, "--init_from", pretrained, "--max_steps", "1").code == 0


def test_a_pretrained_model_with_another_padding_of_the_vocabulary_is_the_same(
    run, tiny, pretrained, folder
):
    losses = set()
    for multiple in ("1", "128", "256"):
        argv = ["--init_from", pretrained, "--max_steps", "1", "--vocab_multiple", multiple]
        assert run(*TRAIN, *argv, "--run_dir", multiple).code == 0
        evals = [json.loads(line) for line in (folder / multiple / "evals.jsonl").open()]
        losses.add(next(e["loss"] for e in evals if e["step"] == 0))
    assert len(losses) == 1


# Run folders.


@pytest.fixture
def holder(done):
    """Another process that holds the lock of the run."""
    code = (
        "import sys; from pathlib import Path; from outpace.core.runfolder import RunFolder\n"
        "folder = RunFolder(Path(sys.argv[1])); lock = folder.lock()\n"
        "folder.write_status('running', last_step=3); print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{code}", str(done)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


def test_a_run_folder_in_use_is_refused_and_the_holder_named(refused, done, holder):
    error = refused(8, "RUN-IN-USE", *TRAIN, "--run_dir", "run", "--max_steps", "9").error
    assert f"pid {holder.pid}" in error


def test_a_run_in_use_is_running_and_a_run_whose_process_died_is_interrupted(run, done, holder):
    assert run("status", "run").out.startswith("run: running, step 3 of 3\n")
    holder.kill()
    holder.wait()
    result = run("status", "run", "--json")
    assert json.loads(result.out)["state"] == "interrupted"
    assert result.code == 0


def test_a_resume_with_another_model_is_refused_with_the_difference(refused, done):
    error = refused(4, "CONFIG-CHANGED", *TRAIN, "--run_dir", "run", "--n_embd", "64").error
    assert "n_embd: 32 -> 64" in error
    assert "kept: the run, at step 3" in error


def test_a_resume_with_another_dataset_is_refused(refused, run, done, folder):
    (folder / "a.txt").write_text("another text " * 1000)
    run("prepare", "files", "--input", "a.txt", "--output", "data/b", "--tokenizer", "bytes")
    refused(3, "DATA-CHANGED", *TRAIN, "--run_dir", "run", "--dataset", "b")


def test_resume_never_refuses_a_used_folder(refused, done):
    refused(2, "RUN-DIR-USED", *TRAIN, "--run_dir", "run", "--resume", "never")


def test_a_missing_checkpoint_to_resume_from_is_refused(refused, done):
    refused(4, "NO-CKPT", *TRAIN, "--run_dir", "run", "--resume", "run/checkpoints/step-7")
    refused(4, "NO-CKPT", *TRAIN, "--run_dir", "run", "--resume", "run/config.toml")


def test_a_foreign_folder_to_resume_from_is_refused(refused, done):
    refused(4, "CKPT-BAD", *TRAIN, "--run_dir", "run", "--resume", "data")


def test_when_every_checkpoint_is_damaged_nothing_is_deleted(refused, done):
    for path in done.glob("checkpoints/step-*/model.safetensors"):
        flip_bit(path)
    error = refused(4, "NO-GOOD-CKPT", *TRAIN, "--run_dir", "run", "--max_steps", "9").error
    assert "kept: all of them, untouched" in error


def test_a_refused_resume_does_not_even_set_a_damaged_checkpoint_aside(refused, done):
    flip_bit(done / "checkpoints" / "step-00000003" / "model.safetensors")
    refused(4, "CONFIG-CHANGED", *TRAIN, "--run_dir", "run", "--n_embd", "64")


def test_using_a_model_beside_a_damaged_checkpoint_warns_and_changes_nothing(run, done, folder):
    flip_bit(done / "checkpoints" / "step-00000003" / "model.safetensors")
    before = tree(folder)
    result = run("sample", "run", "--max_new_tokens", "2")
    assert result.code == 0
    assert "[CKPT-BAD] step-00000003" in result.err
    assert tree(folder) == before


def test_a_report_that_cannot_be_written_does_not_fail_a_finished_run(run, tiny, folder):
    (folder / "r" / "report.html").mkdir(parents=True)
    result = run(*TRAIN, "--run_dir", "r")
    assert result.code == 0
    assert "warning: no report was written: error[STORAGE]" in result.err


# Models and folders given to the other commands.

PLACES = ["nothing", "empty", "file.txt", "foreign", "foreign/checkpoints"]


@pytest.fixture
def places(folder):
    """Every kind of place that is no run, model or dataset."""
    (folder / "empty").mkdir()
    (folder / "file.txt").write_text("x")
    (folder / "foreign" / "checkpoints").mkdir(parents=True)
    (folder / "foreign" / "config.json").write_text('{"model_type": "llama"}')
    (folder / "foreign" / "notes.md").write_text("x")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "argv",
    [
        ["evaluate", "PLACE", "--tasks", "loss"], ["sample", "PLACE"], ["convert", "PLACE", "out"],
        ["report", "PLACE"], ["status", "PLACE"], ["verify", "PLACE"],
    ],
    ids=lambda a: a[0],
)  # fmt: skip
def test_a_place_that_holds_no_run_is_refused(argv, place, run, refused, places):
    result = run(*[place if a == "PLACE" else a for a in argv])
    assert result.code in (2, 4), result.err
    assert result.error.startswith("error[N")
    assert place in result.error
    name = result.error[6 : result.error.index("]")]
    refused(result.code, name, *[place if a == "PLACE" else a for a in argv])


def test_a_folder_that_looks_like_a_model_but_is_another_kind_is_refused(refused, places, folder):
    shutil.copy(folder / "file.txt", folder / "foreign" / "model.safetensors")
    assert "config.json" in refused(4, "HF-FOLDER", "sample", "foreign").error


def test_a_broken_weights_file_is_refused(refused, folder, pretrained):
    shutil.copytree(pretrained, folder / "hf")
    (folder / "hf" / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    refused(4, "HF-FOLDER", "sample", "hf")


def test_a_conversion_never_overwrites(refused, done, folder):
    (folder / "out").mkdir()
    refused(2, "EXISTS", "convert", "run", "out", "--to", "outpace")
    refused(2, "TOKENIZER", "convert", "run", "other", "--to", "huggingface")
    refused(2, "NAME", "convert", "not-there", "other", "--to", "gguf")  # before the model is read
    refused(2, "DTYPE", "convert", "not-there", "other.gguf", "--dtype", "bfloat16")


def test_hellaswag_is_refused_for_a_model_with_another_tokenizer(refused, done, folder):
    argv = ["evaluate", "run", "--tasks", "hellaswag", "--hellaswag_path", "x.jsonl"]
    assert "x.jsonl" in refused(3, "HELLASWAG", *argv).error


# The environment, and where results go.


TWO = {"WORLD_SIZE": "2", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    "environment",
    [TWO, {**TWO, "MASTER_ADDR": "localhost"},
     {**TWO, "MASTER_ADDR": "localhost", "MASTER_PORT": "abc"}],
    ids=str,
)  # fmt: skip
def test_a_place_to_meet_is_needed_to_train_and_not_to_plan(environment, run, tiny, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    assert run(*PLAN).code == 0
    argv = [*TRAIN, "--gradient_accumulation_steps", "1", "--run_dir", "r"]
    done = run(*argv)
    assert done.code == 2 and "error[RANKS]: " in done.error, done.err


@pytest.mark.parametrize(
    "environment",
    [{}, {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "x"}, {**TWO, "WORLD_SIZE": "0"}],
    ids=str,
)
def test_a_rank_without_the_rest_of_torchrun_is_refused(environment, refused, tiny, monkeypatch):
    for name, value in {"RANK": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    assert "torchrun" in refused(2, "RANKS", *PLAN).error


@pytest.mark.parametrize("number", ["", "0", "2"])
def test_a_launcher_need_not_say_how_many_processes_a_host_has(number, run, tiny, monkeypatch):
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": number,
             "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}  # fmt: skip
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    assert run(*PLAN).code == 0


@pytest.mark.parametrize(
    "flags",
    [["bogus"], ["--sample", "100BT"], ["--val_fraction", "0.5"], ["--input", "a", "b"],
     ["--near_duplicates"], ["--workers", "2"]],
    ids=lambda flags: flags[0],
)  # fmt: skip
def test_what_the_questions_do_not_know_is_refused(flags, refused, folder):
    refused(2, "BAD-VALUE", "prepare", "hellaswag", *flags)


@pytest.mark.parametrize(
    "flags", [["--text", "x.txt"], ["--subset", "wikihow"], ["--limit", "5"]], ids=lambda f: f[0]
)
def test_a_flag_of_a_task_that_is_not_asked_is_refused(flags, refused, done, folder):
    (folder / "x.txt").write_text("some text")
    refused(2, "BAD-VALUE", "evaluate", "run", "--tasks", "loss", *flags)


@pytest.mark.parametrize(
    "flags", [["--dataset", "tiny"], ["--val_tokens", "5"]], ids=lambda f: f[0]
)
def test_a_flag_of_the_loss_that_is_not_asked_is_refused(flags, refused, done, folder):
    (folder / "x.txt").write_text("some text")
    argv = ["evaluate", "run", "--tasks", "text", "--text", "x.txt", *flags]
    refused(2, "BAD-VALUE", *argv)


def test_results_do_not_overwrite_the_details(refused, done, folder):
    refused(2, "BAD-VALUE", "evaluate", "run", "--output", "o.json", "--details", "o.json")


def test_a_record_of_a_task_that_is_not_asked_is_refused(refused, done, folder):
    record = {"format": 1, "task": "piqa", "dataset": "d", "fingerprint": "f", "contaminated": {}}
    (folder / "c.json").write_text(json.dumps(record))
    argv = ["evaluate", "run", "--tasks", "loss", "--contamination", "c.json"]
    assert "add piqa to --tasks" in refused(2, "CONTAMINATION", *argv).error


def test_a_model_of_bytes_is_scored_without_the_questions_of_gpt2(
    run, refused, done, shared, folder
):
    questions = ["--hellaswag_path", shared / "hellaswag" / "hellaswag_val.jsonl"]
    found = run("evaluate", "run", "--dataset", "tiny", *questions)
    assert found.code == 0 and "validation loss" in found.out, found.err
    assert "no HellaSwag: its questions need gpt2, the model reads bytes" in found.err
    told = refused(2, "TOKENIZER", "evaluate", "run", "--tasks", "hellaswag", *questions)
    assert "--tasks loss" in told.error


@pytest.mark.parametrize("place", ["missing.txt", "."])
def test_a_text_that_cannot_be_read_is_a_data_error(place, refused, done):
    refused(3, "TEXT", "evaluate", "run", "--text", place)


def test_questions_that_are_not_there_are_told_as_such(refused, run, done, folder):
    error = refused(2, "BAD-VALUE", "evaluate", "run", "--limit", "5").error
    assert "outpace prepare hellaswag" in error
    (folder / "x.txt").write_text("some text")
    assert "no HellaSwag: there is no" in run("evaluate", "run", "--text", "x.txt").err


def test_a_text_is_scored_when_it_is_named(run, done, folder):
    (folder / "x.txt").write_text("some text, and more of it")
    found = run("evaluate", "run", "--text", "x.txt", "--dataset", "tiny")
    assert found.code == 0 and "x.txt" in found.out, found.err


def test_a_prompt_that_is_not_utf8_is_refused_wherever_it_comes_from(refused, done, folder):
    (folder / "p.txt").write_bytes(b"\xff")
    for flags in (["--prompt", "\udcff"], ["--prompt_file", "p.txt"]):
        refused(3, "PROMPT", "sample", "run", *flags)


def test_a_conversion_keeps_documents_apart(run, tiny, folder):
    assert run(*TRAIN, "--document_mask", "--run_dir", "run").code == 0
    assert run("convert", "run", "out", "--to", "outpace").code == 0
    losses = []
    for model in ("run", "out"):
        told = run("evaluate", model, "--dataset", "tiny", "--tasks", "loss", "--json").out
        losses.append(json.loads(told)["results"][0]["loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("command", ["evaluate", "verdict"])
def test_a_result_that_could_not_be_written_is_refused_before_the_work(command, refused, folder):
    (folder / "taken").mkdir()
    line = refused(5, "STORAGE", command, "no-such-model", "--output", "taken").error
    assert "cannot write taken" in line


@pytest.mark.parametrize("machine", [[], ["--machine", "h100"]])
def test_a_plan_refuses_a_name_in_no_table_as_training_would(machine, refused, tiny):
    argv = ["plan", *machine, "--dataset", "tiny", "--context", "32"]
    assert (
        "did you mean adamw?" in refused(2, "UNKNOWN-OPTIMIZER", *argv, "--optimizer", "adam").error
    )
    named = [*argv, "--attention_backend", "flsh"]
    assert "did you mean flash?" in refused(2, "UNKNOWN-ATTENTION-BACKEND", *named).error


def test_a_folder_that_is_no_run_kept_no_batch_because_it_is_no_run(refused, folder):
    refused(2, "NOT-A-RUN", "replay", "none")
    refused(2, "NOT-A-RUN", "prove-resume", "none")


def test_a_device_that_is_none_is_refused(refused, folder):
    refused(2, "FLAGS", "bench", "memory", "--device", "tpu")


def test_a_model_that_is_not_there_is_refused_before_anything_is_made(refused, folder):
    error = refused(2, "NO-MODEL", "train", "--init_from", "gpt2").error
    assert "name hf:gpt2, or a run" in error


def test_a_run_is_no_checkpoint_to_resume(refused, done):
    error = refused(2, "NOT-A-CHECKPOINT", *TRAIN, "--run_dir", "other", "--resume", "run").error
    assert "--run_dir run" in error


def test_a_text_is_no_dataset_and_the_remedy_prepares_it(refused, folder):
    (folder / "one.txt").write_text("one")
    error = refused(3, "NO-DATASET", "train", "--dataset", "one.txt").error
    assert "outpace prepare files --input one.txt --output data/NAME" in error


@pytest.mark.parametrize("name", ["theirs", "theirs/train.bin", "theirs/*.bin"])
def test_tokens_are_no_dataset_and_the_remedy_prepares_them(name, refused, run, folder):
    """The remedy named `prepare files`, which found no text there and said to check the path."""
    (folder / "theirs").mkdir()
    for split, tokens in (("train", 5000), ("val", 500)):
        np.arange(tokens, dtype="<u2").tofile(folder / "theirs" / f"{split}.bin")
    error = refused(3, "NO-DATASET", "train", "--dataset", name).error
    assert f"outpace prepare pretokenized --input '{name}' --output data/NAME" in error
    code = "NO-INPUT" if name == "theirs" else "FILE-TYPE"
    error = refused(3, code, "prepare", "files", "--input", name, "--output", "d").error
    assert "prepare pretokenized" in error
    done = run("prepare", "pretokenized", "--input", "theirs", "--output", "d", "--json")
    assert done.code == 0 and set(json.loads(done.out)["tokens"]) == {"train", "val"}


@pytest.mark.parametrize("name", ["scratch", "resume"])
def test_what_nanogpt_calls_no_model_is_left_out_here(name, refused, folder):
    assert "leave --init_from out" in refused(2, "NO-MODEL", "train", "--init_from", name).error


def test_every_flag_of_another_program_is_called_something_that_there_is():
    ours = _flag_names(RunConfig) | _flag_names(sample.Options) | _flag_names(evaluate.Options)
    names = [n.split(" ")[0] for value in ELSEWHERE.values() for n in value.split("/")]
    assert not set(names) - ours


def test_a_separator_is_written_as_people_write_it(run, folder):
    (folder / "x.txt").write_text("one\n\ntwo\n\nthree\n\nfour")
    argv = ["prepare", "files", "--input", "x.txt", "--output", "d", "--separator", "\\n\\n"]
    done = run(*argv, "--tokenizer", "bytes", "--val_fraction", "0.5", "--json")
    assert done.code == 0 and json.loads(done.out)["documents"]["source"] == 4


@pytest.mark.parametrize(
    ("argv", "what", "do"),
    [
        (["train", "--max_stps", "5"], "Unrecognized options: --max_stps", "mean --max_steps?"),
        (["train", "--learning_rate", "1"], "--learning_rate", "mean --lr?"),
        (["evaluate", "r", "--hellaswag_limit", "3"], "--hellaswag_limit", "mean --limit?"),
        (["train", "--bf16"], "--bf16", "mean --mixed_precision bf16?"),
        (["train", "--per-device-train-batch-size=8"], "8", "mean --micro_batch_size?"),
        (["train", "--max_length", "8"], "--max_length", "mean --context?"),
        (["sample", "r", "--max_length", "8"], "--max_length", "mean --max_new_tokens?"),
        (["train", "-b", "4", "-t", "64"], "-b, 4", "mean --micro_batch_size and --context?"),
        (
            ["train", "--block_size=64", "--batch_size=4", "--max_iters=9"],
            "--block_size=64",
            "mean --context, --micro_batch_size and --max_steps?",
        ),
        (["train", "--wandb_log=True"], "--wandb_log", "no tracker is called"),
        (["train", "config/train_gpt2.py", "--out_dir=x"], "train_gpt2.py", "--recipe takes"),
        (["train", "--max_steps", "five"], "--max_steps takes INT|{auto}, not 'five'", ""),
        (["train", "--compile", "yes"], "Expected one of ('auto', 'on', 'off')", ""),
        (["train", "--max_steps"], "Missing value for argument '--max_steps'", ""),
        (["evaluate"], "outpace evaluate needs MODEL", ""),
    ],
)
def test_wrong_flags_are_one_line_that_names_them_and_the_right_one(refused, argv, what, do):
    error = refused(2, "FLAGS", *argv).error
    assert what in error and do in error and error.endswith(f"outpace {argv[0]} --help")
