"""What a cell's id and the keys of its artifacts are made of.

``roles`` declares what a field is to the identity, ``declared`` reads it without importing the class, ``effective`` makes
a cell of a configuration, and ``contents`` digests files.
"""
