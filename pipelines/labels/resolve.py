"""One answer out of several labels of a sample: the latest, or what most authors say.

Stands alone because it is the decision about labels, pure, and read by itself.
"""

from typing import Literal

import polars as pl
import pyarrow as pa

from pipelines.labels.table import KEY

ResolveRule = Literal["latest", "majority"]
NOTHING_CLASS = "nothing"


def resolved_classes(labels: pa.Table, rule: ResolveRule = "latest") -> pa.Table:
    """The class of each labelled sample: key columns, `value`, `authors`, and `agreement`, the share of authors who say so.

    A sample that somebody looked at and found nothing in has the class `nothing`. Of each author the latest class counts;
    labels that another one supersedes, or that a reviewer rejected, do not. A majority needs more votes than any other class:
    a tie gives no class.

    Args:
        labels: rows of a label table.
        rule: "latest" takes the newest label, one by a reviewer before all others; "majority" one vote for each author.
    """
    frame = pl.DataFrame(pl.from_arrow(labels))
    gone = frame.select(pl.col("supersedes").explode().alias("label_id")).drop_nulls()
    stated = frame.join(gone, on="label_id", how="anti").filter(
        pl.col("kind").is_in(["class", "nothing"]) & (pl.col("state") != "rejected")
    )
    answer = pl.when(pl.col("kind") == "nothing").then(pl.lit(NOTHING_CLASS)).otherwise(pl.col("value")).alias("value")
    key = list(KEY)
    order = [pl.col("role") == "reviewer", pl.col("made_at"), pl.col("imported_at"), pl.col("label_id")]
    votes = stated.with_columns(answer).sort(order).unique([*key, "author"], keep="last", maintain_order=True)
    votes = votes.with_columns(pl.len().over(key).alias("authors"), pl.len().over([*key, "value"]).alias("votes"))
    if rule == "latest":
        chosen = votes.unique(key, keep="last", maintain_order=True)
    else:
        most = votes.filter(pl.col("votes") == pl.col("votes").max().over(key)).unique(
            [*key, "value"], keep="first", maintain_order=True
        )
        chosen = most.filter(pl.len().over(key) == 1)
    chosen = chosen.with_columns((pl.col("votes") / pl.col("authors")).alias("agreement")).sort(key)
    return chosen.select(*key, "value", pl.col("authors").cast(pl.Int32), "agreement").to_arrow()
