"""The report of a run: one HTML page that needs nothing beside it, and the table that compares selections."""
