"""Read the cells of stores, and format them as tables for people and for documents. Needs neither pandas nor torch."""
