"""Training: adapters, the gate, the embedded model and its data."""
