"""Models of other sizes out of a model: wider, deeper, smaller. Pure functions on weights in the export's form."""
