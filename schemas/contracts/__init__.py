"""Contracts that ship with Catchment: `*.odcs.yaml` is authored, `*.json` is compiled from it."""
