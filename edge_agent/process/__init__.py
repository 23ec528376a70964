"""What the operating system sees of the agent: its lock, its log, its start."""
