"""Cell ids and artifact keys, and everything they are hashed from.

``cell`` hashes, ``roles`` marks the fields that an id leaves out, ``declared`` reads these marks without importing a class,
``checkpoint`` and ``hub`` resolve a checkpoint to a digest or commit, and ``contents`` digests files.
``mmq_sweeps/config/effective.py`` makes cells from configurations.
"""
