"""Readers and writers of labelling tools' files, one module a format."""
