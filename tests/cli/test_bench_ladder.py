"""`outpace bench ladder`: what it refuses, before any work."""

import pytest

from .helpers import Run

LADDER = ["bench", "ladder", "--dataset", "tiny", "--device", "cpu"]


def test_a_mistyped_rung_is_refused_with_the_nearest(refused: Run, tiny):
    said = refused(2, "UNKNOWN-RUNG", *LADDER, "--rungs", "compille").error
    assert "did you mean compile?" in said and "fused_attention" in said


@pytest.mark.parametrize(
    "flags",
    [["--minutes", "0"], ["--window_s", "0"], ["--drift_steps", "-1"], ["--n_head", "3"]],
    ids=" ".join,
)
def test_values_that_cannot_be_are_refused(refused: Run, tiny, flags):
    refused(2, "BAD-VALUE", *LADDER, *flags)


def test_a_gpu_or_a_dataset_that_is_not_there_is_refused(refused: Run):
    refused(2, "NO-GPU", "bench", "ladder", "--device", "cuda")
    refused(3, "NO-DATASET", *LADDER)


def test_a_folder_that_takes_no_result_is_refused(refused: Run, folder, tiny):
    (folder / "file").write_text("")
    refused(5, "STORAGE", *LADDER, "--output", "file/ladder.json")
