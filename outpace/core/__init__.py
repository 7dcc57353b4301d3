"""Level 0: what every other package may use. Of others' packages rich, filelock and the
hub's client; never torch."""
