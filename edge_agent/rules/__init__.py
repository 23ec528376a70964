"""Edge rules from the core: signed, kept for starts without a network, applied between capture and spool."""
