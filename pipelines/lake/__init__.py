"""The lake: payload shards, Delta tables, runs, the ledger of settled ranges."""
