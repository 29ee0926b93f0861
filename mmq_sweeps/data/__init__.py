"""Where images and their texts come from: readers of published data sets and the scenes that ship with the package.

A published set has a reader (``coco``, ``flickr30k``, ``vqav2``, ``gqa``), which share ``published``; ``catalog`` says
what each consists of, ``python -m mmq_sweeps.data`` gets it (``download``, ``unpack``, ``prepare``) and ``images``
decodes its files to tell which cannot be used.
"""
