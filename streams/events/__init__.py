"""The vocabulary: every event, its CloudEvents encoding, ids, upcasters and partitions."""
