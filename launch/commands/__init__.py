"""Verbs of ``python -m launch``, a module each."""
