"""Everything that is made of records."""
