"""Flash attention by measurement: memory grows with T, not with its square."""

import torch

from outpace.bench.attention_memory import measure


def test_sdpa_grows_linearly_and_the_reference_quadratically():
    result = measure((256, 512, 1024, 2048), 8, 64, torch.device("cpu"), ["sdpa", "reference"])
    exponents = result["exponents"]
    assert 0.7 < exponents["sdpa"] < 1.3
    assert 1.6 < exponents["reference"] < 2.2
    assert result["results"]["sdpa"][0]["kernel"] == "FLASH_ATTENTION"
    # The reference holds at least scores, weights and one gradient of 8 heads x T x T in fp32.
    assert result["results"]["reference"][-1]["bytes"] > 3 * 8 * 2048**2 * 4
