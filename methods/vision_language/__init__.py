"""Methods for models that read class names: continual learning and test-time adaptation of CLIP, one paper per file."""
