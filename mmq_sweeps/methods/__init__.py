"""Quantization methods: one file and one yaml each. See ``base`` for what a method is given and gives back."""
