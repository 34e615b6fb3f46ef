"""The command `fullrank`: parses, asks the daemon or calls one function, prints, and exits with a documented code."""
