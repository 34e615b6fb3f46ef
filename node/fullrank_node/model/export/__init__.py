"""The shared model in forms that other programs load: a Hugging Face directory, a PEFT adapter."""
