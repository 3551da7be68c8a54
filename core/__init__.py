"""The engine: masked autoencoders on arrays of 1 to 4 axes. Knows no modality by name."""
