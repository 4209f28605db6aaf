"""What commands print: tables, JSON, and the last words of `up`."""
