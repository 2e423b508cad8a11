"""What is kept of a text, and which of it is read again: state, scores, eviction, recall."""
