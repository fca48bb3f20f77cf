"""What the numbers mean: accuracy matrix, test-time streams, statistics. numpy and scipy alone."""
