"""What the demo needs besides the node itself: an embedded base model and texts to train it on."""
