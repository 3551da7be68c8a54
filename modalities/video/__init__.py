"""Videos: clips of tubes of pixels, decoded a few frames at a time."""
