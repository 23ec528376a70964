"""Where graphs run: in this process, on a Dask cluster, or behind a job server. The graph is the same on all of them."""
