"""Between the network and the commands: training, scores, and the folder of a run."""
