"""One answer out of several labels of a sample: the latest, or what most authors say.

Stands alone because it is the decision about labels, pure, and read by itself.
"""

from typing import Literal

import polars as pl
import pyarrow as pa

from pipelines.labels.table import KEY

ResolveRule = Literal["latest", "majority", "unanimous"]
NOTHING_CLASS = "nothing"


def resolved_classes(labels: pa.Table, rule: ResolveRule = "latest") -> pa.Table:
    """The class of each labelled sample: key columns, `value`, `authors`, and `agreement`, the share of authors who say so.

    A sample that somebody looked at and found nothing in has the class `nothing`. Of each author the latest class counts;
    labels that another one supersedes, or that a reviewer rejected, do not. A majority needs more votes than any other class:
    a tie gives no class.

    Args:
        labels: rows of a label table.
        rule: "latest" takes the newest label, one by a reviewer before all others; "majority" one vote for each author;
            "unanimous" a class that all authors say.
    """
    key = list(KEY)
    votes = votes_of(labels)
    votes = votes.with_columns(pl.len().over(key).alias("authors"), pl.len().over([*key, "value"]).alias("votes"))
    if rule == "latest":
        chosen = votes.unique(key, keep="last", maintain_order=True)
    elif rule == "unanimous":
        chosen = votes.filter(pl.col("votes") == pl.col("authors")).unique(key, keep="last", maintain_order=True)
    else:
        most = votes.filter(pl.col("votes") == pl.col("votes").max().over(key)).unique(
            [*key, "value"], keep="first", maintain_order=True
        )
        chosen = most.filter(pl.len().over(key) == 1)
    chosen = chosen.with_columns((pl.col("votes") / pl.col("authors")).alias("agreement")).sort(key)
    return chosen.select(*key, "value", pl.col("authors").cast(pl.Int32), "agreement").to_arrow()


def current_labels(labels: pa.Table) -> pl.DataFrame:
    """The labels that count: neither superseded nor rejected by a reviewer."""
    frame = pl.DataFrame(pl.from_arrow(labels))
    gone = frame.select(pl.col("supersedes").explode().alias("label_id")).drop_nulls()
    return frame.join(gone, on="label_id", how="anti").filter(pl.col("state") != "rejected")


def votes_of(labels: pa.Table) -> pl.DataFrame:
    """The class that each author gives each sample, the newest of a reviewer last: columns of the table, `value` the class."""
    stated = current_labels(labels).filter(pl.col("kind").is_in(["class", "nothing"]))
    answer = pl.when(pl.col("kind") == "nothing").then(pl.lit(NOTHING_CLASS)).otherwise(pl.col("value")).alias("value")
    order = [pl.col("role") == "reviewer", pl.col("made_at"), pl.col("imported_at"), pl.col("label_id")]
    return stated.with_columns(answer).sort(order).unique([*KEY, "author"], keep="last", maintain_order=True)
