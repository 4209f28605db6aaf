"""One request: its exchange with the client, who sent it, its session, its headers, its log line and trace."""
