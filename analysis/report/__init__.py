"""One self-contained page: what cells show, in words, figures and tables."""
