"""The spool: the agent's durable queue, and the only place where capture and uplink meet."""
