"""Speed and memory of hjepa, beside plain references, in one run."""
