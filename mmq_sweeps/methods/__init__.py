"""Quantization methods: one file and one yaml each. See ``base`` for their interface."""
