"""Linear recurrences in chunked and step form."""
