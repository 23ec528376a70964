"""Building a training set in bounded memory: sorted parts, a plan from counts, shards; files between two linear graphs."""
