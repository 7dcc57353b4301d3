"""Level 2: the machine, the process group, precision, compilation and seeds."""
