"""Runners of graphs: this process, a Dask cluster, or a job server. The graph is the same on all of them."""
