"""The agent on the device: capture -> spool -> uplink; downlink -> receipts | models. Never imports `pipelines`."""
