"""The director: the online key that signs what devices are ordered to do, and the counters of its documents."""
