"""The commands of `edge-agent`."""
