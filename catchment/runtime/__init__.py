"""What agent and core both run and neither owns: side effects without a business noun. Imports nothing of the other packages."""
