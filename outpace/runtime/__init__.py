"""The machine, the process group, precision, compilation and seeds."""
