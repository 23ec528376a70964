"""Kind `can`: signals or frames of a CAN bus or log."""
