"""Documents of lmms-eval's tasks, from the installed library.

``installed``, ``catalog``, ``network`` and ``sources`` read its files without importing it, so that planning stays light;
``library`` imports it and undoes what the import changes in the process; ``documents`` is the reader.
"""
