"""One request: its record, who sent it, its session, its headers, its log line and trace."""
