"""Run-time parts that agent and core share: side effects without a business noun. Imports nothing of the other packages."""
