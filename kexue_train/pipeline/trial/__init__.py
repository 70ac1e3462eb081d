"""A trial: every stage of a run on a small sample of its corpus, and from that what the whole will take and reach."""
