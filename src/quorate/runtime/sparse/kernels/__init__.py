"""What each kind of layer becomes: where its numbers lie, its weights in the order they are read, the text of its routine."""
