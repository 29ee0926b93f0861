"""Tasks whose answers are generated text: captions, answers, benchmarks. Imports nothing, so that planning needs no torch."""
