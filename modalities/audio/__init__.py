"""Sound as log-mel spectrograms."""
