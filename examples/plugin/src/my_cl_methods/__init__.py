"""Methods of ours for cl-bench."""
