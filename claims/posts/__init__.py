"""One file for each claim: what the blog says, what is measured, what would refute it."""
