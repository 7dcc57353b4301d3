"""The memory formula against what a GPU's allocator gave out."""

import pytest
import torch

from outpace.bench.step_memory import SETTINGS, measured_peak
from outpace.config.presets import GPT2Shape
from outpace.model.memory import StepSettings, training_memory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
FEW_LAYERS = GPT2Shape(2, 12, 768, 1024, 50257)
ASKED = [
    "bf16", "fp32", "  + loss in place", "  + chunked loss", "compiled, loss in place",
    "compiled, in place, fp8 head",
]  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_the_formula_is_within_5_percent_of_what_a_gpu_took(name):
    s = StepSettings(FEW_LAYERS, **SETTINGS[name])
    measured = measured_peak(s, 16, torch.device("cuda"))
    assert measured is not None
    assert training_memory(s).peak(16 * 1024) == pytest.approx(measured, rel=0.05)
