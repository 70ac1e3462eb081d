"""What every stage stands on: errors, configuration files, artifacts, the run folder, shards on disk."""
