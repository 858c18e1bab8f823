"""Faust with its traps guarded: see the docstring of each guard."""
