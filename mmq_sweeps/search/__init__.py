"""Find the best assignment for a budget without measuring the whole grid.

``space`` has the choices and their exact sizes, ``sizing`` builds it from a model, ``sensitivity`` reads what every choice
costs, ``allocation`` optimizes a sum of damages, ``model`` learns damages from measured cells, ``race`` compares candidates on
growing sets of items, and ``loop`` joins them: it asks for cells and is told their scores. Only ``sizing`` imports torch.
"""
