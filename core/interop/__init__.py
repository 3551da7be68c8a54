"""Foreign checkpoint layouts, one file each, in and out."""
