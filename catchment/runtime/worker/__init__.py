"""Limited child processes: code that may crash, hang or take all memory runs in one of these, never in its caller.

`process.WorkerProcess` starts a child and exchanges framed messages with it; `outcome` names how a request can end.
The caller decides whether to start another child.
"""
