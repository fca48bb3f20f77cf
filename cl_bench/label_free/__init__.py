"""Scores of a model that need no label: sums kept while a stream is answered, and the scorers over them."""
