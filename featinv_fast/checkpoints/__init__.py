"""Reading, converting and writing checkpoints by strict key recipes."""
