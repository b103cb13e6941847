"""Models whose every layer is full, as the classes that transformers has itself: no remote code, so that other programs
load them."""
