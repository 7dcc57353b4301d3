"""Tasks, one file each; see the table in `outpace.evals`."""
