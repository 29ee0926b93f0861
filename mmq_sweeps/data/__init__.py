"""Image data sets: readers of published sets, and the scenes that ship with the package.

Each published set has a reader (``coco``, ``flickr30k``, ``vqav2``, ``gqa``) built on ``published``. ``catalog`` lists
the files of each set, ``python -m mmq_sweeps.data`` downloads and unpacks them (``download``, ``unpack``, ``prepare``),
and ``images`` decodes image files and reports the unusable ones.
"""
