"""What `outpace bench` compare, kernels and ladder refuse, before any work."""

import pytest

from .helpers import Run

LADDER = ["bench", "ladder", "--dataset", "tiny", "--device", "cpu"]


def test_a_comparison_with_nobody_is_refused(refused: Run):
    assert "--transformers" in refused(2, "NO-PEER", "bench", "compare").error
    assert "--nanogpt" in refused(2, "NO-PEER", "bench", "compare", "--train").error


@pytest.mark.parametrize(
    ("flag", "name", "file"),
    [
        ("--nanogpt", "NOT-NANOGPT", "configurator.py"),
        ("--llmc", "NOT-LLMC", "train_gpt2.py"),
        ("--modded", "NOT-MODDED", "train_gpt_simple.py"),
    ],
)
def test_a_folder_that_is_not_that_peer_is_refused(refused: Run, folder, tiny, flag, name, file):
    (folder / "empty").mkdir()
    for where in ("empty", "nowhere"):
        argv = ["bench", "compare", flag, where, "--dataset", "tiny", "--device", "cpu"]
        assert file in refused(2, name, *argv).error


def test_training_beside_nanogpt_refuses_a_folder_that_is_not_it(refused: Run, folder, tiny):
    (folder / "empty").mkdir()
    argv = ["bench", "compare", "--train", "--nanogpt", "empty", "--dataset", "tiny"]
    assert "model.py" in refused(2, "NOT-NANOGPT", *argv).error
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--window_s", "0"],
        ["--rounds", "0"],
        ["--start_s", "0"],
        ["--minutes", "-1"],
        ["--threads", "0"],
        ["--threads"],
        ["--n_embd", "0"],
        ["--n_head", "5", "--n_embd", "32"],
    ],
    ids=" ".join,
)
def test_values_that_cannot_be_are_refused(refused: Run, tiny, flags):
    argv = ["--transformers", "--device", "cpu", "--dataset", "tiny"]
    refused(2, "BAD-VALUE", "bench", "compare", *argv, *flags)


def test_a_size_that_is_none_is_refused_with_the_nearest(refused: Run, tiny):
    argv = ["bench", "compare", "--transformers", "--device", "cpu", "--dataset", "tiny"]
    assert "124M" in refused(2, "MODEL-SIZE", *argv, "--model_size", "125M").error
    assert "124M" in refused(2, "MODEL-SIZE", "bench", "kernels", "--model_size", "125M").error


@pytest.mark.parametrize(
    "flags", [["--seconds", "0"], ["--tokens", "0"], ["--parts"]], ids=" ".join
)
def test_kernels_refuses_values_that_cannot_be(refused: Run, flags):
    refused(2, "BAD-VALUE", "bench", "kernels", *flags)


def test_a_mistyped_rung_is_refused_with_the_nearest(refused: Run, tiny):
    said = refused(2, "UNKNOWN-RUNG", *LADDER, "--rungs", "compille").error
    assert "did you mean compile?" in said and "fused_attention" in said


@pytest.mark.parametrize(
    "flags",
    [["--minutes", "0"], ["--window_s", "0"], ["--drift_steps", "-1"], ["--n_head", "3"]],
    ids=" ".join,
)
def test_ladder_refuses_values_that_cannot_be(refused: Run, tiny, flags):
    refused(2, "BAD-VALUE", *LADDER, *flags)


def test_a_dataset_that_is_not_there_is_refused(refused: Run):
    refused(3, "NO-DATASET", *LADDER)


@pytest.mark.parametrize(
    "argv",
    [
        ["kernels", "--quick"],
        ["compare", "--transformers", "--dataset", "tiny"],
        ["ladder", "--dataset", "tiny"],
    ],
    ids=lambda argv: argv[0],
)
def test_a_folder_that_takes_no_result_is_refused_before_any_work(refused: Run, folder, tiny, argv):
    (folder / "file").write_text("")
    refused(5, "STORAGE", "bench", *argv, "--device", "cpu", "--output", "file/result.json")


@pytest.mark.parametrize("what", ["kernels", "ladder"])
def test_a_gpu_that_is_not_there_is_refused(refused: Run, what):
    refused(2, "NO-GPU", "bench", what, "--device", "cuda")
