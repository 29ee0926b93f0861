"""The study's figures: what they show (``catalog``), how they look on paper (``paper``) and in a browser (``interactive``)."""
