"""One node: everything that touches the world; what nodes agree on is in fullrank_protocol."""
