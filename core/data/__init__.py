"""From raw sources to device batches: sources, codecs, shards, splits, loading."""
