"""How programs on this machine talk to their own daemon: gRPC on a Unix socket, with a token."""
