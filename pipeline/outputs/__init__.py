"""What a job leaves behind: checkpoints, the model, labels, events and the report."""
