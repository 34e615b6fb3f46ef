"""How a node reaches the others: one small interface, several ways onto the network (protocol section 11)."""
