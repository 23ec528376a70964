"""Policies: rules that data scientists write, compiled to column expressions."""
