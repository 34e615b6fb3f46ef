"""The base model, its float32 masters, what is exported and what is measured."""
