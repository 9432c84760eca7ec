"""What the ranks of a run do now: collected from their recordings while it is running, and shown."""
