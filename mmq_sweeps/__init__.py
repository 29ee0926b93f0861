"""mmq-sweeps: which part of a vision-language model can be stored in how few bits, by which method, at what cost."""

__version__ = "0.1.0"
