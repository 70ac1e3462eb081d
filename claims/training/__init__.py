"""What several claims train on or train: a toy of two tokens, text, small encoders."""
