"""What nodes agree on: arguments in, a value or a ProtocolError out (protocol/README.md)."""
