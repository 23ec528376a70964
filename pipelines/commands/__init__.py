"""The commands of `catchment`: one module for each group, with one place for options and one for exits."""
