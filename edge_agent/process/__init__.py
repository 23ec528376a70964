"""The agent as a process of the operating system: its lock, its log, its start."""
