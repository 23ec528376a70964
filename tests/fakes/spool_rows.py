"""Rows of a spool's database, read next to the spool that has it open."""

import sqlite3
from contextlib import closing
from typing import Any

from edge_agent.spool import database
from edge_agent.spool.spool import Spool


def rows_of(spool: Spool, query: str) -> list[tuple[Any, ...]]:
    """What a query answers by a connection of its own."""
    with closing(sqlite3.connect(spool.folder / database.FILE_NAME)) as db:
        return db.execute(query).fetchall()
