"""A self-contained HTML page on a table of cells: sentences, figures and tables."""
