"""The outputs of a job: checkpoints, model, labels, events and report."""
