"""Training in a process of its own: rows to token blocks, token blocks to one exact integer delta a round."""
