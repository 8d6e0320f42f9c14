"""What a node keeps on disk: checkpoints, history, and in testbeds the vectors of every round."""
