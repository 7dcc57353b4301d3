"""What is done beside training: plans, verdicts, conversion, proofs and checks of runs,
checkpoints and machines."""
