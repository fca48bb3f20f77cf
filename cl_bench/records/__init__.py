"""What a run leaves on disk, and the trackers that are told of it."""
