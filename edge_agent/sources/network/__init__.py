"""Shared by kinds: sockets, datagrams and framed streams."""
