"""outpace: GPT-2 (124M) trained fast, with proof, and without ever losing a run."""

__version__ = "0.1.0"
