"""Find the best assignment for a budget without measuring the whole grid.

``space`` has the choices and their exact sizes, ``sizing`` builds it from a model, ``prediction`` learns the costs of choices
and optimizes them, ``racing`` compares candidates on growing sets of items, and ``loop`` joins them: it asks for cells and is
told their scores, as ``measuring`` has them. Only ``sizing`` imports torch.
"""
