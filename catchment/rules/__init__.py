"""The expression language as a device evaluates it: generated SQL over the sqlite3 of the standard library, and nothing else.

The core compiles (`pipelines.policy`) and ships `SqlExpression`s; a device needs no parser. See docs/expressions.md.
"""
