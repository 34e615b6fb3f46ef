"""The protocol's messages: proto files, and the code that scripts/make_wire makes from them."""
