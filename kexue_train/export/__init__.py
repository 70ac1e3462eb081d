"""Export: the last checkpoint as a Hugging Face folder that anyone can load, checked before it counts as done."""
