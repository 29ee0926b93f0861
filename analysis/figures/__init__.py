"""The study's figures: their content (``catalog``), drawn for print (``paper``) and for a browser (``interactive``)."""
