"""Teachers: their scores as training data, and what a student keeps of them."""
