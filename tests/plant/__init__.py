"""Broker, core and agents for tests, fault runs and benchmarks: one starter of each.

`broker` starts Mosquitto, `programs` the core and agents as the real programs, `core` a lake and its run loop in this process.
What the demo starts as well lies in `pipelines.demo` and is used from there: docs/adr/0045-the-demos-plant.md.
"""
