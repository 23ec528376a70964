"""Maintenance of a lake while runs go on: compaction, vacuum, roll-ups, by command or again and again."""
