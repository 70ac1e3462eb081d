"""All stages of a run in data order: its configuration, what is complete, what it will take."""
