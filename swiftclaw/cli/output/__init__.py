"""What commands print: tables, JSON, and the summary of `up`."""
